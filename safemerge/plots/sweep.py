"""A sweep as a page: how far each candidate goes, and what it is."""

from __future__ import annotations

from html import escape

from safemerge.plots.page import Json, axis, figure, html_table, page
from safemerge.reports.adapters import Candidate, SweepReport

COLUMNS = ("candidate", "layers", "τ", "change", "to safety", "rank", "error")


def sweep_html(report: SweepReport) -> str:
    """Change against layers merged, one colour a method, above a table of all candidates."""
    methods = list(dict.fromkeys(str(candidate.options["method"]) for candidate in report.candidates))
    traces: list[Json] = []
    for method in methods:
        found = [candidate for candidate in report.candidates if candidate.options["method"] == method]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": method,
                "x": [candidate.layers_merged for candidate in found],
                "y": [candidate.change for candidate in found],
                "text": [escape(candidate.name) for candidate in found],
                "hovertemplate": "%{text}<br>%{x} layers, change %{y:.4f}<extra></extra>",
                "marker": {"size": 10},
            }
        )
    layout: Json = {
        "xaxis": axis(title={"text": "layers merged"}, rangemode="tozero"),
        "yaxis": axis(title={"text": "change: ‖ΔW_merged − ΔW_task‖ / ‖ΔW_task‖"}, rangemode="tozero"),
    }
    table = html_table(COLUMNS, [candidate_row(candidate) for candidate in report.candidates])
    return page(
        f"{len(report.candidates)} candidates",
        f"merges of one adapter of {report.layers} layers; a change of 0 is the task adapter itself",
        [figure(traces, layout, 320)],
        table,
    )


def candidate_row(candidate: Candidate) -> list[str]:
    """A candidate's figures as text, in the order of ``COLUMNS``."""
    return [
        candidate.name,
        str(candidate.layers_merged),
        "–" if candidate.threshold is None else f"{candidate.threshold:.4g}",
        f"{candidate.change:.4f}",
        "–" if candidate.safety_cosine is None else f"{candidate.safety_cosine:.3f}",
        str(candidate.rank),
        f"{candidate.error:.2g}",
    ]
