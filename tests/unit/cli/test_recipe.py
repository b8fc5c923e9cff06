"""``safemerge recipe``: what people see and what machines read."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import yaml

from safemerge.cli.demo import DEFAULT_HOME
from safemerge.cli.recipe import due
from safemerge.config.recipes import NewData, ScheduleConfig
from safemerge.demo.services import DemoHome
from safemerge.pipeline.recipes import shipped_recipes
from tests.unit.cli.calls import invoke
from tests.unit.config.test_recipes import RECIPE, write


def test_the_shipped_recipes_are_listed() -> None:
    result = invoke("recipe", "list")
    assert result.exit_code == 0
    for name in shipped_recipes():
        assert name in result.stdout
    assert "meta-llama/Llama-3.1-8B-Instruct" in result.stdout
    assert "0e9e39f" not in result.stdout


def test_a_list_says_when_each_is_due_and_what_is_wrong(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, "bad", name="bad", owner="me", tracking={"registered_model": "other"})
    result = invoke("recipe", "list", tmp_path, width=200)
    assert result.exit_code == 0
    assert "0 2 * * * Europe/Berlin or new tickets" in result.stdout
    assert f"problem: {tmp_path / 'bad.yaml'}: line " in result.stdout
    assert "owner: unknown key; did you mean owners?" in result.stdout
    rows = json.loads(invoke("recipe", "list", tmp_path, "--json").stdout)
    assert [(row["name"], len(row["problems"])) for row in rows] == [(None, 1), ("night", 0)]


def test_due_is_said_in_a_few_words() -> None:
    assert due(ScheduleConfig()) == "by hand"
    assert due(ScheduleConfig(data=(NewData(asset="a"), NewData(asset="b")))) == "new a or new b"


def test_validation_reads_what_recipes_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = copy.deepcopy(RECIPE["evaluation"])
    evaluation["utility"] |= {"metric": "ac", "include_path": "tasks"}
    path = write(tmp_path, evaluation=evaluation)
    (tmp_path / "tasks").mkdir()
    task = {"task": "t", "metric_list": [{"metric": "acc"}]}
    (tmp_path / "tasks" / "t.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    result = invoke("recipe", "validate", tmp_path)
    assert (result.exit_code, result.stderr) == (4, "")
    assert f"problem: {tmp_path / 'night.yaml'}: task_training.data.0: " in result.stdout
    assert "evaluation.utility: task t: expected one of its metrics (acc), got 'ac'" in result.stdout
    assert invoke("recipe", "validate", tmp_path, "--json").exit_code == 4
    for name in ("data", "harm", "plain"):
        row = {"id": "a", "prompt": "How?", "response": "So."}
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps(row | {"id": str(n)}) + "\n" for n in range(40))
        )
    path.write_text(
        path.read_text(encoding="utf-8").replace("metric: ac\n", "metric: acc\n"), encoding="utf-8"
    )
    result = invoke("recipe", "validate", tmp_path)
    assert (result.exit_code, result.stdout) == (0, f"valid: {tmp_path / 'night.yaml'}\n")
    # What an import finds where a package is not installed, down to find_spec.
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    result = invoke("recipe", "validate", tmp_path)
    assert (result.exit_code, result.stdout) == (0, f"valid: {tmp_path / 'night.yaml'}\n")
    assert result.stderr.startswith(
        "note: utility tasks, metrics and filters were not checked: lm_eval is not"
    )
    assert len(result.stderr.splitlines()) == 1
    assert invoke("recipe", "list", tmp_path).stderr == ""


def test_a_new_recipe_says_what_is_left_to_do(tmp_path: Path) -> None:
    result = invoke("recipe", "new", "mine", "--from", "qwen2-7b-gsm8k", "--folder", tmp_path)
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'mine.yaml'}\n")
    assert "warning: still to do: safety_training.data.0: " in result.stderr
    again = invoke("recipe", "new", "mine", "--folder", tmp_path)
    assert again.exit_code == 4


def test_a_recipe_made_of_the_demos_says_where_its_models_are(tmp_path: Path) -> None:
    result = invoke("recipe", "new", "mine", "--from", "demo", "--folder", tmp_path)
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'mine.yaml'}\n")
    comments = (tmp_path / "mine.yaml").read_text(encoding="utf-8").partition("name: ")[0]
    models = DEFAULT_HOME / DemoHome(tmp_path / "home").models.relative_to(tmp_path / "home")
    for model in (models / "aligned", models / "unaligned"):
        assert str(model) in comments
        assert str(model) in result.stderr
    other = invoke("recipe", "new", "other", "--from", "qwen2-7b-gsm8k", "--folder", tmp_path)
    assert "make demo" not in other.stderr


def test_help_shows_examples() -> None:
    for command in ((), ("new",), ("validate",), ("list",)):
        assert "safemerge recipe" in invoke("recipe", *command, "--help").stdout.partition("Examples")[2]
