"""Evaluations of many adapters on one model, each measured once and kept by what it depends on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safemerge.config.evaluation import EvaluationConfig
from safemerge.evaluation.evaluating import evaluate_arms
from safemerge.evaluation.judges import make_judges
from safemerge.evaluation.libraries import versions
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
        asked = self._asked(settings, utility)
        # Two candidates may come out as the same adapter: it is measured once.
        kept = {digest: self._file(asked, digest) for digest in digests.values()}
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

    def _asked(self, settings: EvaluationConfig, utility: bool) -> str:
        """The sha256 of all that a report depends on beside the adapter."""
        suites = [read_suite(suite) for suite in settings.suites]
        judges = {kind: judge.record for kind, judge in make_judges(settings).items()}
        return json_digest(
            {
                "model": self.model_digest,
                "suites": {suite.name: [suite.kind, suite.digest()] for suite in suites},
                "judges": {kind: judge.model_dump(mode="json") for kind, judge in judges.items()},
                "settings": settings.model_dump(mode="json", exclude={"suites": True, "utility": True}),
                "utility": self._task(settings) if utility else None,
                "versions": versions(settings.engine),
            }
        )

    def _task(self, settings: EvaluationConfig) -> list[object]:
        task = settings.utility
        key = task.model_dump_json()
        if key not in self._tasks:
            check_task(task.task, task.metric, task.include_path, task.filter, tokenizer=str(self.model))
            self._tasks[key] = task_digest(task, self.model)
        return [self._tasks[key], task.metric, task.filter]

    def _file(self, asked: str, digest: str | None) -> Path:
        return self._work / f"{json_digest([asked, digest])[:24]}.json"
