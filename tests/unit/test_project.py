"""The project's own files agree with each other."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import safemerge

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = {"help", "setup", "demo", "test", "test-all", "lint", "up", "down", "clean"}
TARGETS |= {"coverage", "compose-test", "chaos-test", "docs"}


def make(*arguments):
    # The tests themselves may have been started by make, which then would speak of its folders.
    command = ["make", "--no-print-directory", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return run.returncode, run.stdout, run.stderr


def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {normalised(name): version for name, version in found}


def normalised(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_make_explains_every_target_and_does_so_by_default():
    code, shown, _ = make("help")
    assert code == 0
    assert {line.split()[1] for line in shown.splitlines()} == TARGETS
    assert all(len(line.split()) > 4 for line in shown.splitlines())
    assert make() == (0, shown, "")


def test_every_target_is_phony():
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert set(phony.split()) == TARGETS


def test_setup_says_which_python_is_needed(tmp_path):
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.1 && exit 0\nexit 1\n')
    old.chmod(0o755)
    code, _, said = make("setup", f"PYTHON={old}", f"VENV={tmp_path}/venv")
    assert code != 0
    assert "safemerge needs Python 3.11 or newer" in said
    assert "Python 3.9.1" in said
    assert not (tmp_path / "venv").exists()


def test_ci_runs_the_targets():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    stages = re.findall(r"^stage (\S+)$", script.read_text(encoding="utf-8"), re.MULTILINE)
    assert stages.index("test") < stages.index("demo")
    assert set(stages) <= TARGETS


NEEDS_CUDA = {"quantization", "vllm"}
EXTRAS = PYPROJECT["project"]["optional-dependencies"].keys() - NEEDS_CUDA


@pytest.mark.parametrize("extra", [None, *sorted(EXTRAS)])
def test_every_direct_dependency_has_a_tested_version(extra):
    project = PYPROJECT["project"]
    wanted = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    names = {normalised(re.split(r"[\[<>=,]", requirement)[0]) for requirement in wanted} - {"safemerge"}
    assert names
    assert names <= pins().keys()


def test_images_take_tested_versions():
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    installs = re.findall(r"pip install (?!--no-deps)(.*?)(?: &&.*)?$", dockerfile, re.MULTILINE)
    assert len(installs) == 4
    assert all(line.startswith("-c constraints.txt ") for line in installs)
    words = " ".join(installs).replace('"', "").split()
    names = {normalised(word.partition("[")[0]) for word in words if re.match("[a-z]", word)}
    assert {"mlflow", "apache-airflow", "torch"} <= names
    assert names - {"constraints-txt"} <= pins().keys()


COMPOSE_FILES = sorted(ROOT.glob("docker-compose*.yml"))
EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
SETTINGS = dict(re.findall(r"^([A-Z0-9_]+)=(.*)$", EXAMPLE, re.MULTILINE))


def test_example_explains_every_setting_of_compose():
    used = re.findall(
        r"\$\{([A-Z0-9_]+)", "".join(file.read_text(encoding="utf-8") for file in COMPOSE_FILES)
    )
    assert set(used) == SETTINGS.keys()


@pytest.mark.parametrize("file", COMPOSE_FILES, ids=lambda file: file.name)
def test_compose_defaults_are_those_of_the_example(file):
    defaults = re.findall(r"\$\{([A-Z0-9_]+):-([^}]*)\}", file.read_text(encoding="utf-8"))
    assert [(name, default) for name, default in defaults if SETTINGS[name] != default] == []


def test_secrets_have_no_default():
    _, _, secrets = EXAMPLE.partition("# --- secrets")
    names = re.findall(r"^([A-Z_]+)=$", secrets, re.MULTILINE)
    assert set(names) == {name for name in SETTINGS if re.search("_(PASSWORD|SECRET|KEY)$", name)} - {
        "AWS_SECRET_ACCESS_KEY"
    }
    text = "".join(file.read_text(encoding="utf-8") for file in COMPOSE_FILES)
    assert [name for name in names if f"${{{name}:?" not in text or f"${{{name}:-" in text] == []


def test_secrets_are_generated_once_and_differ(tmp_path):
    target = tmp_path / ".env"
    make_env = [ROOT / "docker" / "make-env", target]
    subprocess.run(make_env, check=True, capture_output=True)
    assert target.stat().st_mode & 0o077 == 0
    written = dict(re.findall(r"^([A-Z0-9_]+)=(.*)$", target.read_text(encoding="utf-8"), re.MULTILINE))
    generated = {name: value for name, value in written.items() if value != SETTINGS[name]}
    assert len(set(generated.values())) == len(generated) == 12
    for name, value in generated.items():
        assert re.fullmatch(
            r"([A-Za-z0-9]{43}=){2}" if name.endswith("_SECRET") else r"[A-Za-z0-9]{43}=", value
        )
    again = subprocess.run(make_env, check=False, capture_output=True, text=True)
    assert again.returncode == 1
    assert "exists and is kept" in again.stderr


def test_constraints_hold_plain_versions():
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pins().values())
    assert tuple(map(int, pins()["celery"].split("."))) < (5, 7)


def test_versions_agree():
    assert PYPROJECT["project"]["version"] == safemerge.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## (\[Unreleased\]|\[?{re.escape(safemerge.__version__)})", changes, re.MULTILINE)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_documents_name_only_targets_that_exist(name):
    code = re.findall(r"```.*?```|`[^`]+`", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
    named = set(re.findall(r"\bmake ([a-z-]+)", "\n".join(code)))
    assert named <= TARGETS
    assert {"demo", "test"} <= named


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_documents_link_to_files_that_exist(name):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []
