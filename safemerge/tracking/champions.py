"""The Model Registry: adapter-only model versions and the alias ``champion``."""

from __future__ import annotations

import logging
import re
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safemerge.errors import MismatchError
from safemerge.records import Approval, Verdict
from safemerge.tracking import history, tags
from safemerge.tracking.history import How, Move

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

ALIAS = "champion"
"""The alias that deployments follow."""


def champion_of(model: str) -> str:
    """A model's champion, as MLflow's addresses (after ``models:/``) and Airflow's asset call it."""
    return f"{model}@{ALIAS}"


def champion_event(
    model: str,
    version: str,
    *,
    adapter_digest: str | None,
    verdict: str | None,
    run_id: str | None,
    **about: Any,
) -> dict[str, Any]:
    """What an event of the champion's asset carries, whoever moved the alias.

    Args:
        model: the registered model.
        version: that became its champion.
        adapter_digest: sha256 of its adapter.
        verdict: what the gate had said of it.
        run_id: MLflow run of the pipeline that released it.
        about: what a promotion or a rollback adds.
    """
    return {
        "version": version,
        "model": f"models:/{model}/{version}",
        "adapter_digest": adapter_digest,
        "verdict": verdict,
        "run_id": run_id,
    } | about


class Release(NamedTuple):
    """A model version, and the pipeline run that made it the champion last."""

    version: str
    run_id: str
    opened_at_ms: int


