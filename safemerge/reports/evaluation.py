"""Evaluation reports that people name: read from a file or a folder, and told from other reports."""

from __future__ import annotations

from pathlib import Path

from safemerge.described import Record
from safemerge.errors import DataError
from safemerge.records import EVALUATION_REPORT_FILE, EvaluationReport, GateDecision, MergeReport
from safemerge.reports.release import ReleaseReport

_OTHERS: dict[str, type[Record]] = {
    "a release report, which is made from them": ReleaseReport,
    "a merge report": MergeReport,
    "a gate's decision": GateDecision,
}
"""What else a file may hold that a user takes for an evaluation report."""


def evaluation_file(path: Path) -> Path:
    """The report's file in a folder of ``safemerge evaluate``, or the file that was named."""
    return path / EVALUATION_REPORT_FILE if path.is_dir() else path


def read_evaluation_report(path: Path) -> EvaluationReport:
    """Read the report in a folder of ``safemerge evaluate``, or in a file.

    Raises:
        DataError: there is none, or it cannot be read; says so where it is another report.
    """
    file = evaluation_file(path)
    try:
        return EvaluationReport.read(file)
    except DataError:
        for what, kind in _OTHERS.items():
            if _holds(file, kind):
                raise DataError(f"{file}: expected an evaluation report, got {what}") from None
        raise


def _holds(file: Path, kind: type[Record]) -> bool:
    try:
        kind.read(file)
    except DataError:
        return False
    return True
