"""What the arms are called.

The names are those that reports, artifacts and labels keep, so they never change; the titles are for people.
"""

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

ARM_TITLES = {
    ALIGNED: "aligned model",
    FINE_TUNED: "fine-tuned, unrepaired",
    SAFEMERGE: "SafeMERGE",
    SCALE: "control: all layers scaled",
    SCALE_SELECTED: "control: same layers scaled",
    CANDIDATE: "candidate",
    CHAMPION: "champion",
}
"""What people call them, in the order of tables."""
