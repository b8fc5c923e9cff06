"""Recipes: what they may say, what is refused, and that the shipped ones hold."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from safemerge.config.load import load_pipeline, load_recipe
from safemerge.config.pipeline import PipelineConfig
from safemerge.config.recipes import NewData, ScheduleConfig
from safemerge.errors import ConfigError
from tests.unit.pipelines import PIPELINE

PACKAGE = Path(__file__).parents[3] / "safemerge"
RECIPE: dict[str, Any] = PIPELINE | {
    "name": "night",
    "aligned_model": "org/aligned@v1",
    "unaligned_model": "org/base@v1",
    "tracking": {"experiment": "e", "registered_model": "night-lora"},
    "description": "Every night",
    "schedule": {
        "cron": "0 2 * * *",
        "timezone": "Europe/Berlin",
        "data": [{"asset": "tickets", "sets": {"task_training.data.0.path": "tickets/{version}.jsonl"}}],
    },
    "owners": ["ml-platform"],
    "tags": ["support"],
}


def write(folder: Path, stem: str = "night", /, **changes: Any) -> Path:
    path = folder / f"{stem}.yaml"
    path.write_text(yaml.safe_dump(copy.deepcopy(RECIPE) | changes, sort_keys=False), encoding="utf-8")
    return path


def test_a_recipe_is_a_pipeline_that_says_when_and_whose(tmp_path: Path) -> None:
    path = write(tmp_path)
    recipe = load_recipe(path)
    assert (recipe.owners, recipe.tags, recipe.description) == (("ml-platform",), ("support",), "Every night")
    assert (recipe.schedule.cron, recipe.schedule.timezone) == ("0 2 * * *", "Europe/Berlin")
    assert recipe.task_training.data[0].path == str(tmp_path / "data.jsonl")
    pipeline = load_pipeline(path)
    assert type(pipeline) is PipelineConfig
    assert pipeline == recipe.pipeline()
    assert "schedule" not in pipeline.model_dump()


def test_a_pipeline_is_a_recipe_that_is_run_by_hand(tmp_path: Path) -> None:
    extra = ("description", "schedule", "owners", "tags")
    data = {key: value for key, value in RECIPE.items() if key not in extra}
    (tmp_path / "night.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    recipe = load_recipe(tmp_path / "night.yaml")
    assert recipe.schedule == ScheduleConfig()
    assert recipe.owners == ("safemerge",)


def test_a_recipe_says_who_signs_and_who_is_told(tmp_path: Path) -> None:
    path = write(tmp_path)
    told = "notifications:\n- on: [block, rejected]\n  notifier: a.b.C\n  args: {to: yes, now: true}\n"
    text = path.read_text(encoding="utf-8") + told + "approval: {approvers: [alice], timeout_hours: 8}\n"
    path.write_text(text.replace("gate:\n", "gate:\n  sign_off: required\n"), encoding="utf-8")
    recipe = load_recipe(path)
    (one,) = recipe.notifications
    assert (one.on, one.notifier) == (("block", "rejected"), "a.b.C")
    assert one.args == {"to": "yes", "now": True}
    assert (recipe.approval.approvers, recipe.approval.timeout_hours) == (("alice",), 8)
    assert recipe.pipeline().gate.sign_off == "required"


def test_a_version_replaces_what_it_is_said_to(tmp_path: Path) -> None:
    (data,) = load_recipe(write(tmp_path)).schedule.data
    overrides = data.overrides("2026-11-01")
    assert overrides == {"task_training.data.0.path": "tickets/2026-11-01.jsonl"}
    config = load_pipeline(tmp_path / "night.yaml", overrides)
    assert config.task_training.data[0].path == str(tmp_path / "tickets" / "2026-11-01.jsonl")


@pytest.mark.parametrize("version", ["", "../x", "a/b", "a b", "-x", ".hidden", "v1\n", "{version}"])
def test_a_version_leads_nowhere_else(version: str) -> None:
    data = NewData(asset="a", sets={"task_training.data.0.revision": "{version}"})
    with pytest.raises(ValueError, match=r"expected letters, digits and \. _"):
        data.overrides(version)


def test_its_name_is_that_of_its_file(tmp_path: Path) -> None:
    path = write(tmp_path, "day")
    with pytest.raises(ConfigError, match=r"day\.yaml: name: expected 'day', as the file .* got 'night'"):
        load_recipe(path)
    assert load_recipe(path, any_name=True).name == "night"


def test_a_recipe_of_two_files_is_neither(tmp_path: Path) -> None:
    path = write(tmp_path)
    other = path.rename(path.with_suffix(".yml"))
    assert load_recipe(other).name == "night"
    write(tmp_path)
    for file, twin in ((path, other), (other, path)):
        message = rf"{file.name}: expected one file for the recipe night, got {twin.name}, too"
        with pytest.raises(ConfigError, match=message):
            load_recipe(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "0 2 * * *"}, r"line \d+, schedule: expected a valid dictionary"),
        ({"schedule": {"cron": "daily"}}, "schedule.cron: expected minute, hour, .* or @daily, got 'daily'"),
        ({"schedule": {"cron": "0 99 * * *"}}, "schedule.cron: expected a cron expression, got '0 99"),
        ({"schedule": {"timezone": "Berlin"}}, "schedule.timezone: expected a time zone, such as Europe/Ber"),
        ({"schedule": {"timezone": "../etc"}}, "schedule.timezone: expected a time zone"),
        ({"schedule": {"cron": "0 2 30 2 *"}}, "schedule.cron: expected a time that comes, got '0 2 30 2"),
        ({"schedule": {"crom": "0 2 * * *"}}, "schedule.crom: unknown key; did you mean cron?"),
        ({"schedul": {}}, "schedul: unknown key; did you mean schedule?"),
        ({"approval": {"timeout_hours": 0}}, "approval.timeout_hours: expected"),
        ({"approval": {"approvers": [""]}}, "approval.approvers.0: expected"),
        ({"notifications": [{"on": [], "notifier": "a.B"}]}, "notifications.0.on: expected"),
        ({"notifications": [{"on": ["passed"], "notifier": "a.B"}]}, "notifications.0.on.0: expected"),
        (
            {"notifications": [{"on": ["pass", "pass"], "notifier": "a.B"}]},
            "expected each event once, got pass, ",
        ),
        ({"notifications": [{"on": ["pass"], "notifier": "B"}]}, "notifications.0.notifier: expected"),
        ({"owners": []}, "owners: expected"),
        ({"owners": ["a, b"]}, "owners.0: expected a text that matches"),
        (
            {"schedule": {"data": [{"asset": "a", "sets": {"gate.max_harmful_rate": "{version}"}}]}},
            "schedule.data.0: expected sets to name keys of data, such as .*, got gate",
        ),
        (
            {"schedule": {"data": [{"asset": "a", "sets": {"task_training.data.0.path": "x.jsonl"}}]}},
            "schedule.data.0: expected sets.task_training.data.0.path to hold {version}, got 'x.jsonl'",
        ),
        (
            {
                "schedule": {
                    "data": [
                        {
                            "asset": "a",
                            "sets": {
                                "gate.sign_off": "{version}",
                                "task_training.data.0.path": "x",
                                "name": "{version}",
                                "task_training.data.0.revision": "y",
                            },
                        }
                    ]
                }
            },
            "got gate.sign_off, name; expected sets.task_training.data.0.path to hold {version}, got 'x'; "
            "expected sets.task_training.data.0.revision to hold {version}, got 'y'$",
        ),
        (
            {
                "schedule": {
                    "data": [
                        {"asset": "a", "sets": {"task_training.data.1.path": "{version}"}},
                        {"asset": "b", "sets": {"evaluation.suites.9.path": "{version}"}},
                    ]
                }
            },
            "of 1, got task_training.data.1.path; expected .* of 2, got evaluation.suites.9.path$",
        ),
        (
            {"schedule": {"data": [{"asset": "a", "sets": {"task_training.data.1.path": "{version}"}}]}},
            "expected schedule.data to set one of 1, got task_training.data.1.path",
        ),
        (
            {"schedule": {"data": [{"asset": "a", "sets": {"evaluation.suites.2.revision": "{version}"}}]}},
            "expected schedule.data to set one of 2, got evaluation.suites.2.revision",
        ),
        (
            {"schedule": {"data": [{"asset": "a"}, {"asset": "a"}]}},
            "schedule: expected each asset and each key once, got twice: a",
        ),
    ],
)
def test_what_could_not_run_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(tmp_path, **changes))


@pytest.mark.parametrize("cron", ["@daily", "*/5 0-6 * * MON-FRI"])
def test_cron_may_be_said_in_several_ways(cron: str) -> None:
    assert ScheduleConfig(cron=cron).cron == cron


def test_the_shipped_recipes_hold() -> None:
    files = sorted((PACKAGE / "recipes").glob("*.yaml"))
    assert len(files) >= 4
    for file in files:
        recipe = load_recipe(file)
        assert "@" in recipe.aligned_model
        assert recipe.tracking.registered_model == recipe.name


def test_their_commented_schedules_and_people_hold(tmp_path: Path) -> None:
    for file in (PACKAGE / "recipes").glob("*.yaml"):
        lines = [*file.read_text(encoding="utf-8").splitlines(), ""]
        for first in ("# schedule:", "# approval: {approvers: [alice], timeout_hours: 24}"):
            begin = lines.index(first)
            end = next(number for number in range(begin, len(lines)) if not lines[number].startswith("#"))
            lines[begin:end] = [line.removeprefix("# ") for line in lines[begin:end]]
        (tmp_path / file.name).write_text("\n".join(lines), encoding="utf-8")
        recipe = load_recipe(tmp_path / file.name)
        assert recipe.schedule.cron
        assert recipe.schedule.data[0].sets
        assert recipe.approval.approvers == ("alice",)
        assert recipe.notifications[0].on == ("block", "cannot_tell", "failure")