class Champions:
    """Registers adapters, and says which one is the champion."""

    def __init__(self, client: MlflowClient) -> None:
        self.client = client

    def register(
        self,
        name: str,
        folder: Path,
        *,
        adapter_digest: str,
        pipeline_run_id: str,
        opened_at_ms: int,
        source_run_id: str,
        experiment_id: str,
        summary: str,
        card: str,
        verdict: Verdict = Verdict.PASS,
        approval: Approval | None = None,
    ) -> str:
        """Make the adapter a version of the registered model and the champion.

        The version holds the adapter's own files and its model card, so that it loads back
        bit for bit beside any copy of its base model. An adapter that is a version already,
        from an attempt that crashed or an earlier run, gets the alias, and tags, description and model
        card of this release in place of those of the last.

        Args:
            name: the registered model; made where it does not exist.
            folder: the adapter's files.
            adapter_digest: sha256 of the adapter.
            pipeline_run_id: MLflow run of the pipeline.
            opened_at_ms: when that was opened, in milliseconds since 1970.
            source_run_id: MLflow run of the promotion.
            experiment_id: their experiment.
            summary: the gate's verdict, in one line.
            card: the model card, README.md in the version, in place of one among the adapter's files. A copy
                that MLflow made of another model's version keeps what it has.
            verdict: the gate's verdict, in one word.
            approval: who let it through, where that was a person.

        Returns:
            The version's number.
        """
        self._ensure_model(name)
        release = {
            tags.PIPELINE_RUN: pipeline_run_id,
            tags.OPENED: str(opened_at_ms),
            tags.VERDICT: verdict,
            tags.VERDICT_SUMMARY: tags.fitting(summary),
        } | _approval_tags(approval)
        version = self._find(name, adapter_digest)
        if version is None:
            labels = release | {tags.ADAPTER_DIGEST: adapter_digest}
            model = self._stored(name, experiment_id, adapter_digest)
            if model is None:
                model = self._store(name, experiment_id, folder, source_run_id, labels)
            version = self._add(name, model, source_run_id, adapter_digest)
        if _opened_at_ms(version) > opened_at_ms:
            return str(version.version)  # a later run has released it meanwhile, which the caller looks for
        self._describe(name, version, release)
        self._log_card(name, version, card)
        number = str(version.version)
        self.appoint(name, number, How.PROMOTION, run_id=pipeline_run_id)
        return number

    def appoint(self, name: str, version: str, how: How = How.REPAIR, **about: str) -> Move:
        """Move the alias to a version, and keep that it was.

        Args:
            name: the registered model.
            version: its new champion.
            how: why.
            about: what else is known of the move: ``by``, ``reason``, ``left``, ``run_id``.
        """
        # Later than every move there is, whatever the clocks of the machines that made them say.
        last_ms = max((move.at_ms for move in self.history(name)), default=0)
        at_ms = max(time.time_ns() // 1_000_000, last_ms + 1)
        # What is not yet the champion may stand in its history; a champion without one may not.
        move = history.write(
            self.client, name, Move.model_validate(about | {"version": version, "at_ms": at_ms, "how": how})
        )
        self.client.set_registered_model_alias(name, ALIAS, version)
        return move

    def history(self, name: str) -> list[Move]:
        """Every move of the alias, the first one first."""
        return history.read(self.client, name)

    def withdrawn(self, name: str, adapter_digest: str) -> Move | None:
        """The rollback that took this adapter back; None where none did, or it was put back since."""
        version = self._find(name, adapter_digest)
        return history.withdrawn(self.history(name)).get(str(version.version)) if version else None

    def take_back(self, name: str, to: str, *, left: str, by: str, reason: str, seen: list[Move]) -> Move:
        """Put an earlier champion in the place of the present one.

        MLflow cannot compare and swap. So what a promotion does at the same moment is looked for afterwards,
        and stands.

        Args:
            name: the registered model.
            to: version to go back to.
            left: version that is the champion now.
            by: who wants it.
            reason: why.
            seen: all moves until now.

        Raises:
            MismatchError: another has moved the alias meanwhile; it stays where they moved it.
        """
        self._check_unmoved(name, left)
        mine = self.appoint(name, to, How.ROLLBACK, left=left, by=by, reason=reason)
        known = {move.key for move in (*seen, mine)}
        others = [move for move in self.history(name) if move.key not in known]
        if others:
            self.client.set_registered_model_alias(name, ALIAS, others[-1].version)
        try:
            self._check_unmoved(name, to)
        except MismatchError:
            history.forget(self.client, name, mine)
            raise
        notes = {"at": _iso(mine.at_ms), "by": mine.by, "reason": mine.reason}
        for version, prefix, last in (
            (left, tags.ROLLED_BACK, {"to": to}),
            (to, tags.RESTORED, {"from": left}),
        ):
            for key, text in (notes | last).items():
                self.client.set_model_version_tag(name, version, prefix + key, text)
        return mine

    def _check_unmoved(self, name: str, version: str) -> None:
        now = self.current(name)
        if now is None or str(now.version) != version:
            got = f"version {now.version}" if now else "none"
            raise MismatchError(
                f"rollback of {name}: expected version {version} to be the champion, got {got}: another has "
                "moved the alias meanwhile, and it stays there; look again"
            )

    def _add(self, name: str, model: LoggedModel, run_id: str, adapter_digest: str) -> ModelVersion:
        """Make stored files a version, which is no release yet.

        Where two runs do so at once, both get the first one.
        """
        made = self.client.create_model_version(
            name,
            source=f"models:/{model.model_id}",
            run_id=run_id,
            tags={tags.ADAPTER_DIGEST: adapter_digest},
            model_id=model.model_id,
        )
        first = self._find(name, adapter_digest) or made
        if first.version != made.version:
            self.client.delete_model_version(name, made.version)
        return first

    def _describe(self, name: str, version: ModelVersion, release: Mapping[str, str]) -> None:
        """Describe the release of a version, in place of an earlier one."""
        for key in (tags.APPROVED_BY, tags.APPROVED_AT, tags.APPROVAL_REASON):
            if key in version.tags and key not in release:
                self.client.delete_model_version_tag(name, version.version, key)
        for key, value in release.items():
            self.client.set_model_version_tag(name, version.version, key, value)
        self.client.update_model_version(name, version.version, release[tags.VERDICT_SUMMARY])

    def released_after(self, name: str, opened_at_ms: int) -> Release | None:
        """What the latest of the pipeline runs released that were opened after the time given.

        Whether it is still the champion does not matter: the alias may have been moved back since.
        """
        releases = (
            Release(str(version.version), version.tags[tags.PIPELINE_RUN], _opened_at_ms(version))
            for version in self.client.search_model_versions(f"name = '{name}'")
            if tags.PIPELINE_RUN in version.tags
        )
        later = (release for release in releases if release.opened_at_ms > opened_at_ms)
        return max(later, key=lambda release: release.opened_at_ms, default=None)

    def _log_card(self, name: str, version: ModelVersion, card: str) -> None:
        """Store the model card with the version's files, over one that is there.

        Not with files that belong to a version of another registered model, as those of a copy that MLflow
        made do: the card there is that one's. What hinders it is logged; no release fails for its card.
        """
        try:
            model = self.client.get_logged_model(version.source.removeprefix("models:/"))
            owner = model.tags.get(tags.REGISTERED_MODEL, model.name)
            if owner != name:
                raise MismatchError(f"expected files of its own, got those of {owner}")
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "README.md"
                path.write_text(card, encoding="utf-8")
                self.client.log_model_artifact(model.model_id, str(path))
        except Exception as error:
            logger.warning(
                "models:/%s/%s, with the files of %s, keeps the model card that it has: %s",
                name,
                version.version,
                version.source,
                error,
            )

    def current(self, name: str) -> ModelVersion | None:
        """The champion of a registered model; None where there is none yet."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_model_version_by_alias(name, ALIAS)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def _ensure_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _stored(self, name: str, experiment_id: str, adapter_digest: str) -> LoggedModel | None:
        """A model that an attempt killed before registering it had stored whole.

        Not one of another registered model: its version has a model card of its own.
        """
        wanted = {tags.REGISTERED_MODEL: name, tags.ADAPTER_DIGEST: adapter_digest}
        models = self.client.search_logged_models(
            [experiment_id], " AND ".join(f"tags.`{tag}` = '{value}'" for tag, value in wanted.items())
        )
        return next((model for model in models if model.status == "READY"), None)

    def _store(
        self, name: str, experiment_id: str, folder: Path, source_run_id: str, labels: Mapping[str, str]
    ) -> LoggedModel:
        model = self.client.create_logged_model(
            experiment_id,
            name=re.sub(r"[.%]", "-", name),  # MLflow refuses them here, not in the registry
            source_run_id=source_run_id,
            tags={**labels, tags.REGISTERED_MODEL: name},
            model_type="peft-adapter",
        )
        self.client.log_model_artifacts(model.model_id, str(folder))
        return self.client.finalize_logged_model(model.model_id, "READY")

    def _find(self, name: str, adapter_digest: str) -> ModelVersion | None:
        """The version of an adapter: the first one, where there are several, for every run alike."""
        versions = self.client.search_model_versions(f"name = '{name}'")
        found = (version for version in versions if version.tags.get(tags.ADAPTER_DIGEST) == adapter_digest)
        return min(found, key=lambda version: int(version.version), default=None)


def _approval_tags(approval: Approval | None) -> dict[str, str]:
    if approval is None:
        return {}
    return {
        tags.APPROVED_BY: tags.fitting(str(approval.by)),
        tags.APPROVED_AT: approval.at,
        tags.APPROVAL_REASON: tags.fitting(approval.reason),
    }


def _opened_at_ms(version: ModelVersion) -> int:
    """When the pipeline run was opened that released a version last; 0 where nothing says so."""
    return int(version.tags.get(tags.OPENED, 0))


def _iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")
