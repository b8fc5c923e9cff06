"""Choose a merge by evidence: candidates of one scoring, measured in rounds; the choice on a fresh split.

The folder beside the output, ``.<output>.unfinished``, holds candidates and reports until the output is
there: a killed choice that is started again measures only what is missing.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from safemerge.arms import ALIGNED, FINE_TUNED, SAFEMERGE, SCALE
from safemerge.config.grid import SweepGrid
from safemerge.config.learning import LearningConfig
from safemerge.config.pipeline import PipelineConfig
from safemerge.core import methods
from safemerge.core.options import SELECTIONS, MergeOptions
from safemerge.core.scoring import Progress
from safemerge.engine.coefficient_files import with_learned
from safemerge.engine.measuring import Measurer
from safemerge.engine.merging import (
    digested_settings,
    merge_options,
    merge_settings,
    option_settings,
    write_merge,
)
from safemerge.engine.race import (
    UTILITY_ROUND,
    Race,
    Reports,
    Stage,
    check_unseen,
    reference_settings,
    round_settings,
    tuning_of,
)
from safemerge.engine.race_report import Entry, arm_figures, choice_report
from safemerge.engine.scores import ScoredAdapters, score_adapters
from safemerge.engine.sweeping import candidates, files_by_candidate
from safemerge.errors import ConfigError
from safemerge.evaluation.libraries import check_libraries
from safemerge.evaluation.utility import check_task
from safemerge.records import MERGE_REPORT_FILE, EvaluationReport, MergeReport, json_digest
from safemerge.reports.tuning import CHOSEN_ARM, TuneReport
from safemerge.storage.adapters import adapter_digest
from safemerge.storage.atomic import atomic_folder, check_absent, unfinished
from safemerge.storage.checkpoints import Checkpoint
from safemerge.storage.hub import named_in_config, resolve

logger = logging.getLogger(__name__)

REPORT_FILE = "safemerge_tune.json"
PAGE_FILE = "safemerge_tune.html"
SNIPPET_FILE = "merge.yaml"
COEFFICIENTS_FILE = "coefficients.json"


def tune_adapters(
    config: PipelineConfig,
    task_adapter: str | Path,
    safety_adapter: str | Path | None,
    *,
    output: str | Path,
    learning: LearningConfig | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> TuneReport:
    """Choose the merge of least harm whose utility is not inferior, on the pipeline's development split.

    Args:
        config: The pipeline: its models, its ``tuning`` and its ``evaluation``, whose suites and task give
            the final figures.
        task_adapter: Folder or hub id of the adapter to repair.
        safety_adapter: Folder or hub id of the adapter that carries safety; None where no method needs one.
        output: Folder to make for the report, a page, settings to paste, and the adapter; it must not exist.
        learning: How coefficients are fitted to the pipeline's training data, each λ of which is a candidate
            among the others; None takes the config's ``tuning.learning``, and fits none where it has none.
        device: Where layers are scored.
        progress: Called after each scored layer.

    Returns:
        The report, which is also in the folder. Where no candidate keeps the limits, its ``chosen`` is None
        and there is no adapter.

    Raises:
        SafemergeError: config, files or an evaluation are wrong; the output is then not made.
    """
    output = Path(output)
    check_absent(output)
    tuning = tuning_of(config)
    if learning is not None:
        tuning = tuning.model_copy(update={"learning": learning})
        config = config.model_copy(update={"tuning": tuning})
    candidates(tuning.known_grid)  # what is wrong with it is said before anything is learned
    if tuning.learning is not None:
        from safemerge.engine.learning import check_learning

        check_learning(config)
    arms = _arms(config, safety_adapter is not None)
    check_libraries(config.evaluation.engine)
    split = check_unseen(config)
    model = resolve(config.aligned_model, here=False)
    work = unfinished(output)
    for task in (tuning.utility, config.evaluation.utility):
        check_task(task.task, task.metric, task.include_path, task.filter, tokenizer=str(model))

    learned = _learned(config, task_adapter, safety_adapter, tuning.learning, device, work)
    grid = with_learned(tuning.grid, learned)
    merges, files = candidates(grid), files_by_candidate(grid)
    scored = score_adapters(
        task_adapter,
        safety_adapter,
        named_in_config(config.aligned_model),
        named_in_config(config.unaligned_model),
        merges=[*merges.values(), *arms.values()],
        device=device,
        progress=progress,
    )
    folders = {name: _written(scored, options, name, work) for name, options in merges.items()}
    sections = merge_sections(grid)
    entries = {name: entry_of(sections[name], folders[name]) for name in merges}
    measurer = Measurer(model, Checkpoint.open(model).files_digest(), work / "reports")
    race = Race(tuning, {name: entry.layers for name, entry in entries.items()}, split)

    started_s = time.monotonic()
    reports, stage = _run(config, race, measurer, scored.task.folder, folders)
    wall_s = None if measurer.reused else time.monotonic() - started_s
    final: dict[str, EvaluationReport] = {}
    if stage.chosen is not None:
        if SCALE in tuning.arms:
            arms[SCALE] = MergeOptions(method="scale", task_weight=merges[stage.chosen].weights[0])
        others = {name: _written(scored, options, name, work) for name, options in arms.items()}
        final = measurer.measure(
            {ALIGNED: None, FINE_TUNED: scored.task.folder, CHOSEN_ARM: folders[stage.chosen]} | others,
            # Arms are shown beside each other: all are asked the whole suites.
            config.evaluation.model_copy(update={"sequential": None}),
        )
    report = choice_report(
        config,
        race,
        entries,
        reports,
        stage,
        scored.digests,
        wall_s=wall_s,
        final=[arm_figures(name, found, final) for name, found in final.items()],
        warnings=scored.warnings,
    )
    with atomic_folder(output) as folder:
        write_choice(report, folder, None if stage.chosen is None else folders[stage.chosen], final)
        if report.chosen in files:
            shutil.copyfile(files[report.chosen], folder / COEFFICIENTS_FILE)
    shutil.rmtree(work, ignore_errors=True)
    return report


def write_choice(
    report: TuneReport,
    folder: Path,
    adapter: Path | None = None,
    final: Mapping[str, EvaluationReport] | None = None,
) -> None:
    """Put report, page, settings to paste and the adapter into a folder."""
    from safemerge.plots.tune import tune_html

    (folder / REPORT_FILE).write_text(report.to_json(), encoding="utf-8")
    (folder / PAGE_FILE).write_text(tune_html(report), encoding="utf-8")
    if report.chosen is not None:
        (folder / SNIPPET_FILE).write_text(snippet(report), encoding="utf-8")
    if adapter is not None:
        shutil.copytree(adapter, folder / CHOSEN_ARM)
    for name, found in (final or {}).items():
        (folder / "final").mkdir(exist_ok=True)
        (folder / "final" / f"{name}.json").write_text(found.to_json(), encoding="utf-8")


def snippet(report: TuneReport) -> str:
    """The ``merge`` section of the choice, for a config file."""
    import yaml

    settings = report.winner.settings
    if "coefficients" in settings:
        settings = settings | {"coefficients": COEFFICIENTS_FILE}
    section = yaml.safe_dump({"merge": settings}, sort_keys=False)
    return f"# Chosen by safemerge tune: {report.summary}\n{section}"


def merge_sections(grid: SweepGrid) -> dict[str, dict[str, JsonValue]]:
    """Candidate to what sets it apart from the defaults, as a config's ``merge`` section.

    A file of coefficients is called by its name alone: where it lies is no part of a choice.
    """
    usual = {"on_undefined": "keep", "seed": 0}
    files = files_by_candidate(grid)

    def section(name: str, options: MergeOptions) -> dict[str, JsonValue]:
        settings = option_settings(options)
        if name in files:
            settings["coefficients"] = files[name].name
        return {k: value for k, value in settings.items() if value is not None and usual.get(k) != value}

    return {name: section(name, options) for name, options in candidates(grid).items()}


def _run(
    config: PipelineConfig, race: Race, measurer: Measurer, task: Path, folders: Mapping[str, Path]
) -> tuple[Reports, Stage]:
    """Measure round by round until nobody is left to be measured."""
    settings = reference_settings(config.evaluation, race.tuning)
    both = measurer.measure({ALIGNED: None, FINE_TUNED: task}, settings)
    found: dict[str, list[EvaluationReport]] = {name: [] for name in folders}
    reports = Reports(both[ALIGNED], both[FINE_TUNED], found)
    asked, asking_s = 0, 0.0
    while (stage := race.stage(reports)).round is not None:
        number = stage.round
        most = race.most_prompts(number, len(stage.names))
        eta = f", about {asking_s / asked * most:.0f} s" if asked else ""
        what = "utility" if number == UTILITY_ROUND else f"round {number} of {race.last}"
        logger.info("%s: %d candidates, at most %d prompts to go%s", what, len(stage.names), most, eta)
        settings = round_settings(config.evaluation, race.tuning, race.sizes, number)
        started_s = time.monotonic()
        adapters = {name: folders[name] for name in stage.names}
        for name, report in measurer.measure(adapters, settings, utility=number in race.scorings).items():
            found[name].append(report)
            asked += sum(suite.n for suite in report.suites)
        if number != UTILITY_ROUND:
            asking_s += time.monotonic() - started_s
    return reports, stage


def _arms(config: PipelineConfig, with_safety: bool) -> dict[str, MergeOptions]:
    """What the choice is shown beside, but for ``scale``, which takes the choice's weight."""
    wanted = tuning_of(config).arms
    configured = merge_options(config.merge)
    selection = {name: value for name in SELECTIONS if (value := getattr(configured, name)) is not None}
    arms = {
        SAFEMERGE: configured,
        "safelora": MergeOptions(method="safelora", **selection),
        "resta": MergeOptions(method="resta"),
    }
    return {
        name: options
        for name, options in arms.items()
        if name in wanted and (with_safety or not methods.get(options.method).needs_safety)
    }


