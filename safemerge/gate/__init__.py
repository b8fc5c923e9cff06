"""The gate: reports and a policy in, a verdict out.

A pure function. It reads no file and no clock, and it fails closed: a figure that is
missing, not finite, or not comparable blocks the release just as a bad figure does.
"""

from safemerge.gate.comparison import measurement_differences, utility_gain
from safemerge.gate.decision import NO_CHAMPION, decide
from safemerge.gate.feasibility import (
    SuiteSize,
    check_decidable,
    check_names,
    check_suites,
    sizes,
    small_suites,
)
from safemerge.gate.policy import GatePolicy, OnCannotTell, SignOff
from safemerge.gate.regression import Reference
from safemerge.gate.stopping import STOP_LIMITS, StopRule, check_stoppable, is_settled, stop_rules

__all__ = [
    "NO_CHAMPION",
    "STOP_LIMITS",
    "GatePolicy",
    "OnCannotTell",
    "Reference",
    "SignOff",
    "StopRule",
    "SuiteSize",
    "check_decidable",
    "check_names",
    "check_stoppable",
    "check_suites",
    "decide",
    "is_settled",
    "measurement_differences",
    "sizes",
    "small_suites",
    "stop_rules",
    "utility_gain",
]
