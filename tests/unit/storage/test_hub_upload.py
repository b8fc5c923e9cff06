"""Uploads: asked for first, sent in one commit. The hub is a stand-in, since none can be had offline."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError

from safemerge.errors import ConfigError, HubError
from safemerge.storage.hub_upload import HubTarget

http = import_module(HTTPError.__module__)
"""The HTTP client of huggingface_hub: httpx or httpx2, by its version."""


class StandInHub:
    """Answers as the hub would, and remembers what it was sent."""

    def __init__(self, role: str = "write", repositories: dict[str, bool] | None = None) -> None:
        self.role = role
        self.private = repositories or {}
        self.fails: Exception | None = None
        self.sent: list[Any] = []

    def whoami(self) -> dict[str, Any]:
        if self.fails:
            raise self.fails
        return {"name": "me", "orgs": [{"name": "Org"}], "auth": {"accessToken": {"role": self.role}}}

    def repo_info(self, repo_id: str) -> Any:
        if self.fails:
            raise self.fails
        if repo_id not in self.private:
            response = http.Response(404, request=http.Request("GET", "https://hub"))
            raise RepositoryNotFoundError("not there", response=response)
        return SimpleNamespace(private=self.private[repo_id])

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        if self.fails:
            raise self.fails
        self.sent.append(("create", repo_id, private, exist_ok))

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, commit_message: str, delete_patterns: list[str]
    ) -> None:
        self.sent.append(("upload", repo_id, folder_path, delete_patterns))


@pytest.mark.parametrize("repo_id", ["me/model", "org/model"])
def test_a_folder_is_sent_whole_and_old_weights_go(repo_id: str, tmp_path: Path) -> None:
    hub = StandInHub()
    target = HubTarget(repo_id, private=True, api=hub)
    target.check()
    assert hub.sent == []
    assert target.upload(tmp_path) == f"https://huggingface.co/{repo_id}"
    assert hub.sent == [
        ("create", repo_id, True, True),
        ("upload", repo_id, tmp_path, ["model*.safetensors", "model.safetensors.index.json"]),
    ]


@pytest.mark.parametrize("repo_id", ["model", "me/model@main", "me/model/x", "/model", "me/"])
def test_a_name_that_is_none_of_a_repository_is_refused(repo_id: str) -> None:
    with pytest.raises(ConfigError, match=f"push to hub: expected ORG/NAME, got '{repo_id}'"):
        HubTarget(repo_id)


def test_a_token_that_may_not_write_is_refused() -> None:
    with pytest.raises(HubError, match="me/model: expected a token that may write, got one of role read"):
        HubTarget("me/model", api=StandInHub(role="read")).check()


def test_an_organisation_that_is_not_the_users_is_refused() -> None:
    with pytest.raises(HubError, match=r"expected one of your names \(me, Org\), got others"):
        HubTarget("others/model", api=StandInHub()).check()


def test_a_private_upload_is_not_made_public() -> None:
    hub = StandInHub(repositories={"me/open": False, "me/closed": True})
    with pytest.raises(
        HubError, match="me/open: expected a private repository, got one that exists and is p"
    ):
        HubTarget("me/open", private=True, api=hub).check()
    HubTarget("me/closed", private=True, api=hub).check()
    HubTarget("me/open", api=hub).check()


@pytest.mark.parametrize(
    "error", [OSError("no token\nand more"), http.ConnectError("no token"), ValueError("no token")]
)
def test_refusals_of_the_hub_are_one_line(error: Exception, tmp_path: Path) -> None:
    hub = StandInHub()
    hub.fails = error
    target = HubTarget("me/model", private=True, api=hub)
    with pytest.raises(HubError, match=r"^me/model: the hub does not say who you are .*: no token$"):
        target.check()
    with pytest.raises(HubError, match=r"does not take the upload; .* can be sent again: no token$"):
        target.upload(tmp_path)


def test_a_hub_that_does_not_answer_of_the_repository_is_an_error() -> None:
    hub = StandInHub()
    target = HubTarget("me/model", private=True, api=hub)
    asked = hub.whoami()
    hub.whoami = lambda: asked  # type: ignore[method-assign]
    hub.fails = http.ReadTimeout("")
    with pytest.raises(HubError, match="does not say whether the repository is there: ReadTimeout"):
        target.check()


def test_offline_the_real_hub_is_not_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(HubError, match="the hub does not say who you are"):
        HubTarget("me/model").check()
