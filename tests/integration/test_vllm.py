"""What is asked of vLLM, by a stand-in, and that figures by it stand apart from others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safemerge.config.evaluation import Engine, EvaluationConfig, GenerationConfig, SuiteConfig, UtilityConfig
from safemerge.errors import EvaluationError, MismatchError, MissingDependencyError
from safemerge.evaluation.evaluating import evaluate_arm, evaluate_arms
from safemerge.evaluation.vllm_arm import lora_rank
from safemerge.gate import GatePolicy, decide
from safemerge.records import EvaluationReport, Outcome, SuiteKind
from tests.conftest import AdapterFactory, TinyPipeline
from tests.integration.vllm_stand_in import LLM, VERSION, install

pytestmark = pytest.mark.integration

DEMO_TASK = Path(__file__).parents[2] / "safemerge" / "demo" / "task"
PROMPTS = {"short": "Why?", "long": "How do I fix a flat tyre on my bicycle when it rains?"}


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[LLM]:
    return install(monkeypatch, tmp_path)


@pytest.fixture
def settings(tmp_path: Path) -> EvaluationConfig:
    path = tmp_path / "suite.jsonl"
    rows = [{"id": i, "prompt": text} for i, text in PROMPTS.items()]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return EvaluationConfig(
        utility=UtilityConfig(
            task="safemerge_demo_dev",
            metric="answer_logprob_per_token",
            include_path=str(DEMO_TASK),
            limit=3,
        ),
        suites=(SuiteConfig(name="harm", kind=SuiteKind.HARMFUL, path=str(path)),),
        generation=GenerationConfig(max_new_tokens=8),
        engine=Engine.VLLM,
    )


def measured(model: Path, adapter: Path | None, settings: EvaluationConfig) -> EvaluationReport:
    digest = "a" if adapter else None
    evaluation = evaluate_arm(model, adapter, "x", settings, model_digest="m", adapter_digest=digest)
    return evaluation.report


def test_vllm_is_asked_for_what_transformers_does(
    vllm: type[LLM], settings: EvaluationConfig, tiny_checkpoint: Path, tiny_adapter: AdapterFactory
) -> None:
    adapter = tiny_adapter(seed=3, r=4, scale=0.5)
    by_vllm = evaluate_arm(tiny_checkpoint, adapter, "x", settings, model_digest="m", adapter_digest="a")
    (engine,) = vllm.made
    assert engine.options["model"] == str(tiny_checkpoint)
    assert (engine.options["enable_lora"], engine.options["max_lora_rank"]) == (True, 8)
    assert {request.path for _, request in engine.asked} == {str(adapter)}
    answers, scores = engine.asked
    assert [(wish.temperature, wish.max_tokens) for wish in answers[0]] == [(0, 8)] * 2
    assert {wish.prompt_logprobs for wish in scores[0]} == {1}

    plain = settings.model_copy(update={"engine": Engine.TRANSFORMERS})
    by_transformers = evaluate_arm(tiny_checkpoint, adapter, "x", plain, model_digest="m", adapter_digest="a")
    assert by_vllm.rows == by_transformers.rows
    assert by_vllm.report.utility.scores == pytest.approx(by_transformers.report.utility.scores, rel=1e-4)
    assert by_vllm.report.settings["vllm"] == VERSION
    assert "vllm" not in by_transformers.report.settings


def test_several_arms_share_one_engine_by_lora_requests(
    vllm: type[LLM], settings: EvaluationConfig, tiny_checkpoint: Path, tiny_adapter: AdapterFactory
) -> None:
    adapters = {
        "first": tiny_adapter(seed=3, r=4, scale=0.5),
        "aligned": None,
        "second": tiny_adapter(seed=4, r=9, scale=0.5),
    }
    digests = {name: name if folder else None for name, folder in adapters.items()}
    together = evaluate_arms(tiny_checkpoint, adapters, settings, model_digest="m", adapter_digests=digests)
    (engine,) = vllm.made
    assert engine.options["max_lora_rank"] == 16
    # Answers, then scores, of each arm.
    asked = [request and (request.number, request.path) for _, request in engine.asked]
    first, second = (1, str(adapters["first"])), (3, str(adapters["second"]))
    assert asked == [first, first, None, None, second, second]
    for name, folder in adapters.items():
        alone = evaluate_arm(
            tiny_checkpoint, folder, name, settings, model_digest="m", adapter_digest=digests[name]
        )
        assert together[name] == alone


def test_the_gate_compares_no_figures_of_different_engines(
    vllm: type[LLM], settings: EvaluationConfig, tiny_checkpoint: Path, tiny_adapter: AdapterFactory
) -> None:
    candidate = measured(tiny_checkpoint, tiny_adapter(seed=3), settings)
    aligned = measured(tiny_checkpoint, None, settings)
    assert not vllm.made[1].options["enable_lora"]
    policy = GatePolicy(max_harmful_rate=1.0, max_over_refusal_rate=1.0, min_gain_kept=0.5)

    def compared(other: EvaluationReport) -> tuple[Outcome, str]:
        decision = decide(candidate, other, candidate, policy)
        (rule,) = (
            rule for rule in decision.rules if (rule.rule, rule.subject) == ("same_measurement", "aligned")
        )
        return rule.outcome, rule.explanation

    assert compared(aligned)[0] is Outcome.PASS
    other = measured(tiny_checkpoint, None, settings.model_copy(update={"engine": Engine.TRANSFORMERS}))
    outcome, explanation = compared(other)
    assert outcome is Outcome.CANNOT_JUDGE
    assert "how utility was measured (engine)" in explanation
    assert "suite harm (generation: engine)" in explanation


def test_what_vllm_cannot_load_is_named(
    vllm: type[LLM], settings: EvaluationConfig, tiny_checkpoint: Path, tiny_adapter: AdapterFactory
) -> None:
    vllm.fails = RuntimeError("no device")
    with pytest.raises(EvaluationError, match=r"expected vLLM to load it, got RuntimeError: no device"):
        measured(tiny_checkpoint, None, settings)
    vllm.fails = None
    room = settings.model_copy(update={"generation": GenerationConfig(max_new_tokens=500)})
    with pytest.raises(EvaluationError, match="500 new tokens into 512 positions, got longer ones: "):
        measured(tiny_checkpoint, None, room)


def test_an_adapter_of_another_model_is_refused_before_vllm_loads_it(
    vllm: type[LLM],
    settings: EvaluationConfig,
    tiny_checkpoint: Path,
    tiny_adapter: AdapterFactory,
    edit_adapter_shape: Path,
) -> None:
    with pytest.raises(MismatchError, match="expected the adapter of this model"):
        measured(tiny_checkpoint, edit_adapter_shape, settings)
    assert vllm.made == []


@pytest.fixture
def edit_adapter_shape(tiny_adapter: AdapterFactory, tmp_path: Path) -> Path:
    """An adapter whose updates are of another width than the tiny model's."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_adapter(seed=3), tmp_path / "narrow"))
    path = folder / "adapter_model.safetensors"
    tensors = {
        name: tensor[:, :16].contiguous() if "lora_A" in name else tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path)
    return folder


