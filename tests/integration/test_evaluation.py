"""Arms measured whole: their reports, several in one load, and what a killed evaluation keeps."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from safemerge.config.evaluation import GenerationConfig, SuiteConfig
from safemerge.config.judges import WildGuardConfig
from safemerge.errors import AdapterError, CheckpointError, ConfigError, DataError, EvaluationError
from safemerge.evaluation.evaluating import evaluate_arm, evaluate_arms
from safemerge.evaluation.journal import FILE
from safemerge.evaluation.transformers_arm import TransformersModel
from safemerge.records import EvaluationReport, SuiteKind
from tests.integration.measured import PROMPTS, evaluation_settings

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def adapter(tiny_adapter):
    return tiny_adapter(seed=3, scale=0.5)


@pytest.fixture
def settings(tmp_path):
    return evaluation_settings(tmp_path)


def test_an_arm_is_measured_whole_and_reports_round_trip(tiny_checkpoint, adapter, settings, tmp_path):
    def run():
        return evaluate_arm(
            tiny_checkpoint, adapter, "fine_tuned", settings, model_digest="m", adapter_digest="a"
        )

    evaluation = run()
    report = evaluation.report
    assert (report.arm, report.model_digest, report.adapter_digest) == ("fine_tuned", "m", "a")
    # A random model neither refuses nor stays silent.
    harmful, harmless = report.suites
    assert (harmful.rate, harmless.rate) == (1.0, 0.0)
    assert harmful.interval.low < harmful.interval.high == 1.0
    assert harmful.judge.smoke
    assert harmful.protocol == harmless.protocol
    assert harmful.protocol == {"engine": "transformers", "decoding": "greedy", "max_new_tokens": 8}
    assert report.utility.protocol == {
        "engine": "transformers",
        "filter": "none",
        "num_fewshot": [0],
        "chat_template": True,
        "limit": 3,
        "seed": 1234,
    }
    assert report.utility.value < 0
    assert math.isfinite(report.utility.value)
    assert [row["id"] for row in evaluation.rows] == list(PROMPTS) * 2
    assert all(row["flag"] is report.suites[n // 4].flags[row["id"]] for n, row in enumerate(evaluation.rows))
    assert report.settings["dtype"] == ("float32" if report.settings["device"] == "cpu" else "bfloat16")
    (tmp_path / "report.json").write_text(report.to_json(), encoding="utf-8")
    assert EvaluationReport.read(tmp_path / "report.json") == report
    assert run() == evaluation


def test_wrong_settings_are_found_before_the_model_is_loaded(settings, tmp_path):
    def run(changed):
        evaluate_arm(tmp_path / "no_model", None, "x", changed, model_digest="m", adapter_digest=None)

    unknown = settings.utility.model_copy(update={"metric": "acc"})
    with pytest.raises(EvaluationError, match="got 'acc'"):
        run(settings.model_copy(update={"utility": unknown}))
    loose = settings.model_copy(update={"judge": WildGuardConfig(kind="wild_guard", model="org/guard")})
    with pytest.raises(ConfigError, match="org/guard: expected a folder or name@revision"):
        run(loose)
    gone = settings.suites[0].model_copy(update={"path": str(tmp_path / "gone.jsonl")})
    with pytest.raises(DataError, match=r"gone\.jsonl"):
        run(settings.model_copy(update={"suites": (gone,)}))
    with pytest.raises(CheckpointError, match="no_model"):
        run(settings)


def test_judging_begins_once_the_arm_is_gone(tiny_checkpoint, settings, monkeypatch):
    import weakref

    from safemerge.evaluation import transformers_arm
    from safemerge.evaluation.judges.refusal_phrases import RefusalPhrases

    loaded, alive, released = [], [], []

    class WatchedModel(TransformersModel):
        def __init__(self, model, *arguments):
            super().__init__(model, *arguments)
            loaded.append(weakref.ref(model))

    class Watching(RefusalPhrases):
        def flags(self, kind, answers, journal=None):
            alive.append(loaded[0]() is not None)
            return super().flags(kind, answers, journal)

        def release(self):
            released.append(True)

    monkeypatch.setattr(transformers_arm, "TransformersModel", WatchedModel)
    monkeypatch.setattr("safemerge.evaluation.judges.RefusalPhrases", Watching)
    report = evaluate_arm(tiny_checkpoint, None, "a", settings, model_digest="m", adapter_digest=None).report
    assert alive == [False, False]
    assert released
    assert report.suites[0].categories == dict.fromkeys(PROMPTS, "c")


# --- several arms in one load -------------------------------------------------------


@pytest.fixture(scope="module")
def adapters(tiny_adapter, adapter):
    """Adapters of other ranks on other modules, and the model itself between them."""
    every = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj")
    return {
        "fine.tuned": adapter,
        "aligned": None,
        "repaired@v1.2": tiny_adapter(seed=5, r=7, scale=0.4, target_modules=every),
        "scale": tiny_adapter(seed=6, r=2, scale=0.7, target_modules=("o_proj",)),
    }


DIGESTS = {"fine.tuned": "f", "aligned": None, "repaired@v1.2": "r", "scale": "s"}


def _all(model, adapters, settings, **options):
    return evaluate_arms(model, adapters, settings, model_digest="m", adapter_digests=DIGESTS, **options)


def test_an_arm_among_others_has_the_bytes_that_it_has_alone(tiny_checkpoint, adapters, settings):
    together = _all(tiny_checkpoint, adapters, settings)
    assert list(together) == list(adapters)
    assert len({str(evaluation.rows) for evaluation in together.values()}) == len(adapters)
    for name, adapter in adapters.items():
        alone = evaluate_arm(
            tiny_checkpoint, adapter, name, settings, model_digest="m", adapter_digest=DIGESTS[name]
        )
        assert together[name].report.to_json() == alone.report.to_json()
        assert together[name].rows == alone.rows


def test_the_model_and_each_judge_are_loaded_once(tiny_checkpoint, adapters, settings, monkeypatch):
    from transformers import AutoModelForCausalLM

    from safemerge.evaluation.judges.refusal_phrases import RefusalPhrases

    original, loads, judged = AutoModelForCausalLM.from_pretrained, [], []

    def counted(*arguments, **options):
        loads.append(arguments)
        return original(*arguments, **options)

    class Watching(RefusalPhrases):
        def flags(self, kind, answers, journal=None):
            judged.append(kind)
            return super().flags(kind, answers, journal)

        def release(self):
            judged.append("released")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)
    monkeypatch.setattr("safemerge.evaluation.judges.RefusalPhrases", Watching)
    found = _all(tiny_checkpoint, adapters, settings, with_utility=False)
    assert len(loads) == 1
    assert judged == [SuiteKind.HARMFUL] * 4 + [SuiteKind.OVER_REFUSAL] * 4 + ["released"]
    assert [evaluation.report.utility for evaluation in found.values()] == [None] * 4


def test_an_adapter_that_does_not_fit_is_refused_before_the_first_arm_is_asked(
    tiny_checkpoint, adapters, settings, tmp_path, monkeypatch
):
    from safemerge.evaluation.transformers_arm import TransformersArm

    monkeypatch.setattr(TransformersArm, "answer", lambda *_: pytest.fail("an arm was asked"))
    with pytest.raises(AdapterError, match="expected a PEFT adapter"):
        _all(tiny_checkpoint, {**adapters, "scale": tmp_path}, settings)


# --- what a killed evaluation keeps -------------------------------------------------

EVALUATE = """
import sys, time
from pathlib import Path
from safemerge.config.evaluation import EvaluationConfig
from safemerge.evaluation.evaluating import evaluate_arms
from safemerge.evaluation.transformers_arm import TransformersArm

