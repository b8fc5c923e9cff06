from __future__ import annotations

import json
import sys

import pytest
import yaml

from safemerge.config.evaluation import SuiteConfig
from safemerge.config.suites import SuiteSpec
from safemerge.errors import DataError, MismatchError, MissingDependencyError
from safemerge.evaluation.suites import (
    ChatFormat,
    Prompt,
    Suite,
    load_described,
    load_suite,
    read_suite,
    repeated_prompts,
)
from safemerge.records import SuiteKind

GOOD = '{"id": "a", "prompt": "How?", "category": "fire"}\n\n{"id": "b", "prompt": "Why?", "note": 1}\n'


def _load(tmp_path, text):
    path = tmp_path / "suite.jsonl"
    path.write_text(text, encoding="utf-8")
    return load_suite("s", SuiteKind.HARMFUL, path)


def test_a_suite_is_read_in_order(tmp_path):
    expected = (Prompt("a", "How?", "fire"), Prompt("b", "Why?", None))
    where = str(tmp_path / "suite.jsonl")
    assert _load(tmp_path, GOOD) == Suite("s", SuiteKind.HARMFUL, expected, source=where)


def test_a_line_separator_within_a_prompt_does_not_end_the_line(tmp_path):
    row = {"id": "a", "prompt": "one\u2028two"}
    assert _load(tmp_path, json.dumps(row, ensure_ascii=False)).prompts[0].text == "one\u2028two"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one prompt, got an empty suite"),
        ("\n \n", "at least one prompt, got an empty suite"),
        ('{"id": "a", "prompt": "x"}\n{"id":', "line 2: expected a JSON object, got malformed JSON"),
        ("[" * 5000, "line 1: expected a JSON object, got malformed JSON .nested too deeply."),
        ('["a"]', "line 1: expected a JSON object, got list"),
        ('{"prompt": "x"}', "line 1: expected the key 'id', got prompt"),
        ('{"id": "a"}', "line 1: expected the key 'prompt', got id"),
        ("{}", "line 1: expected the key 'id', got no key"),
        ('{"id": 1, "prompt": "x"}', "line 1: expected 'id' to be a text that is not empty, got 1"),
        ('{"id": "a", "prompt": " "}', "line 1: expected 'prompt' to be a text that is not empty, got ' '"),
        (
            '{"id": "a", "prompt": "x", "category": 3}',
            "line 1: expected 'category' to be a text that is not empty, got 3",
        ),
        (
            '{"id": "a", "prompt": "x"}\n\n{"id": "a", "prompt": "y"}',
            r"line 3: expected ids that differ, got 'a' again \(first on line 1\)",
        ),
    ],
)
def test_bad_suites_are_refused_by_file_and_line(tmp_path, text, message):
    with pytest.raises(DataError, match=rf"suite\.jsonl.*{message}"):
        _load(tmp_path, text)


def test_a_missing_file_and_a_binary_one_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: expected a suite of prompts, got no such file"):
        load_suite("s", SuiteKind.HARMFUL, tmp_path / "none.jsonl")
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"x\.jsonl: expected UTF-8 text"):
        load_suite("s", SuiteKind.HARMFUL, tmp_path / "x.jsonl")


def test_the_digest_follows_the_prompts_alone(tmp_path):
    suite = _load(tmp_path, GOOD)
    assert suite._replace(name="other").digest() == suite.digest()
    assert _load(tmp_path, GOOD.replace("How", "Who")).digest() != suite.digest()
    assert suite._replace(prompts=suite.prompts[:1]).digest() != suite.digest()


# --- described by data ------------------------------------------------------------


def _described(tmp_path, **changes):
    text = '{"q": "How?", "n": 7, "kind": "x"}\n{"q": "Why?", "n": 8, "kind": "y"}\n'
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    return SuiteSpec.model_validate(
        {
            "name": "mine",
            "title": "Mine",
            "kind": "harmful",
            "file": str(tmp_path / "rows.jsonl"),
            "columns": {"prompt": "q", "category": "kind"},
            "size": 2,
            "licence": "CC0-1.0",
            "citation": "me",
            **changes,
        }
    )


def test_columns_are_taken_by_their_names_and_rows_numbered(tmp_path):
    suite = load_described(_described(tmp_path))
    assert suite.prompts == (Prompt("mine-0001", "How?", "x"), Prompt("mine-0002", "Why?", "y"))
    assert suite.source == str(tmp_path / "rows.jsonl")
    numbered = _described(tmp_path, columns={"id": "n", "prompt": "q"})
    assert load_described(numbered).prompts == (Prompt("7", "How?"), Prompt("8", "Why?"))


def test_rows_are_chosen_by_their_columns_and_counted(tmp_path):
    chosen = load_described(_described(tmp_path, where={"kind": "y"}, size=1))
    assert chosen.prompts == (Prompt("mine-0002", "Why?", "y"),)
    with pytest.raises(DataError, match=r"suite mine: expected 3 prompts in .*rows\.jsonl, got 2"):
        load_described(_described(tmp_path, size=3))
    with pytest.raises(DataError, match="line 1: expected the key 'z', got kind, n, q"):
        load_described(_described(tmp_path, columns={"prompt": "z"}))


def test_the_form_of_the_chat_is_in_the_digest(tmp_path):
    plain, told = (load_described(_described(tmp_path, system_prompt=text)) for text in (None, "Be kind."))
    assert (plain.chat, told.chat) == (ChatFormat(), ChatFormat("Be kind."))
    assert plain.prompts == told.prompts
    assert plain.digest() != told.digest()


