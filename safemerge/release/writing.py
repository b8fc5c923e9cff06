"""The forms of a release report as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safemerge.errors import MismatchError, OutputExistsError
from safemerge.records import EVALUATION_REPORT_FILE, RESPONSES_FILE, EvaluationReport
from safemerge.release.card import MARK, card
from safemerge.release.html import html
from safemerge.release.markdown import markdown
from safemerge.release.transcripts import Rows, lines, read_rows
from safemerge.reports.evaluation import evaluation_file, read_evaluation_report
from safemerge.reports.release import RELEASE_PAGE_FILE, RELEASE_REPORT_FILE, ReleaseReport, Transcript
from safemerge.storage.atomic import atomic_file

CARD_FILE = "README.md"
TRANSCRIPTS_FILE = "transcripts.jsonl"


def write_report(report: ReleaseReport, transcripts: Sequence[Transcript], folder: Path) -> None:
    """Write ``report.html``, ``.md`` and ``.json``, and ``transcripts.jsonl`` with all prompts uncut.

    Args:
        report: what is told.
        transcripts: all of them.
        folder: an existing folder, which the caller makes appear whole.
    """
    write_forms(report, folder)
    (folder / TRANSCRIPTS_FILE).write_text("".join(lines(transcripts)), encoding="utf-8", newline="\n")


def write_forms(report: ReleaseReport, folder: Path) -> None:
    """Write ``report.html``, ``.md`` and ``.json`` alone."""
    for name, text in (
        (RELEASE_PAGE_FILE, html(report)),
        ("report.md", markdown(report)),
        (RELEASE_REPORT_FILE, report.to_json()),
    ):
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def write_card(report: ReleaseReport, adapter: Path) -> Path:
    """Write the model card into the adapter's folder; one that safemerge wrote is replaced.

    Raises:
        MismatchError: the adapter is not the one that the report is about.
        OutputExistsError: there is a card that somebody else wrote.
    """
    from safemerge.storage.adapters import adapter_digest

    digest = adapter_digest(adapter)
    if digest != report.decision.adapter_digest:
        raise MismatchError(
            f"{adapter}: expected the adapter that was judged, digest "
            f"{str(report.decision.adapter_digest)[:12]}, got {digest[:12]}"
        )
    path = adapter / CARD_FILE
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        raise OutputExistsError(
            f"{path}: expected none or a card made by safemerge, got another; move it away"
        )
    with atomic_file(path, replace=True) as partial:
        partial.write_text(card(report), encoding="utf-8", newline="\n")
    return path


def read_evaluation(path: Path) -> tuple[EvaluationReport, Rows]:
    """A report and the answers beside it, of a folder of ``safemerge evaluate`` or of a report's file.

    Raises:
        DataError: there is no report, or a file cannot be read.
    """
    report, file = read_evaluation_report(path), evaluation_file(path)
    answers = file.with_name(RESPONSES_FILE)
    # A lone file may lie among those of other arms, whose answers these would not be.
    return report, read_rows(answers) if file.name == EVALUATION_REPORT_FILE and answers.exists() else ()