def _learned(
    config: PipelineConfig,
    task_adapter: str | Path,
    safety_adapter: str | Path | None,
    learning: LearningConfig | None,
    device: str,
    work: Path,
) -> Path | None:
    """Folder of coefficients, a file a λ, fitted to training data that neither split asks; None to fit none.

    Raises:
        ConfigError: there is no safety adapter.
    """
    if learning is None:
        return None
    if safety_adapter is None:
        raise ConfigError("learning: expected a safety adapter to fit coefficients for, got none")
    from safemerge.engine.learning import learn_coefficients
    from safemerge.training.data import data_digest, load_examples

    data = {"task": config.task_training.data, "safety": config.safety_training.data}
    depends = {
        "adapters": [adapter_digest(resolve(one, "adapter")) for one in (task_adapter, safety_adapter)],
        "models": [config.aligned_model, config.unaligned_model],
        "data": {name: data_digest(load_examples(sources)) for name, sources in data.items()},
        "start": digested_settings(config.merge),
        "learning": learning.model_dump(mode="json"),
    }
    folder = work / "learned" / json_digest(depends)[:16]
    if not folder.exists():
        learn_coefficients(
            task_adapter,
            safety_adapter,
            named_in_config(config.aligned_model),
            named_in_config(config.unaligned_model),
            task_data=data["task"],
            safety_data=data["safety"],
            suites=(*config.evaluation.suites, *tuning_of(config).suites),
            learning=learning,
            output=folder,
            device=device,
            **merge_settings(config.merge),
        )
    return folder


def _written(scored: ScoredAdapters, options: MergeOptions, name: str, work: Path) -> Path:
    """The adapter of a merge, written where it is not there yet."""
    what = json_digest([scored.digests, option_settings(options)])[:16]
    folder = work / "adapters" / f"{name}-{what}"
    if not folder.exists():
        write_merge(scored, options, folder)
    return folder


def entry_of(section: dict[str, JsonValue], folder: Path) -> Entry:
    """A written candidate as it enters the race."""
    report = MergeReport.read(folder / MERGE_REPORT_FILE)
    merged = sum(layer.merged for layer in report.layers)
    return Entry(section, merged, adapter_digest(folder))
