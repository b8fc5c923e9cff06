"""The release report as one HTML page that needs no network and lets no text run or fetch anything.

Every value in the template is escaped, and what it hides made visible, by the environment itself. Beyond
that the page's own policy allows its one script and its one style sheet, by their digests, and no address.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safemerge.gate.rendering import MARKS
from safemerge.release import drawing, words
from safemerge.reports.release import ReleaseReport, Role

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"


def html(report: ReleaseReport) -> str:
    """The report as a page."""
    from markupsafe import Markup

    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("release.css", "release.js"))
    arms = {
        arm.arm: arm.title for arm in report.arms if any(arm.arm in t.answers for t in report.transcripts)
    }
    return (
        _environment()
        .get_template("release.html.j2")
        .render(
            report=report,
            provenance=report.provenance,
            headline=words.headline(report),
            standing=words.standing(report),
            missed=words.missed(report.decision),
            marks=MARKS,
            words=words,
            paretos=list(zip(drawing.paretos(report), drawing.paretos(report, drawing.NARROW), strict=True)),
            bars=list(drawing.category_bars(report)),
            heats=list(drawing.heats(report.merge)) if report.merge else [],
            without_layers=words.without_layers(report),
            suites=list(dict.fromkeys(transcript.suite for transcript in report.transcripts)),
            shown_arms=arms,
            from_arm=_place_of(report, Role.FINE_TUNED, arms),
            to_arm=_place_of(report, Role.CANDIDATE, arms),
            flag_words=words.FLAG_WORDS,
            provenance_tables=words.provenance(report),
            # Our own files, the only values that are not escaped.
            style=Markup(style),  # noqa: S704
            script=Markup(script),  # noqa: S704
            style_hash=_hash(style),
            script_hash=_hash(script),
        )
    )


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: Any) -> Any:
    """What the template writes for a value; of texts, what could steer a reader's eye is made visible."""
    # Markup is text that was escaped already.
    return words.visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _place_of(report: ReleaseReport, role: Role, arms: Mapping[str, str]) -> int:
    """Number of the arm of a role among those with answers; 0 where it has none."""
    return next((n for n, arm in enumerate(arms) for a in report.arms if a.arm == arm and a.role is role), 0)


def _hash(text: str) -> str:
    """How a content security policy names a script or a style sheet."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
