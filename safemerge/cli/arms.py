"""Reports by arm, as ``gate`` and ``report`` are told of them, and the verdict on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safemerge.arms import ALIGNED, CANDIDATE, CHAMPION, FINE_TUNED

if TYPE_CHECKING:
    from safemerge.gate import GatePolicy
    from safemerge.records import EvaluationReport, GateDecision

ARMS = (CANDIDATE, ALIGNED, FINE_TUNED, CHAMPION)
"""Arms whose reports the gate reads."""

PolicyFile = Annotated[
    Path, typer.Option(help="YAML file: a policy, or a pipeline with a gate section.", show_default=False)
]
Aligned = Annotated[
    Path | None,
    typer.Option(help="Report of the aligned model; needed for the gain kept.", show_default=False),
]
FineTuned = Annotated[
    Path | None,
    typer.Option(help="Report of the unrepaired adapter; needed for the gain kept.", show_default=False),
]
Champion = Annotated[
    Path | None, typer.Option(help="Report of the adapter that is released now.", show_default=False)
]
NoChampion = Annotated[
    bool, typer.Option("--no-champion", help="Nothing is released yet: rules against it do not apply.")
]
MoreReports = Annotated[list[str] | None, typer.Argument(metavar="ARM=PATH", hidden=True)]


Candidate = Annotated[
    str | None,
    typer.Option(
        metavar="ARM or PATH",
        help="The adapter to judge: an arm among --reports, or its own report.",
        show_default=False,
    ),
]
Reports = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH ...",
        help="Reports of any arms, in one go: folders that evaluate has written, or files; as ARM=PATH under "
        f"another name than their own. Those called {', '.join(ARMS)} are what the gate reads.",
        show_default=False,
    ),
]


def named_paths(
    flags: Mapping[str, Path | None], reports: Iterable[str], candidate: str | None
) -> dict[str, Path]:
    """Arm to report, from all ways to name them; an arm that is not named goes by the name in its report.

    Args:
        flags: arm to what its own flag says.
        reports: paths, or ``ARM=PATH``.
        candidate: one of their arms, or a path.

    Raises:
        typer.BadParameter: two reports are of one arm, or there is not one candidate.
        DataError: a report whose arm is not named cannot be read.
    """
    paths = {arm: path for arm, path in flags.items() if path is not None}
    for text in reports:
        arm, path = _named(text)
        if arm in paths:
            raise typer.BadParameter(
                f"expected one report of {arm}, got two; name one otherwise, by ARM=PATH"
            )
        paths[arm] = path
    if candidate is None:
        if CANDIDATE not in paths:
            raise typer.BadParameter("expected --candidate or --reports candidate=PATH, got neither")
        return paths
    if CANDIDATE in paths:
        raise typer.BadParameter("expected one report of candidate, got two")
    if candidate in paths:
        return {CANDIDATE if arm == candidate else arm: path for arm, path in paths.items()}
    if reports and not Path(candidate).exists():
        arms = ", ".join(paths) or "none"
        raise typer.BadParameter(f"--candidate {candidate}: expected a path or one of the arms {arms}")
    return {CANDIDATE: Path(candidate), **paths}


def _named(text: str) -> tuple[str, Path]:
    from safemerge.reports.evaluation import read_evaluation_report

    arm, equals, path = text.partition("=")
    if Path(text).exists():
        return read_evaluation_report(Path(text)).arm, Path(text)
    if not equals or not arm or not path:
        raise typer.BadParameter(f"expected a path or ARM=PATH, got {text!r}")
    known = arm.replace("-", "_")
    return (known if known in ARMS else arm), Path(path)


def check_champion(arms: Iterable[str], no_champion: bool) -> None:
    """Refuse a champion that is both there and not.

    Raises:
        typer.BadParameter: it is.
    """
    if no_champion and CHAMPION in arms:
        raise typer.BadParameter("expected a champion's report or --no-champion, got both")


def verdict(
    policy: GatePolicy, where: str, reports: Mapping[str, EvaluationReport], no_champion: bool
) -> GateDecision:
    """Judge.

    Args:
        policy: by which.
        where: files of policy and candidate, for messages.
        reports: arm to report; those of ``ARMS`` count.
        no_champion: whether nothing is released yet.

    Raises:
        ConfigError: the policy names suites that no report has, or cannot be decided on the candidate's.
    """
    from safemerge.errors import ConfigError
    from safemerge.gate import NO_CHAMPION, Reference, check_decidable, check_names, decide, sizes

    try:
        check_names(policy, [size for report in reports.values() for size in sizes(report)])
        check_decidable(policy, sizes(reports[CANDIDATE]))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    champion = reports.get(CHAMPION)
    remedy = "name it by --champion, or say --no-champion where nothing is released yet"
    known = Reference(champion) if champion else Reference(remedy=remedy)
    reference = NO_CHAMPION if no_champion else known
    return decide(reports[CANDIDATE], reports.get(ALIGNED), reports.get(FINE_TUNED), policy, reference)
