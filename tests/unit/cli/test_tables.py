"""What is printed: whole at 80 columns, without colour where there is no terminal."""

from __future__ import annotations

import doctest
import io

import pytest
from rich.console import Console

from safemerge.cli import tables


def shown(renderable, width: int = 80, *, colour: bool = False) -> list[str]:
    system = "truecolor" if colour else None
    out = Console(file=io.StringIO(), width=width, force_terminal=colour, color_system=system)
    out.print(renderable)
    return out.file.getvalue().rstrip().splitlines()


COSINES = {
    f"model.layers.{depth}.{kind}": (depth + 1) / 32 if kind != "mlp.up_proj" else 0.05
    for depth in range(32)
    for kind in ("self_attn.q_proj", "mlp.up_proj")
}


def test_the_examples_hold() -> None:
    assert doctest.testmod(tables) == (0, 1)


@pytest.mark.parametrize(("width", "bands"), [(80, 2), (120, 1), (40, 4), (5, 32)])
def test_a_grid_of_32_layers_fits_any_width(width: int, bands: int) -> None:
    lines = shown(tables.grid(COSINES, width), width)
    heads = [line for line in lines if line.startswith("layer")]
    assert len(heads) == bands
    if width >= 40:
        assert max(map(len, lines)) <= width
        assert [depth for head in heads for depth in head.split()[1:]] == [str(depth) for depth in range(32)]
        figures = [line.split()[1:] for line in lines if line.startswith("q_proj")]
        assert [figure for band in figures for figure in band][:2] == ["03", "06"]
        assert figures[-1][-1] == "1."


def test_a_cell_says_undefined_and_nothing_where_there_is_no_layer() -> None:
    lines = shown(tables.grid({"layers.0.q": None, "layers.1.q": 0.5, "layers.1.v": 0.25}, 80))
    assert lines[1].split() == ["q", "·", "50"]
    assert lines[2].rstrip() == "v         25"


def test_all_undefined_and_no_layer_at_all() -> None:
    assert shown(tables.grid({"layers.0.q": None}, 80))[1].split() == ["q", "·"]


def test_experts_share_a_cell_by_their_median() -> None:
    cosines = {f"layers.0.experts.{number}.up": cosine for number, cosine in enumerate((0.1, 0.2, 0.9))}
    lines = shown(tables.grid(cosines, 80))
    assert lines[1].split() == ["up", "20"]
    assert "experts of a layer: their median" in lines[-1]


def test_colours_run_from_low_to_high_and_are_gone_without_a_terminal() -> None:
    assert "\x1b[" in "".join(shown(tables.grid(COSINES, 80), colour=True))
    assert "\x1b[" not in "".join(shown(tables.grid(COSINES, 80)))
    assert [tables._shade(cosine, 0.1, 0.9) for cosine in (0.1, 0.5, 0.9)] == [0, 4, 7]
    assert tables._shade(0.3, 0.3, 0.3) == 0


@pytest.mark.parametrize(
    ("figures", "lines"),
    [
        ([], ["none defined"]),
        ([0.25], ["0.25 – 0.26  ███ 1"]),
        ([0.1, 0.1, 0.4], None),
    ],
)
def test_a_histogram_counts_every_figure(figures: list[float], lines: list[str] | None) -> None:
    found = shown(tables.histogram(figures, 80))
    if lines is not None:
        assert found == lines
    counts = [int(line.split()[-1]) for line in found if line[-1].isdigit() and "█" in line]
    assert sum(counts) == len(figures)


def test_names_stay_whole_unless_they_are_very_long() -> None:
    name = "exact_q0.25_w0.8_0.2"
    columns = (name, *("0.123456789012",) * 6)
    assert any(name in line for line in shown(tables.table(["a"] * 7, [columns])))
    assert max(map(len, shown(tables.table(["a", "b"], [("x" * 200, "y")])))) <= 80


def test_markup_in_names_is_shown_as_it_is() -> None:
    assert "[red]x[/red]" in "".join(shown(tables.facts({"name": "[red]x[/red]"})))
    assert "[red]x" in "".join(shown(tables.table(["a"], [("[red]x",)])))


def test_progress_is_silent_where_stderr_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as many CI systems do: colours make no terminal of a log
    with tables.waiting("reading"), tables.progress_bar() as progress:
        progress(1, 2, "layers.[0].q")
    assert capsys.readouterr() == ("", "")