def test_a_hub_data_set_needs_a_revision(tmp_path):
    spec = _described(tmp_path, file=None, dataset="org/set", split="test")
    with pytest.raises(DataError, match=r"expected a revision of the data set org/set, got none: its file"):
        load_described(spec)
    with pytest.raises(DataError, match=r"directharm4: expected a revision of the data set vfleaking/Direct"):
        read_suite(SuiteConfig(suite="directharm4"))


def test_a_hub_data_set_is_no_folder_of_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "org" / "set").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    spec = _described(tmp_path, file=None, dataset="org/set", split="test")
    with pytest.raises(DataError, match="expected a revision of the data set org/set"):
        load_described(spec)
    with pytest.raises(DataError, match=r"org/set: expected a data set of the hub, got .*/org/set too"):
        load_described(spec, "v1")


def test_a_hub_data_set_out_of_reach_says_how_access_is_had():
    # The tests run offline; a refused request ends in the same place.
    with pytest.raises(DataError, match=r"LLM-Tuning-Safety/HEx-PHI \(access is limited: agree to .*got: "):
        read_suite(SuiteConfig(suite="hex_phi", revision="main"))
    with pytest.raises(DataError, match="expected the data set bench-llm/or-bench, got: "):
        read_suite(SuiteConfig(suite="orbench_hard"))


@pytest.fixture
def data_set(tmp_path, monkeypatch):
    """A data set as on the hub: a folder that ``datasets`` reads, cached apart."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    return folder


def test_a_data_set_is_read_by_datasets(data_set, tmp_path):
    rows = [{"q": f"Question {n}?", "kind": "even" if n % 2 == 0 else "odd"} for n in range(6)]
    (data_set / "test.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    spec = _described(tmp_path, file=None, dataset=str(data_set), split="test", where={"kind": "odd"}, size=3)
    suite = load_described(spec)
    assert suite.prompts[0] == Prompt("mine-0002", "Question 1?", "odd")
    assert len(suite.prompts) == 3


def test_files_without_a_header_lose_no_prompt_and_name_the_category(data_set, tmp_path):
    (data_set / "category_1.csv").write_text('First?\n"Second, third?"\n', encoding="utf-8")
    (data_set / "category_3.csv").write_text("Fourth?\n", encoding="utf-8")
    files = {"illegal": "category_1.csv", "hate": "category_3.csv"}
    spec = _described(tmp_path, file=None, dataset=str(data_set), files=files, size=3, columns={})
    assert load_described(spec).prompts == (
        Prompt("mine-0001", "First?", "illegal"),
        Prompt("mine-0002", "Second, third?", "illegal"),
        Prompt("mine-0003", "Fourth?", "hate"),
    )


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match="datasets is not installed"):
        read_suite(SuiteConfig(suite="orbench_hard"))


@pytest.mark.parametrize("name", ["safemerge_harmful", "safemerge_lookalike", "safemerge_ordinary"])
def test_the_projects_own_suites_work_offline(name):
    suite = read_suite(SuiteConfig(suite=name, name="own", limit=5))
    assert (suite.name, len(suite.prompts)) == ("own", 5)
    assert all(prompt.category for prompt in suite.prompts)


def test_a_users_yaml_file_is_read_and_must_be_of_the_kind_named(tmp_path):
    spec = _described(tmp_path).model_dump(mode="json", exclude_none=True)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(spec | {"file": "rows.jsonl"}), encoding="utf-8")
    named = {"name": "m", "path": str(tmp_path / "mine.yaml")}
    suite = read_suite(SuiteConfig(kind="harmful", **named))
    assert (suite.name, [prompt.text for prompt in suite.prompts]) == ("m", ["How?", "Why?"])
    with pytest.raises(MismatchError, match=r"mine\.yaml: expected a suite of kind over_refusal, got"):
        read_suite(SuiteConfig(kind="over_refusal", **named))


def test_a_prompt_that_no_file_can_hold_is_refused(tmp_path):
    with pytest.raises(DataError, match="line 1: expected 'prompt' in valid Unicode, got surrogates"):
        _load(tmp_path, '{"id": "a", "prompt": "x\\ud800"}')


def test_a_part_of_a_suite_counts_in_its_own_order_or_in_one_drawn_at_random(tmp_path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text("\n".join(json.dumps({"id": str(i), "prompt": f"Question {i}?"}) for i in range(9)))

    def ids(**part: int) -> list[str]:
        suite = read_suite(SuiteConfig(name="s", kind=SuiteKind.HARMFUL, path=str(path), **part))
        return [prompt.id for prompt in suite.prompts]

    assert ids(skip=2, limit=3) == ["2", "3", "4"]
    assert ids(skip=7, limit=3) == ["7", "8"]
    drawn = ids(shuffle=1)
    assert sorted(drawn) == ids() != drawn
    assert drawn != ids(shuffle=2)
    assert ids(shuffle=1, limit=4) + ids(shuffle=1, skip=4) == drawn
    with pytest.raises(DataError, match="suite s: expected more than the 9 prompts to skip, got 9"):
        ids(skip=9)


def test_prompts_that_repeat_others_are_counted(tmp_path) -> None:
    """Each has an id, a flag and so a vote of its own; greedy answers to them are one and the same."""
    asked = ["How?", "how? ", "Why?", "HOW?"]
    lines = [json.dumps({"id": str(i), "prompt": prompt}) for i, prompt in enumerate(asked)]
    suite = _load(tmp_path, "\n".join(lines))
    assert list(repeated_prompts([suite, suite._replace(prompts=suite.prompts[1:3])])) == [
        "suite s: 2 of its 4 prompts repeat others, so that its intervals are narrower than 2 prompts make "
        "them"
    ]
