"""The gate: reports and a policy in, a verdict out.

A pure function. It reads no file and no clock, and it fails closed: a figure that is
missing, not finite, or not comparable blocks the release just as a bad figure does.
"""

from safemerge.gate.comparison import measurement_differences, utility_gain
from safemerge.gate.decision import NO_CHAMPION, decide
from safemerge.gate.feasibility import SuiteSize, check_decidable, check_suites, sizes
from safemerge.gate.policy import GatePolicy, OnCannotTell
from safemerge.gate.regression import Reference

__all__ = [
    "NO_CHAMPION",
    "GatePolicy",
    "OnCannotTell",
    "Reference",
    "SuiteSize",
    "check_decidable",
    "check_suites",
    "decide",
    "measurement_differences",
    "sizes",
    "utility_gain",
]
