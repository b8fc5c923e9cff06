"""Reading configs: what is right is read, and what is wrong is said at once and in place."""

import json
from pathlib import Path

import pytest
import yaml

from safemerge.config.load import load_pipeline, load_policy
from safemerge.config.pipeline import PipelineConfig
from safemerge.config.schemas import json_schema
from safemerge.errors import ConfigError
from safemerge.gate import GatePolicy

PIPELINE = """\
name: demo
aligned_model: ./models/aligned
unaligned_model: org/unaligned@v1
task_training:
  data:
    - path: data/task.jsonl
    - path: org/hub-data
      revision: main
  steps: 60
  learning_rate: 2e-4
safety_training:
  data:
    - path: data/safety.jsonl
  steps: 80
merge:
  quantile: 0.5
evaluation:
  utility:
    task: demo_task
    metric: acc
    include_path: tasks
  suites:
    - name: harmful_eval
      kind: harmful
      path: data/harmful.jsonl
    - name: ordinary
      kind: over_refusal
      path: data/ordinary.jsonl
gate:
  max_harmful_rate: 0.25
  max_over_refusal_rate:
    ordinary: 0.15
  min_gain_kept: 0.9
tracking:
  registered_model: demo
"""


@pytest.fixture
def write(tmp_path):
    def _write(text, name="pipeline.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return _write


def problem(write, text, load=load_pipeline, **options):
    with pytest.raises(ConfigError) as caught:
        load(write(text), **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- right -------------------------------------------------------------------------


def test_a_pipeline_is_read_with_its_types_and_defaults(write):
    config = load_pipeline(write(PIPELINE))
    assert config.task_training.learning_rate == 2e-4
    assert config.task_training.lora.r == 8
    assert config.merge.quantile == 0.5
    assert config.gate.max_over_refusal_rate == {"ordinary": 0.15}


def test_paths_count_from_the_files_folder_and_hub_ids_stay(write, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    file = write(PIPELINE)
    monkeypatch.chdir(elsewhere)
    config = load_pipeline(Path("../pipeline.yaml"))
    assert config == load_pipeline(file)
    here = str(tmp_path)
    assert config.aligned_model == f"{here}/models/aligned"
    assert config.unaligned_model == "org/unaligned@v1"
    assert [source.path for source in config.task_training.data] == [
        f"{here}/data/task.jsonl",
        "org/hub-data",
    ]
    assert config.evaluation.utility.include_path == f"{here}/tasks"
    assert [suite.path for suite in config.evaluation.suites] == [
        f"{here}/data/harmful.jsonl",
        f"{here}/data/ordinary.jsonl",
    ]


def test_a_file_of_coefficients_counts_from_the_files_folder(write, tmp_path):
    merge = load_pipeline(write(PIPELINE), {"merge": {"coefficients": "learned/coefficients_3.json"}}).merge
    assert merge.coefficients == f"{tmp_path}/learned/coefficients_3.json"
    assert merge.method == "learned"


def test_what_lies_beside_the_file_is_a_path_whatever_its_name(write, tmp_path):
    (tmp_path / "org" / "unaligned@v1").mkdir(parents=True)
    (tmp_path / "org" / "hub-data").write_text("{}")
    config = load_pipeline(write(PIPELINE))
    assert config.unaligned_model == str(tmp_path / "org" / "unaligned@v1")
    assert config.task_training.data[1].path == str(tmp_path / "org" / "hub-data")
    (tmp_path / "org" / "hub-data").unlink()
    (tmp_path / "org" / "hub-data").mkdir()
    assert load_pipeline(write(PIPELINE)).task_training.data == config.task_training.data


@pytest.mark.parametrize(
    ("path", "is_path"),
    [("org/hub-data", False), ("squad", False), ("./data", True), ("a/b/c", True), ("org/x.jsonl", True)],
)
def test_what_can_be_no_data_set_of_the_hub_is_a_path(write, tmp_path, path, is_path):
    config = load_pipeline(write(PIPELINE), {"task_training.data.1.path": path})
    assert config.task_training.data[1].path == (str((tmp_path / path).resolve()) if is_path else path)


@pytest.mark.parametrize(
    "name", ["var/demo/aligned", "aligned", ".hidden/model", "../models/aligned", "a/b/"]
)
def test_what_cannot_be_a_hub_id_counts_from_the_files_folder(write, tmp_path, monkeypatch, name):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / name).mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    config = load_pipeline(write(PIPELINE.replace("./models/aligned", name)))
    assert config.aligned_model == str((tmp_path / name).resolve())


@pytest.mark.parametrize("name", ["org/aligned", "org/aligned@refs/pr/1", "models:/aligned/1"])
def test_names_on_the_hub_and_in_mlflow_stay(write, name):
    assert load_pipeline(write(PIPELINE.replace("./models/aligned", name))).aligned_model == name


def test_absolute_paths_and_no_task_folder_stay_as_they_are(write):
    text = PIPELINE.replace("./models/aligned", "/models/aligned").replace("    include_path: tasks\n", "")
    config = load_pipeline(write(text))
    assert config.aligned_model == "/models/aligned"
    assert config.evaluation.utility.include_path is None


def test_a_policy_is_read_from_its_own_file_and_from_a_pipelines_section(write):
    alone = yaml.safe_dump(yaml.safe_load(PIPELINE)["gate"])
    expected = GatePolicy(max_harmful_rate=0.25, max_over_refusal_rate={"ordinary": 0.15}, min_gain_kept=0.9)
    assert load_policy(write(alone, "policy.yaml")) == expected
    assert load_policy(write(PIPELINE)) == expected


def test_overrides_set_keys_items_and_missing_sections(write):
    config = load_pipeline(
        write(PIPELINE),
        {
            "merge.quantile": 0.25,
            "evaluation.suites.0.limit": 5,
            "retention.cache_days": 2,
            "task_training.lora.target_modules": ["v_proj"],
        },
    )
    assert config.merge.quantile == 0.25
    assert [suite.limit for suite in config.evaluation.suites] == [5, None]
    assert config.retention.cache_days == 2
    assert config.task_training.lora.target_modules == ("v_proj",)


def test_an_override_does_not_reach_what_an_alias_repeats(write):
    training = {"data": [{"path": "a.jsonl"}], "steps": 1}
    plain = yaml.safe_load(PIPELINE) | {"task_training": training, "safety_training": training}
    text = yaml.safe_dump(plain)
    assert "&id001" in text
    config = load_pipeline(write(text), {"task_training.data.0.limit": 3, "task_training.steps": 9})
    assert (config.task_training.steps, config.task_training.data[0].limit) == (9, 3)
    assert (config.safety_training.steps, config.safety_training.data[0].limit) == (1, None)


def test_the_schema_explains_every_key_of_the_pipeline():
    schema = json_schema("pipeline")
    json.dumps(schema)
    assert set(schema["properties"]) == set(PipelineConfig.model_fields)
    assert schema["additionalProperties"] is False
    assert "upper end" in schema["$defs"]["GatePolicy"]["properties"]["max_harmful_rate"]["description"]


# --- wrong: one message with line, key, expected and got -----------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "  quantile: 0.5",
            "  quantil: 0.5",
            "line 16, merge.quantil: unknown key; did you mean quantile?",
        ),
        (
            "    task: demo_task",
            "    taks: demo_task",
            "line 19, evaluation.utility.taks: unknown key; did you mean task?",
        ),
        (
            "    - name: ordinary",
            "    - nmae: ordinary",
            "line 26, evaluation.suites.1.nmae: unknown key; did you mean name?",
        ),
        (
            "  registered_model: demo",
            "  registered_model: demo\n  color: red",
            "line 36, tracking.color: unknown key; expected one of experiment, registered_model",
        ),
        ("  steps: 60", "  steps: 0", "line 9, task_training.steps: expected greater than 0, got 0"),
        ("  steps: 60", "  steps: many", "line 9, task_training.steps: expected a valid integer, got 'many'"),
        (
            "name: demo",
            "name: a b",
            "line 1, name: expected a text that matches '^[A-Za-z0-9_.-]+$', got 'a b'",
        ),
        ("  steps: 60\n", "", "line 4, task_training.steps: expected a value, got nothing"),
        (
            "    - path: data/safety.jsonl",
            "    []",
            "line 12, safety_training.data: expected at least 1 item, got []",
        ),
        (
            "  quantile: 0.5",
            "  quantile: 0.5\n  threshold: 0.3",
            "line 15, merge: expected one of threshold, quantile, count, modules, got threshold and quantile",
        ),
        (
            "    - name: ordinary",
            "    - name: a/b",
            "line 26, evaluation.suites.1.name: expected a text that matches '^[A-Za-z0-9_.-]+$', got 'a/b'",
        ),
        (
            "      kind: harmful",
            "      kind: over_refusal",
            "line 17, evaluation: expected a suite of kind harmful, got none: "
            "the gate could never let an adapter pass",
        ),
        (
            "    ordinary: 0.15",
            "    ordinry: 0.15",
            "pipeline.yaml: expected gate.max_over_refusal_rate.ordinry to name an over_refusal suite "
            "of evaluation; did you mean ordinary?",
        ),
        (
            "    ordinary: 0.15",
            "    harmful_eval: 0.15",
            "expected gate.max_over_refusal_rate.harmful_eval to name an over_refusal suite of evaluation; "
            "got ordinary",
        ),
        (
            "    - name: ordinary",
            "    - name: harmful_eval",
            "line 17, evaluation: expected suites of different names, got twice: harmful_eval",
        ),
        (
            "    ordinary: 0.15",
            "    ordinary: 1.5",
            "line 32, gate.max_over_refusal_rate.ordinary: expected less than or equal to 1, got 1.5; "
            "as a share, 1.5 % is 0.015",
        ),
        (
            "  max_over_refusal_rate:\n    ordinary: 0.15",
            "  max_over_refusal_rate: low",
            "line 31, gate.max_over_refusal_rate: expected a valid number or a valid dictionary, got 'low'",
        ),
        ("      kind: harmful", "      kind: bad", "kind: expected 'harmful' or 'over_refusal', got 'bad'"),
        (
            "gate:\n  max_harmful_rate: 0.25",
            "gate:\n  max_harmful_rate: .nan",
            "line 30, gate.max_harmful_rate: expected a finite number, got nan",
        ),
    ],
)
def test_a_problem_is_said_with_its_line_key_expected_and_got(write, old, new, message):
    assert old in PIPELINE
    said = problem(write, PIPELINE.replace(old, new, 1))
    assert said.startswith(str(write(PIPELINE)))
    assert said.endswith(message)