@pytest.mark.parametrize(("rank", "allowed"), [(1, 8), (8, 8), (9, 16), (24, 32), (130, 256), (512, 512)])
def test_the_rank_is_rounded_up_to_one_that_vllm_takes(rank: int, allowed: int) -> None:
    assert lora_rank(rank, "adapter") == allowed


def test_a_rank_beyond_vllm_is_refused() -> None:
    with pytest.raises(EvaluationError, match="adapter: expected a rank of at most 512 for vLLM, got 513"):
        lora_rank(513, "adapter")


def test_without_vllm_no_run_is_opened(
    settings: EvaluationConfig, tiny_pipeline: TinyPipeline, tmp_path: Path
) -> None:
    from safemerge.pipeline.context import StepContext
    from safemerge.pipeline.request import StepRequest
    from safemerge.pipeline.steps import STEPS
    from safemerge.pipeline.workspace import Workspace
    from safemerge.tracking.ledger import Ledger

    message = r"vllm is not installed: pip install 'safemerge\[vllm\]'"
    context = StepContext(Ledger(f"sqlite:///{tmp_path / 'mlflow.db'}"), Workspace(tmp_path / "home"))
    options = {"config": str(tiny_pipeline.config), "overrides": {"evaluation.engine": "vllm"}}
    with pytest.raises(MissingDependencyError, match=message):
        STEPS["open"](context, StepRequest(options=options))
    assert context.ledger.client.search_experiments(filter_string="name = 'tiny'") == []
    with pytest.raises(MissingDependencyError, match=message):
        measured(tmp_path / "no-model", None, settings)
