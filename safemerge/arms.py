"""What the arms are called, in reports, artifacts and labels: names that files keep, so never translated."""

ALIGNED = "aligned"
"""The aligned model alone."""
FINE_TUNED = "fine_tuned"
"""The task adapter as it was trained, unrepaired."""
SAFEMERGE = "safemerge"
"""The repaired adapter, by whatever method."""
SCALE = "scale"
"""Control: every layer of the task adapter scaled, without the safety adapter."""
SCALE_SELECTED = "scale_selected"
"""Control: the layers that the repair chose, scaled."""

# What an arm is to the gate.
CANDIDATE = "candidate"
"""The adapter that may be released."""
CHAMPION = "champion"
"""The adapter that is released now."""
