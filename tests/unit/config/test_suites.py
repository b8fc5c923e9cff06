"""Suites as data: what a YAML file may say, and the shipped ones."""

from __future__ import annotations

import re

import pytest
import yaml
from pydantic import ValidationError

from safemerge.config.evaluation import SuiteConfig
from safemerge.config.load import load_suite_spec
from safemerge.config.suites import PACKAGE, SHIPPED, SuiteSpec, shipped_names, shipped_suite
from safemerge.errors import ConfigError
from safemerge.records import SuiteKind

SPEC = {
    "name": "mine",
    "title": "Mine",
    "kind": "harmful",
    "file": "prompts.jsonl",
    "size": 2,
    "licence": "CC0-1.0",
    "citation": "me",
}
UNPINNED = {"directharm4", "hex_phi", "advbench"}
"""Suites of which no full commit was seen in a public source."""


def test_the_suites_that_users_ask_for_are_shipped():
    assert {
        "directharm4",
        "hex_phi",
        "advbench",
        "harmbench",
        "jailbreakbench_harmful",
        "jailbreakbench_benign",
        "strongreject",
        "xstest_safe",
        "xstest_unsafe",
        "orbench_hard",
        "safemerge_harmful",
        "safemerge_lookalike",
        "safemerge_ordinary",
    } <= set(shipped_names())


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_suite_is_read_strictly_and_says_what_it_is(name):
    spec = load_suite_spec(SHIPPED / f"{name}.yaml")
    assert spec == shipped_suite(name)
    assert spec.name == name
    assert spec.licence
    assert spec.citation
    if spec.dataset is None:
        assert (PACKAGE / spec.resource).is_file()
    elif name in UNPINNED:
        assert spec.revision is None
    else:
        assert re.fullmatch("[0-9a-f]{40}", spec.revision)
    # Prompts are named, never held.
    assert len((SHIPPED / f"{name}.yaml").read_text(encoding="utf-8").splitlines()) < 40


def test_a_users_file_counts_from_its_folder(tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(SPEC), encoding="utf-8")
    assert load_suite_spec(path).file == str(tmp_path / "prompts.jsonl")
    described = {key: value for key, value in SPEC.items() if key != "file"}
    path.write_text(yaml.safe_dump(described | {"dataset": "org/set", "split": "s"}), encoding="utf-8")
    assert load_suite_spec(path).dataset == "org/set"
    (tmp_path / "org" / "set").mkdir(parents=True)
    assert load_suite_spec(path).dataset == str(tmp_path / "org" / "set")
    path.write_text(yaml.safe_dump(SPEC | {"sise": 3}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"suite\.yaml: line 6, sise: unknown key; did you mean size\?"):
        load_suite_spec(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": None}, "expected one of dataset, file, resource, got none of them"),
        ({"resource": "x"}, "got file and resource"),
        ({"file": None, "dataset": "a/b"}, "expected a split or files of the data set, got both or neither"),
        ({"file": None, "dataset": "a/b", "split": "x", "files": {"c": "f"}}, "got both or neither"),
        ({"revision": "x"}, "expected revision, subset, split and files with a dataset alone"),
        ({"size": 0}, "greater than 0"),
        ({"licence": None}, "valid string"),
        ({"kind": "harmless"}, "'harmful' or 'over_refusal'"),
    ],
)
def test_what_says_too_little_or_too_much_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        SuiteSpec.model_validate(SPEC | changes)


def test_a_shipped_suite_is_taken_by_name():
    suite = SuiteConfig(suite="safemerge_ordinary")
    assert (suite.name, suite.kind, suite.path) == ("safemerge_ordinary", SuiteKind.OVER_REFUSAL, None)
    assert SuiteConfig(suite="directharm4", name="harm", revision="main").name == "harm"
    assert SuiteConfig.model_validate(suite.model_dump(mode="json")) == suite


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"suite": "directharm"}, "got 'directharm'; did you mean directharm4?"),
        ({"suite": "zzz"}, "expected one of advbench, .*xstest_unsafe"),
        ({"suite": "xstest_safe", "kind": "harmful"}, "expected kind over_refusal for suite xstest_safe"),
        ({"suite": "xstest_safe", "path": "x.jsonl"}, "expected a suite or a path, got both or neither"),
        ({"name": "x", "kind": "harmful"}, "expected a suite or a path, got both or neither"),
        ({"name": "x", "kind": "harmful", "path": "x.jsonl", "revision": "y"}, "got one with a file"),
        ({"path": "x.jsonl"}, "name\n.*Field required"),
        ({"suite": 3}, "suite\n.*valid string"),
    ],
)
def test_a_suite_is_named_once_and_rightly(given, message):
    with pytest.raises(ValidationError, match=message):
        SuiteConfig.model_validate(given)


def test_the_table_of_suites_says_what_their_files_say():
    lines = (SHIPPED / "README.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| `")]
    assert [row[0].strip("`") for row in cells] == shipped_names()
    for name, kind, size, source, commit, licence in cells:
        spec = shipped_suite(name.strip("`"))
        assert (kind.replace("-", "_"), int(size)) == (spec.kind, spec.size)
        assert (spec.dataset or spec.resource) in source
        assert commit.strip("`") == (spec.revision[:7] if spec.revision else commit)
        assert licence.startswith(spec.licence)
        assert ("gated" in licence) == (spec.access is not None)
