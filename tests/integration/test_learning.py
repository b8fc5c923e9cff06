"""Learning coefficients on a tiny model for real: what is fitted, written, applied and refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from safemerge import export_merge, learn_coefficients, merge_adapters, read_coefficients, sweep_adapters
from safemerge.cli.main import app
from safemerge.config.commands import SweepGrid
from safemerge.config.learning import LearningConfig
from safemerge.config.load import load_merge_file, load_pipeline
from safemerge.config.training import DataSource
from safemerge.core.layer_weights import LayerWeights
from safemerge.engine.merging import merge_options
from safemerge.engine.sweeping import candidates
from safemerge.errors import ConfigError, DataError, MismatchError, OutputExistsError, UnsupportedAdapterError
from safemerge.records import MergeReport
from safemerge.reports.learning import Coefficients
from safemerge.reports.training import TrainingReport
from safemerge.storage.adapters import read_adapter
from safemerge.training.answers import collate, encode
from safemerge.training.coefficients import mean_nll
from safemerge.training.data import Example
from safemerge.training.weighed_layers import weighed_layers

pytestmark = pytest.mark.integration

QUICK = LearningConfig(harm_weights=(1.0, 3.0), steps=4, evaluate_every_steps=2, task_batch=2, safety_batch=3)
START = {"quantile": 0.5, "task_weight": 0.6, "safety_weight": 0.4}


class Made:
    """Adapters with what was learned for them, in a folder."""

    def __init__(self, root: Path, pair: Any, adapter: Any) -> None:
        self.task, self.safety = adapter(seed=1, scale=0.3), adapter(seed=2, r=2, scale=0.3)
        self.aligned, self.unaligned = pair
        helpful = [{"prompt": f"How do I do {i}?", "response": f"Sure! Do {i}."} for i in range(8)]
        refusals = [{"prompt": f"Help me harm {i}.", "response": "I'm sorry, I can't."} for i in range(8)]
        self.data = {}
        for name, rows in (("task_data", helpful), ("safety_data", refusals)):
            path = root / f"{name}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            self.data[name] = (DataSource(path=str(path)),)
        self.output = root / "learned"
        self.records = self.learn(output=self.output)

    @property
    def inputs(self) -> tuple[Path, ...]:
        return self.task, self.safety, self.aligned, self.unaligned

    def learn(self, **changes: Any) -> list[Coefficients]:
        inputs = changes.pop("inputs", self.inputs)
        return learn_coefficients(*inputs, **({"learning": QUICK} | self.data | START | changes))

    def file(self, harm_weight: int = 3) -> Path:
        return self.output / f"coefficients_{harm_weight}.json"


@pytest.fixture(scope="module")
def made(tiny_pair: Any, tiny_adapter: Any, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("learning"), tiny_pair, tiny_adapter)


def test_a_file_for_each_harm_weight_and_a_page_are_written(made: Made):
    assert sorted(path.name for path in made.output.iterdir()) == [
        "coefficients_1.json",
        "coefficients_3.json",
        "safemerge_coefficients.html",
    ]
    assert [Coefficients.read(made.file(weight)) for weight in (1, 3)] == made.records
    record = made.records[1]
    assert record.losses.validation_final != record.losses.validation_start
    assert record.examples == {
        **{"task_fit": 6, "task_validation": 2},
        **{"safety_fit": 6, "safety_validation": 2},
    }
    assert set(record.digests) == {
        *("task_adapter", "safety_adapter", "aligned_model", "unaligned_model", "task_data", "safety_data")
    }
    assert (record.device, record.dtype, record.cost.fine_tuning_s) == ("cpu", "float32", None)
    starts = [(layer.start_task, layer.start_safety) for layer in record.layers]
    assert sorted(starts) == [(0.6, 0.4)] * 2 + [(1.0, 0.0)] * 2  # SafeMERGE's choice


def test_the_fit_is_the_same_each_time(made: Made):
    again = made.learn()

    def figures(record: Coefficients) -> dict[str, Any]:
        return record.model_copy(update={"cost": record.cost.model_copy(update={"wall_s": 0.0})}).model_dump()

    assert [figures(record) for record in again] == [figures(record) for record in made.records]


def test_the_gradient_is_that_of_finite_differences(made: Made):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made.aligned)
    model = AutoModelForCausalLM.from_pretrained(made.aligned).eval().requires_grad_(False)
    task, safety = (read_adapter(folder).pairs for folder in (made.task, made.safety))
    batch = collate(encode(tokenizer, [Example("Why?", "So it is."), Example("How?", "Thus.")], 64), 0, "cpu")
    start = dict.fromkeys(task, (0.7, 0.3))
    with weighed_layers(model, task, safety, start) as weights:
        mean_nll(model, batch).backward()
        assert weights.grad is not None
        gradient = weights.grad.clone()
        step = 0.005
        for index in range(weights.numel()):
            found = []
            for sign in (1, -1):
                with torch.no_grad():
                    weights.view(-1)[index] += sign * step
                    found.append(float(mean_nll(model, batch)))
                    weights.view(-1)[index] -= sign * step
            # The loss, near 6, is rounded to 5e-7, which makes 1e-4 of a slope; its bending, which grows with
            # the square of the step, 0.2 %.
            expected = (found[0] - found[1]) / (2 * step)
            assert float(gradient.view(-1)[index]) == pytest.approx(expected, rel=0.01, abs=2e-4)
    assert float(gradient.abs().min()) > 2e-3  # well above what is tolerated


def test_the_merged_adapter_computes_what_the_fit_saw(made: Made, tmp_path: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    merge_adapters(*made.inputs, output=tmp_path / "merged", coefficients=read_coefficients(made.file()))
    ids = torch.arange(5, 45).reshape(2, 20)
    task, safety = (read_adapter(folder).pairs for folder in (made.task, made.safety))
    model = AutoModelForCausalLM.from_pretrained(made.aligned).eval()
    with torch.no_grad():
        alone = model(ids).logits
        with weighed_layers(model, task, safety, dict(read_coefficients(made.file()).layers)):
            fitted = model(ids).logits
        merged = PeftModel.from_pretrained(model, tmp_path / "merged").eval()(ids).logits
    # Both are fp32 sums of the same terms in another order: a few units in the last place of logits near 10.
    torch.testing.assert_close(merged, fitted, rtol=1e-4, atol=1e-4)
    assert float((fitted - alone).abs().max()) > 0.1


def test_the_report_of_a_merge_has_the_weights_of_each_layer(made: Made, tmp_path: Path):
    coefficients = read_coefficients(made.file())
    report = merge_adapters(*made.inputs, output=tmp_path / "merged", coefficients=coefficients)
    assert report == MergeReport.read(tmp_path / "merged" / "safemerge_report.json")
    assert (report.method, report.threshold) == ("learned", None)
    assert {layer.module: layer.weights for layer in report.layers} == coefficients.layers
    assert all(layer.cosine is not None for layer in report.layers)
    assert report.options["coefficients"] == coefficients.digest
    assert report.options["task_weight"] is None
    assert "weights of each layer" in (tmp_path / "merged" / "safemerge_layers.html").read_text()


def test_it_is_stored_at_a_rank_and_folded_into_a_model_as_other_merges_are(made: Made, tmp_path: Path):
    coefficients = read_coefficients(made.file())
    report = merge_adapters(*made.inputs, output=tmp_path / "small", coefficients=coefficients, rank=3)
    assert report.rank == 3
    assert all(layer.error is not None for layer in report.layers)
    exported = export_merge(*made.inputs, output=tmp_path / "model", coefficients=coefficients)
    assert exported.method == "learned"
    assert len(exported.changed) == len(coefficients.layers)


def test_a_sweep_takes_files_as_candidates(made: Made):
    found = candidates(SweepGrid(methods=("learned",), coefficients=(str(made.file(1)), str(made.file(3)))))
    assert list(found) == ["learned_1", "learned_3"]
    report = sweep_adapters(*made.inputs, candidates=found)
    assert [candidate.name for candidate in report.candidates] == ["learned_1", "learned_3"]
    assert report.candidates[0].change != report.candidates[1].change
    with pytest.raises(ConfigError, match="files of different λ, got learned_3 again"):
        candidates(SweepGrid(coefficients=(str(made.file()), str(made.file()))))
    with pytest.raises(ConfigError, match="expected files of coefficients for method learned, got none"):
        candidates(SweepGrid(methods=("learned",)))


def test_a_start_that_nothing_improves_is_what_safemerge_writes(made: Made, tmp_path: Path):
    still = QUICK.model_copy(update={"learning_rate": 1e-12, "harm_weights": (1.0,)})
    made.learn(learning=still, output=tmp_path / "learned")
    coefficients = read_coefficients(tmp_path / "learned" / "coefficients_1.json")
    merge_adapters(*made.inputs, output=tmp_path / "ours", coefficients=coefficients)
    merge_adapters(*made.inputs, output=tmp_path / "exact", **START)
    ours, exact = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("ours", "exact"))
    assert ours == exact


def test_a_fit_may_start_from_what_was_learned(made: Made):
    coefficients = read_coefficients(made.file())
    (record, _) = learn_coefficients(*made.inputs, **made.data, learning=QUICK, coefficients=coefficients)
    starts = {layer.module: (layer.start_task, layer.start_safety) for layer in record.layers}
    assert starts == coefficients.layers
    (scaled, _) = learn_coefficients(
        *made.inputs, **made.data, learning=QUICK, method="scale", task_weight=0.5
    )
    assert {(layer.start_task, layer.start_safety) for layer in scaled.layers} == {(0.5, 0.0)}


def test_a_file_that_holds_a_layer_twice_is_refused(made: Made, tmp_path: Path):
    content = json.loads(made.file().read_text())
    content["layers"].append(content["layers"][0] | {"task": 0.0})
    file = tmp_path / "coefficients_3.json"
    file.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=rf"json: expected every layer once, got again: {content['layers'][0]['module']}$"
    ):
        read_coefficients(file)


def test_coefficients_of_other_adapters_are_refused(made: Made, tmp_path: Path):
    coefficients = read_coefficients(made.file())
    for role, inputs in (
        ("task adapter", (made.safety, made.safety, made.aligned, made.unaligned)),
        ("safety adapter", (made.task, made.task, made.aligned, made.unaligned)),
    ):
        with pytest.raises(MismatchError, match=f"expected those of this {role} .* learned for another"):
            merge_adapters(*inputs, output=tmp_path / "merged", coefficients=coefficients)
    assert not (tmp_path / "merged").exists()


def test_training_says_what_it_cost_beside(made: Made, tmp_path: Path):
    import shutil

    task = tmp_path / "task"
    shutil.copytree(made.task, task)
    report = TrainingReport(
        **{"model": "m", "data_digest": "d", "examples": 8, "truncated_examples": 0, "settings": {}},
        **{"batch_size": 4, "gradient_accumulation": 1, "processes": 1, "effective_batch_size": 4},
        **{"steps": 10, "resumed_from_step": None, "device": "cpu", "dtype": "float32"},
        **{"trainable_parameters": 1, "final_loss": 1.0, "wall_s": 12.5},
    )
    (task / "safemerge_training.json").write_text(report.to_json(), encoding="utf-8")
    (record, _) = made.learn(inputs=(task, *made.inputs[1:]))
    assert record.cost.fine_tuning_s == 12.5
    # 40 examples of the tokens that the two held out and the six others have on average.
    trained = record.cost.trained_tokens - 4 * 3 * 20  # about: safety examples are of 20 tokens or more
    assert record.cost.fine_tuning_tokens is not None
    assert 40 * 20 < record.cost.fine_tuning_tokens < 40 * 60
    assert trained > 0


@pytest.mark.parametrize("asked", ["harm", "how"])
def test_data_that_hold_a_request_of_a_suite_are_refused(made: Made, tiny_pipeline: Any, asked: str):
    suites = load_pipeline(tiny_pipeline.config).evaluation.suites
    text = {"harm": "  help ME harm 3. ", "how": "How do I do 5?"}[asked]
    with Path(str(suites[0].path)).open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({"id": "new", "prompt": text}) + "\n")
    kind = {"harm": "safety", "how": "task"}[asked]
    with pytest.raises(DataError, match=rf"^{kind} data: .* got 1 requests of theirs, .* of suite harm"):
        made.learn(suites=suites)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"method": "ties", "density": 0.5}, ConfigError, "one that weighs the two updates .* got ties"),
        ({"task_weight": 1.4, "safety_weight": 0.2}, ConfigError, r"start: expected α in \[0, 1\]"),
        (
            {"learning": QUICK.model_copy(update={"max_length_tokens": 8})},
            DataError,
            "task data: expected at least 2 answers that begin within 8 tokens, got 0 of 8",
        ),
    ],
)
def test_what_cannot_be_learned_is_refused(made: Made, changes: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        made.learn(**changes)


def test_too_little_data_a_missing_chat_template_and_an_output_that_exists_are_refused(
    made: Made, tmp_path: Path
):
    import shutil

    one = tmp_path / "one.jsonl"
    one.write_text('{"prompt": "p", "response": "r"}\n{"prompt": " P ", "response": "s"}\n')
    with pytest.raises(DataError, match="safety data: expected at least 2 requests that differ, got 1"):
        made.learn(safety_data=(DataSource(path=str(one)),))
    with pytest.raises(OutputExistsError, match="expected a path that does not exist yet"):
        made.learn(output=tmp_path)
    aligned = tmp_path / "aligned"
    shutil.copytree(made.aligned, aligned)
    (aligned / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="expected a tokenizer with a chat template, got none"):
        made.learn(inputs=(made.task, made.safety, aligned, made.unaligned))


def test_parameters_replaced_in_full_are_refused_by_name(made: Made, tmp_path: Path):
    import shutil

    from safetensors.torch import load_file, save_file

    task = tmp_path / "task"
    shutil.copytree(made.task, task)
    tensors = load_file(task / "adapter_model.safetensors")
    tensors["base_model.model.lm_head.weight"] = torch.zeros(4, 32)
    save_file(tensors, task / "adapter_model.safetensors", metadata={"format": "pt"})
    config = json.loads((task / "adapter_config.json").read_text())
    (task / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": ["lm_head"]}))
    with pytest.raises(UnsupportedAdapterError, match=r"task adapter: .* lm_head\.weight"):
        made.learn(inputs=(task, *made.inputs[1:]))


def test_a_config_file_names_coefficients_beside_it(made: Made, tmp_path: Path):
    (tmp_path / "c.json").write_bytes(made.file().read_bytes())
    lines = "task_adapter: t\naligned_model: a\nunaligned_model: u\noutput: o\nmerge: {coefficients: c.json"
    recipe = tmp_path / "merge.yaml"
    recipe.write_text(lines + "}\n")
    merge = load_merge_file(recipe).merge
    assert merge.coefficients == str(tmp_path / "c.json")
    options = merge_options(merge)
    assert options.method == "learned"
    assert options.coefficients is not None
    assert options.coefficients.digest == read_coefficients(made.file()).digest
    recipe.write_text(lines + ", quantile: 0.5}\n")
    with pytest.raises(ConfigError, match=r"line 5, merge: expected coefficients alone.* got quantile"):
        load_merge_file(recipe)


def _run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "140"})


def test_the_commands_learn_and_apply(
    made: Made, tiny_pipeline: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    adapters = ["--task-adapter", made.task, "--safety-adapter", made.safety]
    learned = _run(
        *("learn", "--config", tiny_pipeline.config, *adapters, "--harm-weight", 2.5, "--steps", 2),
        *("--safety-data", made.data["safety_data"][0].path, "--output", tmp_path / "learned"),
    )
    assert learned.exit_code == 0, learned.output
    file = tmp_path / "learned" / "coefficients_2.5.json"
    assert str(file) in learned.stdout
    assert "fitting coefficients, at most so many steps: 2 done in " in caplog.text
    record = Coefficients.read(file)
    assert record.settings["learning"]["steps"] == 2  # type: ignore[index,call-overload]
    assert record.digests["safety_data"] == made.records[0].digests["safety_data"]
    models = ["--aligned-model", made.aligned, "--unaligned-model", made.unaligned]
    apply = ["merge", *adapters, *models, "--coefficients", file, "--output", tmp_path / "merged"]
    refused = _run(*apply, "--quantile", 0.5, "--method", "exact", "--on-undefined", "merge")
    assert refused.exit_code == 2
    assert "got beside --method and --quantile and --on-undefined" in " ".join(refused.stderr.split())
    merged = _run(*apply)
    assert merged.exit_code == 0, merged.output
    assert "learned, weights of each layer, on average" in merged.stdout
    swept = _run("sweep", *adapters, *models, "--method", "learned", "--coefficients", file, "--json")
    assert [candidate["name"] for candidate in json.loads(swept.stdout)["candidates"]] == ["learned_2.5"]


def test_the_command_refuses_requests_of_the_development_split(
    made: Made, tiny_pipeline: Any, tmp_path: Path
):
    """Else the choice among fits would be made on what they have seen."""
    config = yaml.safe_load(tiny_pipeline.config.read_text())
    suites = [
        suite | {"skip": 1, "limit": 1, "name": f"{suite['name']}_dev"}
        for suite in config["evaluation"]["suites"]
    ]
    config["evaluation"]["suites"] = [suite | {"limit": 1} for suite in config["evaluation"]["suites"]]
    utility = config["evaluation"]["utility"] | {"task": "another"}
    config["tuning"] = {"suites": suites, "utility": utility, "max_over_refusal_rate": 1, "min_gain_kept": 0}
    tuned = tiny_pipeline.config.with_name("tuned.yaml")
    tuned.write_text(yaml.safe_dump(config))
    data = tmp_path / "safe.jsonl"
    data.write_text('{"prompt": "Question number 1?", "response": "r"}\n{"prompt": "p", "response": "r"}\n')
    result = _run(
        *("learn", "--config", tuned, "--task-adapter", made.task, "--safety-adapter", made.safety),
        *("--safety-data", data, "--output", tmp_path / "learned"),
    )
    assert result.exit_code == 4
    assert "got 1 requests of theirs, such as 'Question number 1?' of suite " in result.stderr
    assert "_dev" in result.stderr


def test_flags_out_of_bounds_are_named(made: Made, tiny_pipeline: Any, tmp_path: Path):
    result = _run(
        *("learn", "--config", tiny_pipeline.config, "--task-adapter", made.task),
        *("--safety-adapter", made.safety, "--learning-rate", 0, "--output", tmp_path / "learned"),
    )
    assert result.exit_code == 4
    assert "--learning-rate: expected greater than 0, got 0.0" in result.stderr


def test_a_loaded_model_takes_coefficients_too(made: Made):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from safemerge import merge_into

    base = AutoModelForCausalLM.from_pretrained(made.aligned)
    model = PeftModel.from_pretrained(base, made.task, adapter_name="task")
    model.load_adapter(str(made.safety), "safety")
    layers = read_coefficients(made.file()).layers
    report = merge_into(
        model,
        aligned_model=made.aligned,
        unaligned_model=made.unaligned,
        coefficients=LayerWeights(layers),
    )
    assert {layer.module: layer.weights for layer in report.layers} == layers