def test_all_problems_are_said_at_once(write):
    text = PIPELINE.replace("steps: 60", "steps: 0").replace("quantile:", "quantil:")
    said = problem(write, text)
    assert ": 2 problems: line 9, task_training.steps: " in said
    assert "; line 16, merge.quantil: unknown key" in said


def test_a_mistyped_key_is_not_missed_too(write):
    said = problem(write, PIPELINE.replace("gate:", "gates:").replace("steps: 60", "stesp: 60"))
    assert ": 2 problems: " in said
    assert "task_training.stesp: unknown key; did you mean steps?" in said
    assert "gates: unknown key; did you mean gate?" in said
    # What is missing and was not mistyped is said as ever.
    assert "gate: expected a value, got nothing" in problem(write, PIPELINE.replace("gate:", "colour:"))


def test_a_long_value_is_cut(write):
    said = problem(write, PIPELINE.replace("steps: 60", f"steps: {'x' * 500}"))
    assert said.endswith("x…")
    assert len(said) < 300


def test_a_policys_problems_name_the_section_they_are_in(write):
    text = PIPELINE.replace("min_gain_kept", "min_gian_kept")
    assert "line 33, gate.min_gian_kept: unknown key; did you mean min_gain_kept?" in problem(
        write, text, load_policy
    )
    alone = "max_harmful_rate: 0.1\nmax_over_refusal_rate: 0.1\nmin_utilty: 1\n"
    assert problem(write, alone, load_policy).endswith(
        "line 3, min_utilty: unknown key; did you mean min_utility?"
    )


