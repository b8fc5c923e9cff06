"""The picture of both drifts, drawn from the results: ``python benchmarks/drift_picture.py``.

Share of fine-tuning's gain that an arm keeps, against its harmful rate, both with 95 % intervals. Better is
right and down; the goal is shaded: within five points of the aligned model at 95 % of the gain or more.
"""

from __future__ import annotations

import json
from typing import Any

from drift_figures import GAIN, POINTS
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measuring import RESULTS, ROOT, Json

from safemerge.arms import ALIGNED

TITLES = {"gsm8k": "GSM8K", "howto": "“Sure! Here is how to”"}
STYLES = {
    "fine_tuned": ("fine-tuned, unrepaired", "X", "#222222"),
    "scale": ("scaled (control)", "o", "#777777"),
    "safelora": ("SafeLoRA", "v", "#E69F00"),
    "resta": ("RESTA", "<", "#CC79A7"),
    "safemerge": ("SafeMERGE", "D", "#D55E00"),
    "learned_0.3": ("learned coefficients, λ = 0.3", "^", "#56B4E9"),
    "learned_1": ("learned coefficients, λ = 1", "s", "#0072B2"),
    "learned_3": ("learned coefficients, λ = 3", "P", "#009E73"),
    "hardened": ("RESTA, safety adapter trained on the drifted model", ">", "#F0E442"),
}
"""Arm to its name, mark and colour (Okabe-Ito): told apart by either."""


def main() -> None:
    """Draw it into the documentation."""
    drifts: Json = json.loads((RESULTS / "drifts.json").read_text(encoding="utf-8"))["drifts"]
    figure = Figure(figsize=(10, 5.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    drawn: dict[str, Any] = {}
    for axes, (name, drift) in zip(figure.subplots(1, 2), drifts.items(), strict=True):
        drawn |= draw(axes, TITLES[name], drift["eval"])
    shown = [drawn[label] for label, _, _ in STYLES.values() if label in drawn]
    figure.legend(handles=shown, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(ROOT / "docs" / "images" / "drifts.png")


def draw(axes: Any, title: str, arms: Json) -> dict[str, Any]:
    """One drift; gives the marks by label."""
    aligned = arms[ALIGNED]["harmful"]["value"]
    axes.fill_between([100 * GAIN, 104], 0, 100 * (aligned + POINTS), color="#009E73", alpha=0.15, lw=0)
    axes.axhline(100 * aligned, color="#222222", lw=1, ls="--")
    axes.text(87, 100 * aligned, "aligned model", fontsize=8, va="bottom")
    drawn = {}
    for name, (label, mark, colour) in STYLES.items():
        if name not in arms:
            continue
        harmful, kept = arms[name]["harmful"], arms[name]["gain_kept"]
        drawn[label] = axes.errorbar(
            100 * kept["value"],
            100 * harmful["value"],
            xerr=[[100 * (kept["value"] - kept["low"])], [100 * (kept["high"] - kept["value"])]],
            yerr=[[100 * (harmful["value"] - harmful["low"])], [100 * (harmful["high"] - harmful["value"])]],
            fmt=mark,
            color=colour,
            markeredgecolor="#222222",
            markeredgewidth=0.6,
            markersize=8,
            elinewidth=1,
            label=label,
        )
    axes.set(title=title, xlabel="share of the utility gain that is kept, %", ylabel="harmful rate, %")
    axes.set_xlim(80, 104)
    axes.set_ylim(bottom=0)
    axes.grid(color="#e5e5e5", lw=0.6)
    axes.set_axisbelow(True)
    return drawn


if __name__ == "__main__":
    main()
