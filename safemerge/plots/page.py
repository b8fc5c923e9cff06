"""The page that pictures stand on: a headline, figures in plotly's JSON form, perhaps tables."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from html import escape
from typing import Any, NamedTuple

from safemerge.records import printable

Json = dict[str, Any]
"""A part of a figure in plotly's JSON form. Built by hand: plotly's own figure classes take
longer to load than a merge of a small model takes."""

MARGIN_PX = {"l": 60, "r": 30, "t": 70, "b": 60}
"""Around the rows: legend above, the lowest axis below."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>SafeMERGE: {headline}</title>
<style>
body {{ font-family: system-ui, sans-serif; color: #2a3f5f; margin: 1.5rem; }}
h1 {{ font-size: 1.3rem; margin: 0; }}
p {{ margin: 0.3rem 0 0; }}
table {{ border-collapse: collapse; margin-top: 1rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.2rem 0.8rem; text-align: right; border-bottom: 1px solid #ebf0f8; }}
th:first-child, td:first-child, .prose {{ text-align: left; }}
</style>
</head>
<body>
<h1>{headline}</h1>
<p>{details}</p>
{divisions}
<script>{library}</script>
<script>{calls}</script>
</body>
</html>
"""


class Figure(NamedTuple):
    """What plotly draws."""

    traces: Sequence[Json]
    layout: Json


def figure(traces: Sequence[Json], layout: Json, plot_px: int, **more: Any) -> Figure:
    """A figure in the style that all share; ``plot_px`` is the height of its rows together."""
    shared = {
        "height": plot_px + MARGIN_PX["t"] + MARGIN_PX["b"],
        "margin": MARGIN_PX,
        "legend": {"orientation": "h", "x": 0, "y": 1 + 16 / plot_px, "yanchor": "bottom"},
        "showlegend": True,
        "font": {"family": "system-ui, sans-serif", "color": "#2a3f5f"},
        "hoverlabel": {"align": "left"},
    }
    return Figure(traces, layout | shared | more)


def axis(**settings: Any) -> Json:
    """An axis in the style that all share."""
    return {"gridcolor": "#ebf0f8", "linecolor": "#c8d4e3", "zeroline": False, "showline": True} | settings


def page(headline: str, details: str, figures: Sequence[Figure], table: str = "") -> str:
    """Figures below a headline, and a table below them, as one HTML page that needs no network.

    Args:
        headline: Plain text.
        details: Plain text, below the headline.
        figures: What to draw, from top to bottom.
        table: HTML.
    """
    from plotly.offline import get_plotlyjs

    names = ["figure", *(f"figure{number}" for number in range(2, len(figures) + 1))]
    calls = [
        f'Plotly.newPlot("{name}", ...{_script_json([*drawn, {"displaylogo": False, "responsive": True}])});'
        for name, drawn in zip(names, figures, strict=False)
    ]
    return _PAGE.format(
        headline=escape(headline),
        details=escape(details),
        divisions="\n".join([f'<div id="{name}"></div>' for name in names[: len(figures)]] + [table]),
        library=get_plotlyjs(),
        calls="\n".join(calls),
    )


def plain(text: str) -> str:
    """Text that plotly does not take for its own kind of HTML."""
    return printable(text).replace("&", "&amp;").replace("<", "&lt;")


def html_table(columns: Sequence[str], rows: Sequence[Sequence[str]], prose: Collection[str] = ()) -> str:
    """A table of plain text as HTML; columns of ``prose`` are set as text, the others as figures."""
    kinds = [' class="prose"' if column in prose else "" for column in columns]

    def row(tag: str, cells: Sequence[str]) -> str:
        found = (f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(found)}</tr>"

    body = "".join(row("td", cells) for cells in rows)
    return f"<table><thead>{row('th', columns)}</thead><tbody>{body}</tbody></table>"


def _script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")