def test_a_section_that_is_no_mapping(write):
    said = problem(write, "gate: strict\n", load_policy)
    assert "line 1, gate: expected a valid dictionary or instance of GatePolicy, got 'strict'" in said


def test_a_problem_without_a_line_is_still_named(write):
    said = problem(write, "max_harmful_rate: 0.1\n", load_policy)
    assert said.endswith("pipeline.yaml: max_over_refusal_rate: expected a value, got nothing")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected keys and values, got None"),
        ("- a\n- b\n", r"expected keys and values, got \['a', 'b'\]"),
        ("a: [1\nb: 2\n", "line 2: not valid YAML: .*expected ',' or ']'"),
        ("a: 1\nb: {c: 1, c: 2}\n", "line 2, b.c: expected the key once, got it again after line 2"),
        ("? [a]\n: b\n", "line 1: not valid YAML: found unhashable key"),
        ("a: 1\n---\nb: 1\n", "line 2: not valid YAML: but found another document"),
        ("a: !!python/object:os.system x\n", "line 1: not valid YAML: could not determine a constructor"),
        ("a: \x00\n", "not valid YAML: .*not allowed$"),
        ("a: 1\nb: {c: 2026-02-30}\n", "line 2: not valid YAML: day is out of range for month"),
        (f"a: {'9' * 5000}\n", "line 1: not valid YAML: Exceeds the limit"),
        (f"a: {'[' * 2000}{']' * 2000}\n", "not valid YAML: maximum recursion depth exceeded"),
    ],
)
def test_what_is_not_strict_yaml_is_refused(write, text, message):
    with pytest.raises(ConfigError, match=message):
        load_pipeline(write(text))


