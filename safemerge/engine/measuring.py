"""Evaluations of many adapters on one model, each measured once and kept by what it depends on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from safemerge.config.models import EvaluationConfig
from safemerge.evaluation.arm import evaluate_arm
from safemerge.evaluation.judges import make_judges
from safemerge.evaluation.libraries import versions
from safemerge.evaluation.suites import read_suite
from safemerge.evaluation.utility import check_task, task_digest
from safemerge.records import EvaluationReport, json_digest
from safemerge.storage.adapters import adapter_digest
from safemerge.storage.atomic import atomic_file

logger = logging.getLogger(__name__)


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
            SafemergeError: as of :func:`safemerge.evaluation.arm.evaluate_arm`.
        """
        digests = {name: folder and adapter_digest(folder) for name, folder in adapters.items()}
        asked = self._asked(settings, utility)
        # Two candidates may come out as the same adapter: it is measured once.
        kept = {digest: self._file(asked, digest) for digest in digests.values()}
        missing = {digest: name for name, digest in reversed(digests.items()) if not kept[digest].exists()}
        self.reused += len(set(digests.values())) - len(missing)
        for digest, report in self._measured({n: adapters[n] for n in missing.values()}, settings, utility):
            with atomic_file(kept[digest], replace=True) as partial:
                partial.write_text(report.to_json(), encoding="utf-8")
        return {
            name: EvaluationReport.read(kept[digest]).model_copy(update={"arm": name})
            for name, digest in digests.items()
        }

    def _measured(
        self, adapters: Mapping[str, Path | None], settings: EvaluationConfig, utility: bool
    ) -> Iterator[tuple[str | None, EvaluationReport]]:
        for name, folder in adapters.items():
            digest = folder and adapter_digest(folder)
            found = evaluate_arm(
                self.model,
                folder,
                name,
                settings,
                model_digest=self.model_digest,
                adapter_digest=digest,
                with_utility=utility,
            )
            yield digest, found.report

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
            self._tasks[key] = task_digest(
                task.task,
                self.model,
                include_path=task.include_path,
                num_fewshot=task.num_fewshot,
                limit=task.limit,
                apply_chat_template=task.apply_chat_template,
            )
        return [self._tasks[key], task.metric, task.filter]

    def _file(self, asked: str, digest: str | None) -> Path:
        return self._work / f"{json_digest([asked, digest])[:24]}.json"
