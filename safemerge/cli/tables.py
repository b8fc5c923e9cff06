"""What commands print: consoles, tables, a grid of layers, a histogram, a progress bar.

Colours never carry a meaning alone, and there are none where stdout is no terminal or ``NO_COLOR`` is set.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from statistics import median
from typing import TYPE_CHECKING, Literal

import typer

from safemerge.core.module_names import by_kind_and_layer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

CELL = 3
"""Columns that a cell of the grid takes: two figures and a space."""
SCALE = ("#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725")
"""Viridis, from the lowest cosine to the highest: told apart by colour-blind readers, and in grey, too."""
DARK = 4
"""So many colours of the scale take white figures."""
WHOLE = 40
"""Longest name that a table's first column keeps on one line."""
MOST_A_COUNT = 3
"""Columns that one layer takes in a histogram at most: few layers make short bars."""


def console() -> Console:
    """Stdout for tables."""
    from rich.console import Console

    return Console(highlight=False)


def for_terminal(text: str) -> str:
    """The text, line by line, without what steers a terminal: names of modules and files come from others.

    Its kin: ``printable`` of :mod:`safemerge.records` makes one line, for records and logs, and
    ``valid_unicode`` what files and tokenizers can hold, no more; ``visible`` of
    :mod:`safemerge.release.words` names what a report's reader would not see; ``escaped`` of
    :mod:`safemerge.gate.rendering` is for Markdown.
    """
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def warn(*messages: str | None) -> None:
    """One line on stderr for each warning there is."""
    for message in messages:
        if message:
            typer.echo(f"warning: {for_terminal(message)}", err=True)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    title: str | None = None,
    *,
    names: int = 1,
    gives_way: int | None = None,
) -> Table:
    """A table of plain text, whose first columns hold names and the others figures.

    Args:
        columns: their heads.
        rows: cells.
        title: what stands above.
        names: columns of names, from the left.
        gives_way: the one column that is broken where the terminal is narrow; without it, any but a first
            one of short names.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    rows = list(rows)
    for number, column in enumerate(columns):
        # Names that are not too long stay whole, as they are to be copied; figures give way.
        short = number == 0 and all(len(row[0]) <= WHOLE for row in rows)
        whole = short if gives_way is None else number != gives_way
        justify: Literal["left", "right"] = "left" if number < names else "right"
        made.add_column(column, justify=justify, overflow="fold", no_wrap=whole)
    for row in rows:
        made.add_row(*(Text(for_terminal(cell)) for cell in row))
    return made


def print_sentence(out: Console, mark: str, text: str) -> None:
    """A mark and a sentence: broken between words and hung below itself on a terminal, one line elsewhere.

    Args:
        out: where to.
        mark: in rich's markup.
        text: from anywhere.
    """
    from rich.table import Table
    from rich.text import Text

    said = Text(for_terminal(text))
    if not out.is_terminal:
        out.print(mark, said, soft_wrap=True)
        return
    row = Table.grid(padding=(0, 1))
    row.add_row(mark, said)
    out.print(row)


def size(n_bytes: int) -> str:
    """A size in decimal units.

    >>> size(512), size(20_480), size(13_600_000)
    ('512 B', '20.5 kB', '13.6 MB')
    """
    scaled = float(n_bytes)
    for unit in ("B", "kB", "MB"):
        if scaled < 1000:
            return f"{scaled:.0f} {unit}" if unit == "B" else f"{scaled:.1f} {unit}"
        scaled /= 1000
    return f"{scaled:.1f} GB"


def facts(rows: Mapping[str, str], title: str | None = None) -> Table:
    """Names and what they are, one a line."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(
        show_header=False,
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE,
        pad_edge=False,
    )
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows.items():
        made.add_row(name, Text(for_terminal(value)))
    return made


def spread(cosines: Sequence[float]) -> str:
    """Where figures lie, in a few words."""
    if not cosines:
        return "none defined"
    return f"min {min(cosines):.3f} · median {median(cosines):.3f} · max {max(cosines):.3f}"