def test_a_merged_section_may_say_a_key_otherwise(write):
    text = PIPELINE.replace("task_training:", "task_training: &task").replace("demo_task", "null")
    merged = "safety_training:\n  <<: *task\n  steps: 80\n"
    text = text.replace("safety_training:\n  data:\n    - path: data/safety.jsonl\n  steps: 80\n", merged)
    said = problem(write, text)
    assert said.endswith("line 18, evaluation.utility.task: expected a valid string, got None")
    config = load_pipeline(write(text.replace("null", "demo_task")))
    assert (config.task_training.steps, config.safety_training.steps) == (60, 80)
    assert config.safety_training.learning_rate == 2e-4
    wrong = text.replace("null", "demo_task").replace("steps: 80", "steps: 0")
    assert "line 13, safety_training.steps: " in problem(write, wrong)
    twice = text.replace("steps: 80", "steps: 80\n  steps: 5")
    said = problem(write, twice)
    assert said.endswith("line 14, safety_training.steps: expected the key once, got it again after line 13")


def test_an_alias_to_itself_is_refused_and_not_followed_forever(write):
    assert "expected" in problem(write, PIPELINE + "retention: &again\n  cache_days: *again\n")


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.yaml: expected a YAML file, got no such file"):
        load_pipeline(tmp_path / "gone.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml: expected a YAML file, got 'utf-8' codec"):
        load_policy(tmp_path / "latin.yaml")


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b", "it's", '"a"', "a\nb"])
@pytest.mark.parametrize("key", ["registered_model", "experiment"])
def test_a_name_that_mlflow_cannot_address_is_refused(write, key, name):
    message = problem(write, PIPELINE, overrides={f"tracking.{key}": name})
    assert f"tracking.{key}: expected a text that matches" in message


def test_names_with_spaces_and_brackets_are_fine_for_mlflow(write):
    config = load_pipeline(write(PIPELINE), overrides={"tracking.experiment": "Repair (v2) é"})
    assert config.tracking.experiment == "Repair (v2) é"


def test_one_limit_for_all_over_refusal_suites_needs_one(write):
    ordinary = PIPELINE.partition("    - name: ordinary")[2].partition("gate:")[0]
    text = PIPELINE.replace(f"    - name: ordinary{ordinary}", "").replace("\n    ordinary: 0.15", " 0.15")
    message = problem(write, text)
    assert "expected a suite of kind over_refusal for gate.max_over_refusal_rate, got none" in message


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("merge.quantil", "merge.quantil: unknown key; did you mean quantile?"),
        ("nonsense.deep.key", "nonsense: unknown key"),
        ("name.deep", "override name.deep: expected a key of the config, got none at deep"),
        ("name.deep.deeper", "override name.deep.deeper: expected a key of the config, got none at deep"),
        ("evaluation.suites.7.limit", "expected a key of the config, got none at 7"),
        ("evaluation.suites.first.limit", "expected a key of the config, got none at first"),
    ],
)
def test_an_override_of_no_key_is_refused(write, key, message):
    assert message in problem(write, PIPELINE, overrides={key: 1})
