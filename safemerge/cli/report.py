"""``safemerge report``: what a person who signs a release reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safemerge.arms import ALIGNED, CANDIDATE, CHAMPION, FINE_TUNED
from safemerge.cli.arms import (
    Aligned,
    Candidate,
    Champion,
    FineTuned,
    MoreReports,
    NoChampion,
    PolicyFile,
    Reports,
    check_champion,
    named_paths,
    verdict,
)
from safemerge.cli.flags import AsJson, epilog

if TYPE_CHECKING:
    from safemerge.config.pipeline import PipelineConfig
    from safemerge.records import MergeReport

EPILOG = epilog(
    "safemerge report --policy pipeline.yaml --reports eval/* --candidate repaired --no-champion "
    "--merge adapters/repaired --output report",
    "safemerge report --policy policy.yaml --candidate eval/new --champion eval/released "
    "--reports scale=eval/scale resta=eval/resta --output report",
    "safemerge report --policy pipeline.yaml --reports eval/* --candidate repaired "
    "--model-card adapters/repaired",
    exit_codes="Exit code: 0 written, whatever the verdict (safemerge gate tells it by its exit code), "
    "2 wrong usage, 4 an error that one line on stderr names.",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EPILOG)(report)


def report(
    policy: PolicyFile,
    candidate: Candidate = None,
    aligned: Aligned = None,
    fine_tuned: FineTuned = None,
    champion: Champion = None,
    no_champion: NoChampion = False,
    reports: Reports = None,
    more_reports: MoreReports = None,
    merge: Annotated[
        Path | None,
        typer.Option(help="The candidate's folder, or the report of its merge.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder to create with report.html, .md, .json and transcripts.jsonl.", show_default=False
        ),
    ] = None,
    model_card: Annotated[
        Path | None,
        typer.Option(help="The candidate's folder, to write README.md into.", show_default=False),
    ] = None,
    transcripts: Annotated[
        int, typer.Option(min=0, help="Prompts that the report shows at most, those that changed first.")
    ] = 300,
    as_json: AsJson = False,
) -> None:
    """Write the release report: verdict, arms, trade-off, layers, transcripts and where it all comes from.

    Works on what evaluate has written: no model is loaded. The page opens from disk and needs no network.
    """
    from safemerge.config.load import load_policy
    from safemerge.release.assembling import release_report
    from safemerge.release.provenance import provenance_of
    from safemerge.release.transcripts import gather
    from safemerge.release.writing import read_evaluation, write_card, write_report
    from safemerge.reports.release import RELEASE_PAGE_FILE
    from safemerge.storage.atomic import atomic_folder, check_absent

    if output is None and model_card is None and not as_json:
        raise typer.BadParameter("expected --output, --model-card or --json, got none")
    rules = load_policy(policy)
    if output is not None:
        check_absent(output)
    flags = {ALIGNED: aligned, FINE_TUNED: fine_tuned, CHAMPION: champion}
    paths = named_paths(flags, [*(reports or ()), *(more_reports or ())], candidate)
    check_champion(paths, no_champion)
    read = {arm: read_evaluation(path) for arm, path in paths.items()}
    evaluations = {arm: evaluation for arm, (evaluation, _) in read.items()}
    decision = verdict(rules, f"{policy} with {evaluations[CANDIDATE].arm}", evaluations, no_champion)
    asked = gather(evaluations, {arm: rows for arm, (_, rows) in read.items()})
    made = release_report(
        evaluations,
        decision,
        rules,
        provenance_of(_pipeline(policy)),
        merge=_merge_report(merge or model_card, decision.adapter_digest, asked_for=merge is not None),
        transcripts=asked,
        most_shown=transcripts,
    )
    if output is not None:
        with atomic_folder(output) as partial:
            write_report(made, asked, partial)
    card = write_card(made, model_card) if model_card is not None else None
    if as_json:
        typer.echo(made.to_json(), nl=False)
        return
    typer.echo(decision.summary())
    for path in (output and output / RELEASE_PAGE_FILE, card):
        if path:
            typer.echo(str(path))


def _pipeline(policy: Path) -> PipelineConfig | None:
    """The pipeline that the policy is part of; None where there is no whole one."""
    from safemerge.config.load import has_gate_section, load_pipeline
    from safemerge.errors import ConfigError

    if not has_gate_section(policy):
        return None
    try:
        return load_pipeline(policy)
    except ConfigError as error:
        typer.echo(f"warning: the report cannot say of data and seeds: {error}", err=True)
        return None


def _merge_report(path: Path | None, digest: str | None, *, asked_for: bool) -> MergeReport | None:
    """How the candidate came about.

    Raises:
        MismatchError: the folder is of another adapter.
        DataError: there is no such report where one was asked for.
    """
    from safemerge.errors import MismatchError
    from safemerge.records import MERGE_REPORT_FILE, MergeReport
    from safemerge.storage.adapters import adapter_digest

    if path is None:
        return None
    if not path.is_dir():
        return MergeReport.read(path)
    if (got := adapter_digest(path)) != digest:
        raise MismatchError(
            f"{path}: expected the adapter that was judged, digest {str(digest)[:12]}, got {got[:12]}"
        )
    file = path / MERGE_REPORT_FILE
    return MergeReport.read(file) if asked_for or file.exists() else None
