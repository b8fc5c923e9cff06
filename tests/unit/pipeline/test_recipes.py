"""Recipes on disk: the shipped ones, copies of them, and all that is wrong with any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from safemerge.config.load import load_pipeline, load_recipe
from safemerge.errors import ConfigError, OutputExistsError
from safemerge.pipeline.recipes import new_recipe, read_recipes, recipe_files, shipped_recipes
from tests.conftest import TinyPipeline
from tests.unit.config.test_recipes import write


@pytest.mark.parametrize("source", shipped_recipes())
def test_a_new_recipe_is_a_copy_under_its_own_name(tmp_path: Path, source: str) -> None:
    path = new_recipe("mine", source, tmp_path)
    recipe = load_recipe(path)
    assert (recipe.name, recipe.tracking.experiment, recipe.tracking.registered_model) == ("mine",) * 3
    text, original = path.read_text(encoding="utf-8"), shipped_recipes()[source].read_text(encoding="utf-8")
    assert text.count("#") == original.count("#")
    if recipe.evaluation.utility.include_path:
        assert Path(recipe.evaluation.utility.include_path).is_dir()


def test_a_copy_of_the_demo_finds_its_data_and_lacks_its_models(tmp_path: Path) -> None:
    (read,) = read_recipes([new_recipe("mine", "demo", tmp_path)])
    assert [problem.partition(":")[0] for problem in read.problems] == ["aligned_model", "unaligned_model"]


def test_a_copy_beside_its_source_keeps_its_paths(tmp_path: Path) -> None:
    write(tmp_path, "night")
    (tmp_path / "data.jsonl").touch()
    copy = new_recipe("day", str(tmp_path / "night.yaml"), tmp_path)
    assert yaml.safe_load(copy.read_text())["task_training"]["data"] == [{"path": "data.jsonl"}]


def test_a_copy_elsewhere_leads_to_the_same_places_and_keeps_comments(tmp_path: Path) -> None:
    source, folder = tmp_path / "from" / "night.yaml", tmp_path / "to"
    source.parent.mkdir()
    folder.mkdir()
    source.write_text(
        """\
name: night # of all
aligned_model: ../models/aligned # made by make
unaligned_model: "org/base@v1"
task_training: &training
  data: [{path: &rows "rows/task: 1.jsonl", limit: 3}, {path: *rows, split: test}, {path: org/hub}]   # twice
  steps: 2
safety_training: {<<: *training}
merge: {coefficients: learned.json}  # of last week
evaluation:
  utility: {task: t, metric: m, include_path: ./tasks}
  suites:
    - {name: harm, kind: harmful, path: ~/harm.jsonl}
    - {suite: safemerge_ordinary}
  judge:
    kind: ensemble
    rule: any
    members:
      - {kind: wild_guard, model: guards/wild/1} # here
      - {kind: llama_guard, model: org/guard@v1}
      - {kind: endpoint, model: ./no-place, url: "http://there"}
gate: {max_harmful_rate: 0.2, max_over_refusal_rate: 0.2}
tracking:
  experiment: all  # nights
  registered_model: night-lora
tuning:
  suites:
    - {name: dev, kind: harmful, path: dev.jsonl}
    - {name: plain, kind: over_refusal, path: plain.jsonl}
  utility: {task: d, metric: m, include_path: tasks}
  grid: {coefficients: [a.json, /b.json]}
  min_gain_kept: 0.9
  max_over_refusal_rate: 0.5
schedule:
  data:
    - asset: tickets
      sets: {task_training.data.0.path: "tickets/{version}.jsonl", task_training.data.1.split: "{version}"}