def grid(cosines: Mapping[str, float | None], width: int) -> RenderableType:
    """Cosines by kind of module (rows) and depth (columns), in hundredths, coloured from low to high.

    Args:
        cosines: Module path to cosine; None where it is undefined.
        width: Columns of the terminal; what does not fit beside each other is broken into bands.
    """
    from rich.console import Group
    from rich.text import Text

    rows, depths, cells = by_kind_and_layer(list(cosines))
    defined = [cosine for cosine in cosines.values() if cosine is not None]
    low, high = (min(defined), max(defined)) if defined else (0.0, 1.0)
    label = max(len(row) for row in ("layer", *rows)) + 2
    fitting = max(1, (width - label) // CELL)
    lines: list[Text] = []
    for start in range(0, len(depths), fitting):
        band = depths[start : start + fitting]
        lines.append(Text("layer".ljust(label) + "".join(f"{depth:>{CELL - 1}} " for depth in band), "bold"))
        for row in rows:
            line = Text(row.ljust(label))
            for depth in band:
                found = [cosines[module] for module in cells.get((row, depth), ())]
                line.append_text(_cell(found, low, high))
            lines.append(line)
        lines.append(Text())
    shared = any(len(modules) > 1 for modules in cells.values())
    lines.append(_legend(low, high, shared))
    return Group(*lines)


def _cell(found: list[float | None], low: float, high: float) -> Text:
    from rich.text import Text

    if not found:
        return Text(" " * CELL)
    defined = [cosine for cosine in found if cosine is not None]
    if not defined:
        return Text(" · ")
    cosine = median(defined)
    shade = _shade(cosine, low, high)
    hundredths = round(100 * cosine)
    shown = "1." if hundredths == 100 else f"{hundredths:02d}"
    return Text(f"{shown} ", _style(shade))


def _shade(cosine: float, low: float, high: float) -> int:
    """Number of the colour."""
    if high <= low:
        return 0
    return min(len(SCALE) - 1, int(len(SCALE) * (cosine - low) / (high - low)))


def _style(shade: int) -> str:
    # Both colours are set, so that a light and a dark terminal show the same.
    return f"{'#ffffff' if shade < DARK else '#000000'} on {SCALE[shade]}"


def _legend(low: float, high: float, shared: bool) -> Text:
    from rich.text import Text

    legend = Text("cosine in hundredths, from low ")
    for shade in range(len(SCALE)):
        at = low + (high - low) * shade / (len(SCALE) - 1)
        legend.append(f"{round(100 * at):02d} ", _style(shade))
    legend.append(" to high;  · undefined" + ("; experts of a layer: their median" if shared else ""))
    return legend


def histogram(figures: Sequence[float], width: int, *, bins: int = 14) -> RenderableType:
    """How often figures occur: one line a bin of a round width."""
    from rich.console import Group
    from rich.text import Text

    from safemerge.plots.scales import round_step

    if not figures:
        return Text("none defined")
    step = round_step((max(figures) - min(figures)) / bins or 0.01)
    first, last = (math.floor(edge / step + 1e-9) for edge in (min(figures), max(figures)))
    counts = dict.fromkeys(range(first, last + 1), 0)
    for figure in figures:
        counts[math.floor(figure / step + 1e-9)] += 1
    digits = max(2, -math.floor(math.log10(step) + 1e-9))
    room = min(60, max(10, width - 2 * digits - 16), MOST_A_COUNT * max(counts.values()))
    lines = []
    for number, count in counts.items():
        label = f"{number * step:.{digits}f} – {(number + 1) * step:.{digits}f}  "
        lines.append(Text(f"{label}{_bar(count / max(counts.values()) * room)} {count or ''}"))
    return Group(*lines)


def _bar(length: float) -> str:
    """A bar, to an eighth of a column."""
    eighths = round(8 * length)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say on stderr what takes a few seconds; nothing where stderr is no terminal."""
    from rich.console import Console

    with Console(stderr=True).status(what) if sys.stderr.isatty() else nullcontext():
        yield


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """A bar over the layers scored on stderr, with the time left; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("scoring layers"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    stderr = Console(stderr=True)
    with Progress(*columns, console=stderr, transient=True, disable=not sys.stderr.isatty()) as bar:
        layers = bar.add_task("", total=None)

        def advance(done: int, total: int, module: str) -> None:
            bar.update(layers, completed=done, total=total, description=escape(module))

        yield advance
