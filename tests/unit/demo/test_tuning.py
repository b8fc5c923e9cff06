"""The demo's tuning section: it fits the demo's pipeline, and its splits are apart."""

from __future__ import annotations

from pathlib import Path

import safemerge
from safemerge.config.load import load_pipeline
from safemerge.engine.race import Race, check_unseen, tuning_of
from safemerge.engine.sweeping import candidates

DEMO = Path(safemerge.__file__).parent / "demo"


def test_the_tuning_section_fits_the_pipeline(tmp_path: Path) -> None:
    text = (DEMO / "pipeline.yaml").read_text() + (DEMO / "tuning.yaml").read_text()
    path = tmp_path / "tuned.yaml"
    path.write_text(text.replace("data/", f"{DEMO}/data/").replace(": task\n", f": {DEMO}/task\n"))
    config = load_pipeline(path)
    split = check_unseen(config)
    assert {suite.name: len(suite.prompts) for suite in split} == {
        "harmful": 80,
        "lookalike": 40,
        "ordinary": 40,
    }
    grid = candidates(tuning_of(config).grid)
    assert len(grid) == 12
    # At most half of what asking all twelve everything takes, whatever the answers.
    race = Race(tuning_of(config), dict.fromkeys(grid, 0), split)
    assert race.most_prompts(1, len(grid)) <= 12 * 160 / 2