answer, asked = TransformersArm.answer, []


def answer_16_batches(*arguments):
    asked.append(1)
    if len(asked) > 16:
        time.sleep(600)
    return answer(*arguments)


TransformersArm.answer = answer_16_batches
model, adapter, settings, work = sys.argv[1:]
evaluate_arms(
    Path(model),
    {"aligned": None, "fine.tuned": Path(adapter)},
    EvaluationConfig.model_validate_json(settings),
    model_digest="m",
    adapter_digests={"aligned": None, "fine.tuned": "f"},
    work=Path(work),
)
"""


def test_a_killed_evaluation_goes_on_and_gives_the_same_bytes(
    tiny_checkpoint, adapter, settings, tmp_path, monkeypatch
):
    from safemerge.evaluation.transformers_arm import TransformersArm

    # Twelve batches of each arm: it hangs in the second one, so that it is killed there on any machine.
    suite = tmp_path / "many.jsonl"
    rows = [{"id": f"p{n}", "prompt": f"What is {n}? {'Well? ' * (n % 7)}"} for n in range(24)]
    suite.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    many = SuiteConfig(name="many", kind=SuiteKind.HARMFUL, path=str(suite))
    settings = settings.model_copy(
        update={"suites": (many,), "generation": GenerationConfig(max_new_tokens=48, batch_size=2)}
    )
    adapters, work = {"aligned": None, "fine.tuned": adapter}, tmp_path / "work"
    process = subprocess.Popen(
        [sys.executable, "-c", EVALUATE, tiny_checkpoint, adapter, settings.model_dump_json(), work],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stderr=subprocess.DEVNULL,
    )
    journal = work / FILE
    deadline = time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") < 15:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    kept = journal.read_bytes().count(b"\n")
    assert 15 <= kept < 26
    # As if it had died within a line.
    journal.write_bytes(journal.read_bytes().rstrip(b"\n")[:-7])

    asked = []
    answer = TransformersArm.answer

    def watched(arm, prompts, *arguments):
        asked.append(prompts)
        return answer(arm, prompts, *arguments)

    monkeypatch.setattr(TransformersArm, "answer", watched)
    resumed = _all(tiny_checkpoint, adapters, settings, work=work)
    # One line is of a utility, and one was torn.
    assert len(asked) == 24 - (kept - 2)
    asked.clear()
    assert _all(tiny_checkpoint, adapters, settings, work=work) == resumed
    assert asked == []
    undisturbed = _all(tiny_checkpoint, adapters, settings)
    assert len(asked) == 24
    for name in adapters:
        assert resumed[name].report.to_json() == undisturbed[name].report.to_json()
        assert resumed[name].rows == undisturbed[name].rows


def test_nothing_is_taken_from_an_evaluation_of_something_else(
    tiny_checkpoint, adapter, settings, tmp_path, monkeypatch
):
    from safemerge.evaluation.transformers_arm import TransformersArm

    settings = settings.model_copy(update={"suites": settings.suites[:1]})
    asked = []

    def run(generation=settings.generation, model_digest="m", adapter_digest="a"):
        asked.clear()
        evaluate_arm(
            tiny_checkpoint,
            adapter,
            "x",
            settings.model_copy(update={"generation": generation}),
            model_digest=model_digest,
            adapter_digest=adapter_digest,
            work=tmp_path / "work",
            with_utility=False,
        )
        return len(asked)

    answer = TransformersArm.answer
    monkeypatch.setattr(
        TransformersArm, "answer", lambda arm, texts, *rest: asked.extend(texts) or answer(arm, texts, *rest)
    )
    assert [run(), run()] == [4, 0]
    assert run(model_digest="another") == 4
    assert run(adapter_digest="another") == 4
    assert run(GenerationConfig(max_new_tokens=9, batch_size=4)) == 4
    assert run(GenerationConfig(max_new_tokens=8, batch_size=3)) == 4


def test_utility_is_measured_again_where_the_task_asks_something_else(
    tiny_checkpoint, settings, tmp_path, monkeypatch
):
    from safemerge.evaluation import evaluating

    def run():
        return evaluate_arm(
            tiny_checkpoint,
            None,
            "aligned",
            settings,
            model_digest="m",
            adapter_digest=None,
            work=tmp_path / "work",
        ).report.utility

    first = run()
    measured = []
    measure = evaluating.measure_utility

    def counted(*arguments, **options):
        measured.append(options)
        return measure(*arguments, **options)

    monkeypatch.setattr(evaluating, "measure_utility", counted)
    assert run() == first
    assert measured == []
    monkeypatch.setattr(evaluating, "task_digest", lambda *_, **__: "edited")
    assert run() == first
    assert len(measured) == 1
