"""Champion versions load back bit for bit, and are not doubled."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest

from safemerge.errors import TrackingError
from safemerge.tracking import tags
from safemerge.tracking.ledger import Ledger, PipelineRun


def register(
    ledger: Ledger,
    run: PipelineRun,
    folder: Path,
    digest: str,
    name: str = "tiny-lora",
    summary: str = "PASS",
    card: str = "# card",
) -> str:
    return ledger.champions.register(
        name,
        folder,
        adapter_digest=digest,
        pipeline_run_id=run.run_id,
        opened_at_ms=run.opened_at_ms,
        source_run_id=run.run_id,
        experiment_id=run.experiment_id,
        summary=summary,
        card=card,
    )


def card_of(ledger: Ledger, version: str) -> str:
    """The model card as it is stored now: of a folder that nothing was fetched to before."""
    with tempfile.TemporaryDirectory() as cache:
        return (ledger.fetch(f"models:/{version}", Path(cache)) / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)))
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    return folder


def test_champion_loads_back_bit_for_bit(
    ledger: Ledger, run: PipelineRun, adapter: Path, tmp_path: Path
) -> None:
    assert ledger.champions.current("tiny-lora") is None
    assert register(ledger, run, adapter, "d1") == "1"
    back = ledger.fetch("models:/tiny-lora@champion", tmp_path / "cache")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (back / name).read_bytes() == (adapter / name).read_bytes()


def test_an_adapter_that_is_a_version_is_not_doubled(ledger: Ledger, run: PipelineRun, adapter: Path) -> None:
    numbers = [register(ledger, run, adapter, digest) for digest in ("d1", "d1", "d2", "d1")]
    assert numbers == ["1", "1", "2", "1"]
    champion = ledger.champions.current("tiny-lora")
    assert champion is not None
    assert str(champion.version) == "1"


def test_an_alias_is_pinned_to_the_version_of_now(ledger: Ledger, run: PipelineRun, adapter: Path) -> None:
    register(ledger, run, adapter, "d1")
    assert ledger.pin("models:/tiny-lora@champion") == "models:/tiny-lora/1"
    assert ledger.pin("runs:/x/y") == "runs:/x/y"
    with pytest.raises(TrackingError, match=r"models:/tiny-lora@nobody.*expected a model version"):
        ledger.pin("models:/tiny-lora@nobody")


def test_a_registration_that_was_killed_is_taken_up(
    ledger: Ledger, run: PipelineRun, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ledger.client, "create_model_version", killed)
        with pytest.raises(KeyboardInterrupt):
            register(ledger, run, adapter, "d1")
    assert ledger.champions.current("tiny-lora") is None
    assert register(ledger, run, adapter, "d1") == "1"
    assert len(ledger.client.search_logged_models([run.experiment_id])) == 1


def test_an_adapter_that_two_models_release_has_the_card_of_each(
    ledger: Ledger, run: PipelineRun, adapter: Path
) -> None:
    for name, by in (("a-lora", "alice"), ("b-lora", "bob"), ("a-lora", "carol")):
        assert register(ledger, run, adapter, "d1", name, card=f"signed by {by}") == "1"
    assert [card_of(ledger, f"{name}@champion") for name in ("a-lora", "b-lora")] == [
        "signed by carol",
        "signed by bob",
    ]


def test_a_copy_that_mlflow_made_is_released_again_and_leaves_the_card_of_the_original(
    ledger: Ledger, run: PipelineRun, adapter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    register(ledger, run, adapter, "d1", "staging", card="signed by alice")
    ledger.client.copy_model_version("models:/staging/1", "prod")
    assert register(ledger, run, adapter, "d1", "prod", "signed by bob", card="signed by bob") == "1"
    champion = ledger.champions.current("prod")
    assert champion is not None
    assert champion.description == "signed by bob"
    assert card_of(ledger, "staging/1") == "signed by alice"
    assert "models:/prod/1, with the files of models:/staging/1, keeps the model card" in caplog.text


@pytest.mark.parametrize(
    ("problem", "says"),
    [("deleted", "not found"), ("another's", "expected files of its own, got those of other")],
)
def test_a_card_that_cannot_be_stored_stops_no_release(
    ledger: Ledger, run: PipelineRun, adapter: Path, problem: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    register(ledger, run, adapter, "d1", card="signed by alice")
    (model,) = ledger.client.search_logged_models([run.experiment_id])
    if problem == "deleted":
        ledger.client.delete_logged_model(model.model_id)
    else:
        ledger.client.set_logged_model_tags(model.model_id, {tags.REGISTERED_MODEL: "other"})
    assert register(ledger, run, adapter, "d1", card="signed by bob") == "1"
    assert card_of(ledger, "tiny-lora@champion") == "signed by alice"
    assert re.search(f"models:/tiny-lora/1, .* keeps the model card that it has: .*{says}", caplog.text)


def test_a_registered_model_is_named_as_models_are(ledger: Ledger, run: PipelineRun, adapter: Path) -> None:
    for _ in range(2):
        assert register(ledger, run, adapter, "d1", "Qwen2.5-0.5B 50%", card="signed") == "1"
    assert card_of(ledger, "Qwen2.5-0.5B 50%@champion") == "signed"


def test_only_a_version_or_an_alias_names_an_adapter(ledger: Ledger) -> None:
    with pytest.raises(TrackingError, match=r"expected models:/<name>/<version> or models:/<name>@<alias>"):
        ledger.pin("models:/tiny-lora/latest")
