"""What opening a run would find wrong with a config, as far as this machine can tell without any network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from safemerge.config.base import HUB_ID
from safemerge.config.evaluation import SuiteConfig, UtilityConfig
from safemerge.config.grid import SweepGrid
from safemerge.config.load import load_suite_spec
from safemerge.config.pipeline import PipelineConfig
from safemerge.config.suites import SuiteSpec, shipped_suite
from safemerge.config.training import DataSource
from safemerge.errors import DataError, MissingDependencyError, SafemergeError
from safemerge.gate import SuiteSize, check_decidable, check_suites
from safemerge.pipeline.opening import check_judges, check_merge, check_models_differ


def offline_problems(config: PipelineConfig, *, tasks: bool = False) -> list[str]:
    """Everything that is found, each with the key it is about.

    Files and folders of this machine are read as a run would read them. Of models, data sets and suites
    on the hub only the names are looked at: whether the hub gives them, opening a run finds.

    Args:
        config: as :mod:`safemerge.config.load` reads it.
        tasks: whether lm-eval is asked for the utility tasks too, where it is installed. It reads thousands
            of its own for those that lie in no ``include_path``: seconds, once in a process.
    """
    problems = []
    for key, check in [*_checks(config), *(_task_checks(config) if tasks else ())]:
        try:
            check()
        except MissingDependencyError:
            continue  # of the workers' libraries; a laptop that writes recipes may lack them
        except SafemergeError as error:
            problems.append(f"{key}: {error}")
    return problems


def _checks(config: PipelineConfig) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "merge", partial(check_merge, config)
    for role in ("aligned_model", "unaligned_model"):
        yield role, partial(_check_model, getattr(config, role))
    yield "unaligned_model", partial(check_models_differ, config)
    yield "unaligned_model", partial(_check_pair, config)
    for role in ("task_training", "safety_training"):
        for number, source in enumerate(getattr(config, role).data):
            yield f"{role}.data.{number}", partial(_check_source, source)
    for number, suite in enumerate(config.evaluation.suites):
        yield f"evaluation.suites.{number}", partial(_size, suite)
    for section, task in _tasks(config).items():
        yield f"{section}.include_path", partial(_check_include_path, task)
    yield "evaluation.judge", partial(check_judges, config)
    yield "gate", partial(_check_gate, config)
    if config.tuning is not None:
        yield "tuning.grid", partial(_check_grid, config.tuning.known_grid)
        yield "tuning.learning", partial(_check_learning, config)
        for number, suite in enumerate(config.tuning.suites):
            yield f"tuning.suites.{number}", partial(_size, suite)
        yield "tuning.suites", partial(_check_unseen, config)


def _task_checks(config: PipelineConfig) -> Iterator[tuple[str, Callable[[], object]]]:
    for section, task in _tasks(config).items():
        yield section, partial(_check_task, task)


def _tasks(config: PipelineConfig) -> dict[str, UtilityConfig]:
    """Key to utility task: that of the evaluation, and that of the development split."""
    chosen_by = {} if config.tuning is None else {"tuning.utility": config.tuning.utility}
    return {"evaluation.utility": config.evaluation.utility} | chosen_by


def _check_model(source: str) -> None:
    from safemerge.storage.checkpoints import Checkpoint
    from safemerge.storage.hub import resolve

    if HUB_ID.fullmatch(source) is None:
        Checkpoint.open(resolve(source, here=False))


def _check_pair(config: PipelineConfig) -> None:
    from safemerge.storage.checkpoints import Checkpoint, check_same_architecture

    folders = [Path(config.aligned_model), Path(config.unaligned_model)]
    if all(folder.is_absolute() and folder.is_dir() for folder in folders):
        check_same_architecture(*(Checkpoint.open(folder) for folder in folders))


def _check_source(source: DataSource) -> None:
    from safemerge.training.data import load_examples

    if Path(source.path).is_absolute():
        load_examples([source])


def _check_include_path(task: UtilityConfig) -> None:
    if task.include_path is not None and not Path(task.include_path).is_dir():
        raise DataError(f"expected a folder of lm-eval tasks, got none at {task.include_path}")


def _check_task(task: UtilityConfig) -> None:
    from safemerge.evaluation.libraries import check_lm_eval
    from safemerge.evaluation.utility import check_task

    check_lm_eval()
    if task.include_path is None or Path(task.include_path).is_dir():  # else said of the folder
        check_task(task.task, task.metric, task.include_path, task.filter)


def _size(suite: SuiteConfig) -> SuiteSize:
    """How many prompts a suite has, read where it lies here, else as its description says."""
    from safemerge.evaluation.suites import asked_places, read_suite, size

    spec = _spec(suite)
    if spec is None or spec.dataset is None or Path(spec.dataset).is_absolute():
        return size(read_suite(suite))
    if not (suite.revision or spec.revision):
        raise DataError(f"suite {spec.name}: expected a revision of the data set {spec.dataset}, got none")
    return SuiteSize(suite.name, suite.kind, len(asked_places(spec.size, suite)), {})


def _spec(suite: SuiteConfig) -> SuiteSpec | None:
    if suite.suite is not None:
        return shipped_suite(suite.suite)
    path = Path(str(suite.path))
    return load_suite_spec(path) if path.suffix in (".yaml", ".yml") else None


def _check_grid(grid: SweepGrid) -> None:
    from safemerge.engine.sweeping import candidates

    candidates(grid)


def _check_learning(config: PipelineConfig) -> None:
    """Check what is fitted; with the data, where all of it lies on this machine."""
    if config.tuning is None or config.tuning.learning is None:
        return
    from safemerge.engine.learning import check_fits, check_learning

    sources = [*config.task_training.data, *config.safety_training.data]
    if all(Path(source.path).is_absolute() for source in sources) and _suites_are_here(config):
        check_learning(config)
    else:
        check_fits(config)


def _check_unseen(config: PipelineConfig) -> None:
    """Check that the choice sees no prompt of the final split, where both lie on this machine."""
    from safemerge.engine.race import check_unseen

    if _suites_are_here(config):
        check_unseen(config)


def _suites_are_here(config: PipelineConfig) -> bool:
    """Whether both splits lie on this machine, and none on the hub."""
    suites = [*config.evaluation.suites, *(config.tuning.suites if config.tuning else ())]
    specs = [_spec(suite) for suite in suites]
    return all(spec is None or spec.dataset is None or Path(spec.dataset).is_absolute() for spec in specs)


def _check_gate(config: PipelineConfig) -> None:
    sizes = []
    for suite in config.evaluation.suites:
        try:
            sizes.append(_size(suite))
        except SafemergeError:
            return  # said of the suite itself
    if config.gate.max_category_harmful_rate is None:  # categories of suites on the hub are not known here
        check_suites(config.gate, sizes)
    check_decidable(config.gate, sizes)
