"""What ``safemerge evaluate`` calls an arm whose name was not given, and what it prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from safemerge.cli.evaluate import arm_name, asked_of, named_adapter
from safemerge.records import Stopped, SuiteReport


@pytest.mark.parametrize(
    ("adapter", "name"),
    [
        ("models:/support-bot-lora@champion", "support-bot-lora@champion"),
        ("models:/support-bot-lora/3", "support-bot-lora/3"),
        ("runs:/0a1b2c/merge/safemerge", "safemerge"),
        ("mlflow-artifacts:/0/0a1b2c/artifacts/adapter/", "adapter"),
        ("org/support-lora", "support-lora"),
        ("org/support-lora@refs/pr/1", "support-lora@refs/pr/1"),
    ],
)
def test_an_address_gives_the_name_of_what_it_leads_to(adapter: str, name: str) -> None:
    assert arm_name(adapter) == name


@pytest.mark.parametrize("written", ["mine", "mine/", "./mine", "./mine/", "mine/.", "mine/in/.."])
def test_a_folder_gives_its_own_name_however_it_is_written(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine" / "in").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert arm_name(written) == "mine"
    assert arm_name(f"{tmp_path}/mine/") == "mine"


def test_a_name_stands_before_the_first_equals_sign_unless_all_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=2").mkdir()
    for text in ("lr=2", "runs/lr=2", "=x", "x=", "org/name"):
        assert named_adapter(text) == (None, text)
    assert named_adapter("mine=lr=2") == ("mine", "lr=2")
    assert named_adapter("now=models:/bot@champion") == ("now", "models:/bot@champion")


def test_how_many_prompts_were_left_out_is_said() -> None:
    suite = SuiteReport.model_construct(flags={"a": True}, stopped=None)
    assert asked_of(suite) == ""
    stopped = suite.model_copy(update={"stopped": Stopped(planned=130, error=0.01, seed=0)})
    assert asked_of(stopped) == ", stopped early of 130"
