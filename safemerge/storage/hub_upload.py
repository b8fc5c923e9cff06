"""A folder to a repository on the Hugging Face hub: asked whether it may go there first, sent when whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safemerge.errors import ConfigError, HubError
from safemerge.storage.hub import hub_errors

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REPLACED = ["model*.safetensors", "model.safetensors.index.json"]
"""Weights of an earlier upload, which would be loaded beside or before the new ones."""


class HubApi(Protocol):
    """What is used of ``huggingface_hub.HfApi``."""

    def whoami(self) -> dict[str, Any]:
        """Whom the token belongs to."""

    def repo_info(self, repo_id: str) -> Any:
        """What the hub says of a repository."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        """Make a model repository."""

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, commit_message: str, delete_patterns: list[str]
    ) -> Any:
        """Add a folder's files in one commit."""


@dataclass(frozen=True)
class HubTarget:
    """A repository to upload to.

    Raises:
        ConfigError: the name is none of a repository.
    """

    repo_id: str
    private: bool = False
    api: HubApi | None = None
    """huggingface_hub's own where None is given, with the token of its login or of HF_TOKEN."""

    def __post_init__(self) -> None:
        if not _REPOSITORY.fullmatch(self.repo_id):
            raise ConfigError(f"push to hub: expected ORG/NAME, got {self.repo_id!r}")

    def check(self) -> None:
        """Ask the hub whether this user may upload there; nothing is made.

        Raises:
            HubError: there is no token, it may not write, the organisation is not the user's, the
                repository is public where a private one is asked for, or the hub cannot be reached.
        """
        api, owner = self._api(), self.repo_id.partition("/")[0]
        with self._named_errors("does not say who you are (hf auth login)"):
            user = api.whoami()
        if (user.get("auth") or {}).get("accessToken", {}).get("role") == "read":
            raise HubError(f"{self.repo_id}: expected a token that may write, got one of role read")
        owners = [str(user.get("name")), *(str(org.get("name")) for org in user.get("orgs") or ())]
        if owner.lower() not in (name.lower() for name in owners):
            raise HubError(f"{self.repo_id}: expected one of your names ({', '.join(owners)}), got {owner}")
        if self.private and self._is_public(api):
            raise HubError(
                f"{self.repo_id}: expected a private repository, got one that exists and is public"
            )

    def upload(self, folder: Path) -> str:
        """Upload a folder in one commit, made where it is missing; the repository's address.

        Raises:
            HubError: the hub refuses, or cannot be reached.
        """
        api = self._api()
        with self._named_errors(f"does not take the upload; {folder} is whole and can be sent again"):
            api.create_repo(self.repo_id, private=self.private, exist_ok=True)
            api.upload_folder(
                repo_id=self.repo_id,
                folder_path=folder,
                commit_message="Upload the model exported by safemerge",
                delete_patterns=_REPLACED,
            )
        return f"https://huggingface.co/{self.repo_id}"

    def _is_public(self, api: HubApi) -> bool:
        from huggingface_hub.errors import RepositoryNotFoundError

        with self._named_errors("does not say whether the repository is there"):
            try:
                return not api.repo_info(self.repo_id).private
            except RepositoryNotFoundError:
                return False

    def _api(self) -> HubApi:
        if self.api is not None:
            return self.api
        from huggingface_hub import HfApi

        api: HubApi = HfApi()
        return api

    @contextmanager
    def _named_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except hub_errors() as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise HubError(f"{self.repo_id}: the hub {what}: {reason}") from error