""",
        encoding="utf-8",
    )
    copy = new_recipe("day", str(source), folder)
    text, comments = copy.read_text(encoding="utf-8"), source.read_text(encoding="utf-8").split("#")[1:]
    assert [comment.partition("\n")[0] for comment in comments] == [
        comment.partition("\n")[0] for comment in text.split("#")[1:]
    ]
    old, new = (load_recipe(path, any_name=True) for path in (source, copy))
    apart = {"name": True, "tracking": True, "schedule": True}
    assert new.model_dump(exclude=apart) == old.model_dump(exclude=apart)
    assert new.aligned_model == str(tmp_path / "models" / "aligned")
    assert (new.name, new.tracking.experiment, new.tracking.registered_model) == ("day",) * 3
    assert new.schedule.data[0].sets == {
        "task_training.data.0.path": f"{source.parent}/tickets/{{version}}.jsonl",
        "task_training.data.1.split": "{version}",
    }


def test_a_value_may_be_a_block_of_lines(tmp_path: Path) -> None:
    source, folder = write(tmp_path), tmp_path / "to"
    text = source.read_text(encoding="utf-8")
    text = text.replace("name: night\n", "name: >-\n  night\n\n# of the models\n", 1)
    text = text.replace("aligned_model: org/aligned@v1\n", "aligned_model: |-\n  ./models/a\n", 1)
    source.write_text(text, encoding="utf-8")
    folder.mkdir()
    copy = new_recipe("day", str(source), folder)
    assert copy.read_text(encoding="utf-8").startswith("name: day\n\n# of the models\n")
    assert load_recipe(copy).aligned_model == str(tmp_path / "models" / "a")


def test_a_copy_leads_to_the_same_places_by_way_of_merges(tmp_path: Path) -> None:
    source, folder = write(tmp_path), tmp_path / "to"
    text = source.read_text(encoding="utf-8")
    training, merges = "\n  data:\n  - path: data.jsonl\n", "\n  <<: {data: [{path: a.jsonl}], steps: 3}\n"
    assert text.count(training) == 1
    source.write_text(text.replace(training, merges), encoding="utf-8")
    folder.mkdir()
    old, new = (load_recipe(path) for path in (source, new_recipe("day", str(source), folder)))
    assert new.task_training == old.task_training
    assert new.task_training.data[0].path == str(tmp_path / "a.jsonl")


def test_one_text_for_two_places_that_a_copy_must_tell_apart_is_refused(tmp_path: Path) -> None:
    source, folder = write(tmp_path), tmp_path / "to"
    text = source.read_text(encoding="utf-8").replace("path: data.jsonl", "path: *both")
    source.write_text(text.replace("aligned_model: org/", "aligned_model: &both org/", 1), encoding="utf-8")
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "aligned@v1").touch()  # a file of rows, but no model's folder
    folder.mkdir()
    alone = (
        r"night\.yaml: aligned_model: expected a value of its own, as the copy's is 'org/aligned@v1', got "
    )
    with pytest.raises(ConfigError, match=alone + "one that an alias repeats"):
        new_recipe("day", str(source), folder)
    assert not list(folder.iterdir())


def test_a_copy_keeps_links_and_homes_for_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("old/v1", "new/v2"):
        (tmp_path / version).mkdir(parents=True)
    (tmp_path / "now").symlink_to("old/v1")
    absolute = str(tmp_path / "now" / "a.jsonl")
    given = [absolute, "~/b.jsonl", "now/c.jsonl", "old/../d.jsonl", "now/../e.jsonl"]
    training = {"data": [{"path": path} for path in given], "steps": 2}
    source, folder = write(tmp_path, task_training=training, safety_training=training), tmp_path / "to"
    folder.mkdir()
    copy = new_recipe("day", str(source), folder)
    rows = yaml.safe_load(copy.read_text(encoding="utf-8"))["task_training"]["data"]
    relative = [f"{tmp_path}/{path}" for path in ("now/c.jsonl", "d.jsonl", "now/../e.jsonl")]
    assert [row["path"] for row in rows] == [absolute, "~/b.jsonl", *relative]
    (tmp_path / "now").unlink()
    (tmp_path / "now").symlink_to("new/v2")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    old, new = (load_recipe(path).task_training for path in (source, copy))
    assert new == old
    places = [Path(row.path).relative_to(tmp_path).as_posix() for row in new.data]
    assert places == ["new/v2/a.jsonl", "home/b.jsonl", "new/v2/c.jsonl", "d.jsonl", "new/e.jsonl"]


def test_a_copy_keeps_a_link_that_its_source_was_named_by(tmp_path: Path) -> None:
    for name in ("v1", "to"):
        (tmp_path / name).mkdir()
    (tmp_path / "now").symlink_to("v1")
    write(tmp_path / "v1")
    (tmp_path / "alias.yaml").symlink_to("v1/night.yaml")
    for name, given, seen in (("day", "now/night.yaml", "now"), ("eve", "alias.yaml", "v1")):
        copy = new_recipe(name, str(tmp_path / given), tmp_path / "to")
        data = yaml.safe_load(copy.read_text(encoding="utf-8"))["task_training"]["data"]
        assert data == [{"path": str(tmp_path / seen / "data.jsonl")}]


def test_a_copy_gets_the_same_new_data(tmp_path: Path) -> None:
    sets = {
        "task_training.data.0.path": "acme/data-{version}",
        "safety_training.data.0.path": "here-{version}",
        "evaluation.suites.0.path": "harm/{version}",
    }
    source = write(tmp_path, schedule={"data": [{"asset": "rows", "sets": sets}]})
    (tmp_path / "here-v1").mkdir()
    (tmp_path / "to").mkdir()
    copy = new_recipe("day", str(source), tmp_path / "to")
    new = yaml.safe_load(copy.read_text(encoding="utf-8"))["schedule"]["data"][0]["sets"]
    assert [value.replace(str(tmp_path), "") for value in new.values()] == [
        *("acme/data-{version}", "/here-{version}", "/harm/{version}")
    ]
    # As whoever runs a version reads it.
    read = [load_pipeline(f, load_recipe(f).schedule.data[0].overrides("v1")) for f in (source, copy)]
    assert read[0].task_training == read[1].task_training
    assert read[0].safety_training == read[1].safety_training
    assert read[0].evaluation == read[1].evaluation


def test_a_recipe_is_not_begun_with_what_is_none(tmp_path: Path) -> None:
    bad = write(tmp_path, "bad", steps=3)
    with pytest.raises(ConfigError, match=r"bad\.yaml: line .*, steps: unknown key"):
        new_recipe("day", str(bad), tmp_path)
    assert not (tmp_path / "day.yaml").exists()


@pytest.mark.parametrize("name", ["12", "1e3", "-", "null", "a.b"])
def test_a_name_is_a_text_whatever_it_looks_like(tmp_path: Path, name: str) -> None:
    assert load_recipe(new_recipe(name, "demo", tmp_path)).name == name


def test_a_recipe_is_not_overwritten_and_its_source_is_there(tmp_path: Path) -> None:
    write(tmp_path, "night")
    with pytest.raises(OutputExistsError, match=r"night\.yaml"):
        new_recipe("night", "demo", tmp_path)
    with pytest.raises(ConfigError, match=r"recipe qwen2-7b-gsm8: no such .*; did you mean qwen2-7b-gsm8k"):
        new_recipe("day", "qwen2-7b-gsm8", tmp_path)
    with pytest.raises(ConfigError, match=r"name: expected letters, digits and \. _ -, got 'a/b'"):
        new_recipe("a/b", "demo", tmp_path)


def test_recipes_end_in_yaml_or_yml(tmp_path: Path) -> None:
    (tmp_path / "notes.md").touch()
    with pytest.raises(ConfigError, match=r"expected recipes, files that end in \.yaml or \.yml, got none"):
        recipe_files([tmp_path])
    files = [write(tmp_path, "night"), write(tmp_path, "day").rename(tmp_path / "day.yml")]
    assert recipe_files([tmp_path]) == sorted(files)
    assert recipe_files([files[0]]) == files[:1]


def test_a_file_that_cannot_be_read_leaves_the_others_alone(tmp_path: Path) -> None:
    bad, good = write(tmp_path, "bad", name="bad", steps=3), write(tmp_path, "night")
    first, second = read_recipes([bad, good], offline=False)
    assert first.recipe is None
    assert first.problems[0].startswith("line ")
    assert "steps: unknown key; expected one of" in first.problems[0]
    assert second.recipe is not None
    assert second.problems == []


def test_two_recipes_do_not_release_the_same_model(tmp_path: Path) -> None:
    files = [write(tmp_path, name, name=name) for name in ("day", "night")]
    day, night = read_recipes(files, offline=False)
    assert day.problems == [
        "tracking.registered_model: expected a model of its own, got night-lora, as night.yaml"
    ]
    assert night.problems == [day.problems[0].replace("as night", "as day")]


def _changed(pipeline: TinyPipeline, *, tasks: bool = False, **changes: object) -> list[str]:
    """Problems of the tiny pipeline as a recipe, after changes to it."""
    path = pipeline.config.with_name("tiny.yaml")
    path.write_text(yaml.safe_dump(json.loads(json.dumps(pipeline.lines)) | changes), encoding="utf-8")
    (read,) = read_recipes([path], tasks=tasks)
    assert read.recipe is not None
    return read.problems


def test_all_that_a_run_would_find_is_found(tiny_pipeline: TinyPipeline, tmp_path: Path) -> None:
    assert _changed(tiny_pipeline) == []
    folder = tiny_pipeline.config.parent
    (folder / "safety.jsonl").write_text('{"prompt": "a"}\n', encoding="utf-8")
    (folder / "plain.jsonl").unlink()
    evaluation = json.loads(json.dumps(tiny_pipeline.lines["evaluation"]))
    evaluation["utility"]["include_path"] = "nowhere"
    evaluation["judge"] = {"kind": "llama_guard", "model": "org/guard"}
    problems = _changed(
        tiny_pipeline,
        aligned_model="./nowhere",
        merge={"method": "ties"},
        evaluation=evaluation,
    )
    keys = [problem.partition(":")[0] for problem in problems]
    assert {
        *("aligned_model", "safety_training.data.0", "evaluation.suites.1"),
        *("evaluation.utility.include_path", "evaluation.judge"),
    } <= set(keys)
    assert len(keys) == len(set(keys))


def test_tasks_are_looked_up_in_lm_eval_where_that_is_asked_for(tiny_pipeline: TinyPipeline) -> None:
    evaluation = json.loads(json.dumps(tiny_pipeline.lines["evaluation"]))
    folder = tiny_pipeline.config.parent / "tasks"
    task = (folder / "tiny_choice.yaml").read_text(encoding="utf-8")
    (folder / "dev.yaml").write_text(task.replace("tiny_choice", "tiny_dev"), encoding="utf-8")
    tuning: dict[str, Any] = {
        "suites": [suite | {"path": str(tiny_pipeline.config)} for suite in evaluation["suites"]],
        "utility": evaluation["utility"] | {"task": "tiny_dev", "filter": "strict"},
        "min_gain_kept": 0.9,
        "max_over_refusal_rate": 0.5,
    }
    evaluation["utility"]["metric"] = "ac"
    changes = {"evaluation": evaluation, "tuning": tuning}
    assert _changed(tiny_pipeline, tasks=True) == []
    without = _changed(tiny_pipeline, **changes)
    found = [problem for problem in _changed(tiny_pipeline, tasks=True, **changes) if problem not in without]
    assert found == [
        "evaluation.utility: task tiny_choice: expected one of its metrics (acc), got 'ac'; nearest: acc",
        "tuning.utility: task tiny_dev: expected one of its filters (none), got 'strict'",
    ]
    evaluation["utility"]["include_path"] = "nowhere"
    tuning["utility"]["include_path"] = "nowhere"
    lacking = [problem for problem in _changed(tiny_pipeline, tasks=True, **changes) if "nowhere" in problem]
    assert [problem.partition(":")[0] for problem in lacking] == [
        "evaluation.utility.include_path",
        "tuning.utility.include_path",
    ]


@pytest.mark.parametrize("method", ["exact", "resta"])
def test_one_model_in_both_roles_is_found_where_layers_are_chosen_by_alignment(
    tiny_pipeline: TinyPipeline, method: str
) -> None:
    aligned = tiny_pipeline.lines["aligned_model"]
    merge = {"method": method} | ({"quantile": 0.5} if method == "exact" else {})
    found = _changed(tiny_pipeline, unaligned_model=aligned, merge=merge)
    refused = [
        "unaligned_model: expected an aligned model and the same before it was aligned, got "
        f"{aligned} for both: no layer would be merged"
    ]
    assert found == (refused if method == "exact" else [])


def test_a_limit_that_so_few_prompts_cannot_show_is_found(tiny_pipeline: TinyPipeline) -> None:
    gate = {"max_harmful_rate": 0.05, "max_over_refusal_rate": 1.0}
    (problem,) = _changed(tiny_pipeline, gate=gate)
    assert problem.startswith("gate: the gate's policy cannot be decided on these suites: max_harmful_rate")


def test_suites_of_the_hub_are_known_by_their_description(tiny_pipeline: TinyPipeline) -> None:
    evaluation = json.loads(json.dumps(tiny_pipeline.lines["evaluation"]))
    evaluation["suites"][0] = {"suite": "directharm4", "limit": 10}
    gate = {"max_harmful_rate": 0.05, "max_over_refusal_rate": 1.0}
    first = _changed(tiny_pipeline, evaluation=evaluation, gate=gate)
    assert first == [
        "evaluation.suites.0: suite directharm4: expected a revision of the data set "
        "vfleaking/DirectHarm4, got none"
    ]
    evaluation["suites"][0]["revision"] = "main"
    (problem,) = _changed(tiny_pipeline, evaluation=evaluation, gate=gate)
    assert "can never be shown by the 10 prompts of suite directharm4" in problem
    evaluation["suites"][0] |= {"skip": 395}  # of its 400
    (problem,) = _changed(tiny_pipeline, evaluation=evaluation, gate=gate)
    assert "can never be shown by the 5 prompts of suite directharm4" in problem
    evaluation["suites"][0]["skip"] = 400
    (problem,) = _changed(tiny_pipeline, evaluation=evaluation, gate=gate)
    assert problem.endswith("suite directharm4: expected more than the 400 prompts to skip, got 400")


def test_a_choice_that_sees_the_final_split_is_found_without_a_run(tmp_path: Path) -> None:
    path = new_recipe("mine", "demo", tmp_path)
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    recipe["tuning"] = {
        "suites": recipe["evaluation"]["suites"],
        "utility": recipe["evaluation"]["utility"] | {"task": "safemerge_demo_dev"},
        "grid": {"quantiles": [0.5]},
        "min_gain_kept": 0.9,
        "max_over_refusal_rate": 0.5,
    }
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    (read,) = read_recipes([path])
    found = {problem.partition(":")[0]: problem for problem in read.problems}
    assert found.keys() == {"aligned_model", "unaligned_model", "tuning.suites"}
    assert "expected prompts that evaluation.suites does not ask" in found["tuning.suites"]
