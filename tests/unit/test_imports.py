"""What importing costs, which rules imports obey, and that every module explains itself."""

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import safemerge

ROOT = Path(__file__).parents[2]
HEAVY = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "lm_eval",
    "datasets",
    "mlflow",
    "airflow",
    "scipy",
    "statsmodels",
)
SOURCES = sorted(
    path
    for folder in ("safemerge", "plugins", "dags", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)


def named(path):
    return str(path.relative_to(ROOT))


def fresh(code):
    """Run code in a fresh interpreter and return what it prints."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize(
    "modules",
    [
        "safemerge, safemerge.records, safemerge.errors",
        "safemerge.gate, safemerge.stats",
        "safemerge.config.pipeline, safemerge.config.load",
        "safemerge.cli.main",
    ],
)
def test_light_modules_load_nothing_heavy(modules):
    loaded = fresh(f"import sys, {modules}; print(*sorted(set({HEAVY}) & sys.modules.keys()))")
    assert loaded.split() == []


def test_scoring_and_merging_load_no_library_of_models():
    rest = tuple(name for name in HEAVY if name != "torch")
    loaded = fresh(
        f"import sys, safemerge.engine.merging, safemerge.plots; print(*set({rest}) & sys.modules.keys())"
    )
    assert loaded.split() == []


def test_the_gate_decides_without_anything_heavy():
    code = f"""
import sys
from safemerge.gate import GatePolicy, decide
from safemerge.records import EvaluationReport
from safemerge.stats import gain_kept
report = EvaluationReport(arm="a", adapter_digest=None, model_digest="m", utility=None, suites=())
policy = GatePolicy(max_harmful_rate=0.1, max_over_refusal_rate=0.1, min_gain_kept=0.9)
decision = decide(report, None, None, policy)
gain_kept(*3 * [{{"a": 1.0, "b": 2.0}}])
print(decision.passed, *sorted(set({HEAVY}) & sys.modules.keys()))
"""
    assert fresh(code).split() == ["False"]


def test_import_rules_hold():
    lint = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run(
        [lint, "--no-logo", "--no-cache"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stdout


def runs_on_import(tree):
    """Statements that importing a module executes: all but the bodies of functions."""
    todo = list(tree.body)
    while todo:
        node = todo.pop()
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            todo.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("path", [p for p in SOURCES if p.is_relative_to(ROOT / "safemerge")], ids=named)
def test_the_library_reads_no_environment_on_import(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.attr for node in runs_on_import(tree) if isinstance(node, ast.Attribute)}
    assert not names & {"environ", "getenv"}


def test_sources_are_found():
    assert len(SOURCES) > 30
    assert len(list(pkgutil.iter_modules(safemerge.__path__))) >= 10


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_every_module_explains_itself_and_stays_readable(path):
    text = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring
    assert len(docstring) > 20
    assert len(text.splitlines()) <= 500
