"""Reports by arm, as ``gate`` and ``report`` are told of them, and the verdict on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from safemerge.gate import GatePolicy
    from safemerge.records import EvaluationReport, GateDecision

ARMS = ("candidate", "aligned", "fine_tuned", "champion")
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


def named_paths(flags: Mapping[str, Path | None], reports: Iterable[str]) -> dict[str, Path]:
    """Arm to report, from both ways to name them.

    Raises:
        typer.BadParameter: an arm is unknown or named twice.
    """
    paths = {arm: path for arm, path in flags.items() if path is not None}
    for text in reports:
        arm, equals, path = text.partition("=")
        arm = arm.replace("-", "_")
        if arm not in ARMS or not equals or not path:
            raise typer.BadParameter(f"expected ARM=PATH with an arm of {', '.join(ARMS)}, got {text!r}")
        if arm in paths:
            raise typer.BadParameter(f"expected one report of {arm}, got two")
        paths[arm] = Path(path)
    return paths


def check_champion(arms: Iterable[str], no_champion: bool) -> None:
    """Refuse a champion that is both there and not.

    Raises:
        typer.BadParameter: it is.
    """
    if no_champion and "champion" in arms:
        raise typer.BadParameter("expected a champion's report or --no-champion, got both")


def report_file(path: Path) -> Path:
    """The report in a folder of ``safemerge evaluate``, or the file that was named."""
    from safemerge.records import EVALUATION_REPORT_FILE

    return path / EVALUATION_REPORT_FILE if path.is_dir() else path


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
        ConfigError: the policy cannot be decided on the candidate's suites.
    """
    from safemerge.errors import ConfigError
    from safemerge.gate import NO_CHAMPION, Reference, check_decidable, decide, sizes

    try:
        check_decidable(policy, sizes(reports["candidate"]))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    champion = reports.get("champion")
    remedy = "name it by --champion, or say --no-champion where nothing is released yet"
    known = Reference(champion) if champion else Reference(remedy=remedy)
    reference = NO_CHAMPION if no_champion else known
    return decide(reports["candidate"], reports.get("aligned"), reports.get("fine_tuned"), policy, reference)
