"""Evaluations of many adapters on one model, each measured once and kept by what it depends on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from safemerge.config.evaluation import EvaluationConfig
from safemerge.evaluation.dependencies import report_dependencies
from safemerge.evaluation.evaluating import evaluate_arms
from safemerge.evaluation.judges import make_judges
from safemerge.evaluation.suites import read_suite
from safemerge.evaluation.utility import check_task, task_digest
from safemerge.records import EvaluationReport, json_digest
from safemerge.storage.adapters import adapter_digest
from safemerge.storage.atomic import atomic_file


class Measurer:
    """Measures adapters on one model; what a killed process had measured is not measured again.

    Args:
        model: Folder of the aligned model.
        model_digest: sha256 of its files.
        work: Folder where reports are kept.
    """

    def __init__(self, model: Path, model_digest: str, work: Path) -> None:
        self.model = model
        self.model_digest = model_digest
        self.reused = 0
        """Reports that were there already."""
        self._work = work
        self._tasks: dict[str, str] = {}

    def measure(
        self, adapters: Mapping[str, Path | None], settings: EvaluationConfig, *, utility: bool = True
    ) -> dict[str, EvaluationReport]:
        """The reports of adapters by name; None stands for the model alone.

        Args:
            adapters: Name to folder.
            settings: What is measured of each.
            utility: False asks the suites alone.

        Raises:
            SafemergeError: as of :func:`safemerge.evaluation.evaluating.evaluate_arms`.
        """
        digests = {
            name: None if folder is None else adapter_digest(folder) for name, folder in adapters.items()
        }
        # Two candidates may come out as the same adapter: it is measured once.
        kept = self._files(set(digests.values()), settings, utility)
        missing = {digest: name for name, digest in reversed(digests.items()) if not kept[digest].exists()}
        self.reused += len(kept) - len(missing)
        if missing:
            found = evaluate_arms(
                self.model,
                {name: adapters[name] for name in missing.values()},
                settings,
                model_digest=self.model_digest,
                adapter_digests={name: digest for digest, name in missing.items()},
                work=self._work / "unfinished",
                with_utility=utility,
            )
            for name, evaluation in found.items():
                with atomic_file(kept[digests[name]], replace=True) as partial:
                    partial.write_text(evaluation.report.to_json(), encoding="utf-8")
        return {
            name: EvaluationReport.read(kept[digest]).model_copy(update={"arm": name})
            for name, digest in digests.items()
        }

    def _files(
        self, digests: Iterable[str | None], settings: EvaluationConfig, utility: bool
    ) -> dict[str | None, Path]:
        """Where the report of each adapter is kept: under all that it depends on."""
        suites, judges = [read_suite(suite) for suite in settings.suites], make_judges(settings)
        task = self._task(settings) if utility else None
        found = {}
        for digest in digests:
            of = report_dependencies(
                settings,
                suites,
                judges,
                model_digest=self.model_digest,
                adapter_digest=digest,
                task_digest=task,
            )
            found[digest] = self._work / f"{json_digest(of)[:24]}.json"
        return found

    def _task(self, settings: EvaluationConfig) -> str:
        task = settings.utility
        key = task.model_dump_json()
        if key not in self._tasks:
            check_task(task.task, task.metric, task.include_path, task.filter, tokenizer=str(self.model))
            self._tasks[key] = task_digest(task, self.model)
        return self._tasks[key]
