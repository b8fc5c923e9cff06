"""Asking an OpenAI-compatible server: many requests at once, each tried again where that may help.

The key comes from the environment and goes nowhere else: no message shows it, and no redirect is
followed with it.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC
from typing import Any, NamedTuple, TypeVar

from safemerge.config.endpoints import EndpointSettings
from safemerge.errors import ConfigError, EvaluationError
from safemerge.evaluation.progress import progress

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""Waits between tries double from the first to the longest; a server's own ``Retry-After`` goes before."""
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses that may be another a moment later."""

Body = dict[str, Any]
"""A request's JSON."""
Read = TypeVar("Read")


class Usage(NamedTuple):
    """What was asked of a server so far."""

    requests: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0

    def cost(self, price_per_million_tokens: tuple[float, float]) -> float:
        """What it cost at a price of prompt and of reply tokens, in the currency of the price."""
        prompt, reply = price_per_million_tokens
        return (self.prompt_tokens * prompt + self.reply_tokens * reply) / 1e6


class Unreadable(NamedTuple):
    """The last reply to a request, where nothing could be read in any."""

    reply: str


class EndpointClient:
    """One server, as its settings say to ask it. Making one asks nothing."""

    def __init__(self, settings: EndpointSettings, who: str) -> None:
        """Keep where to ask.

        Args:
            settings: the server, and how it is asked.
            who: what asks, at the head of every message.
        """
        self.settings = settings
        self.usage = Usage()
        """What was asked and answered so far."""
        self._who = who
        self._counting = threading.Lock()

    def key(self) -> str | None:
        """The server's key; None where it needs none.

        Raises:
            ConfigError: the variable that should hold it is empty.
        """
        name = self.settings.api_key_env
        if name is None:
            return None
        if not os.environ.get(name):
            raise ConfigError(f"{self._who}: expected a key in the variable {name}, got none")
        return os.environ[name]

    def chat_all(
        self,
        requests: Mapping[str, Body],
        read: Callable[[str, str | None], Read | None],
        label: str | None = None,
    ) -> dict[str, Read | Unreadable]:
        """Replies to many chat requests, several under way at once.

        Args:
            requests: prompt id to request.
            read: of a prompt's id and a reply's text (None where it holds none), what it says; None where
                that cannot be read, and is asked for again.
            label: name in the progress; None shows none.

        Returns:
            Prompt id to what was read, or the last reply where nothing could be.

        Raises:
            ConfigError: the server's key is missing.
            EvaluationError: the server refuses a request, or gives no answer however often it is asked.
        """
        key = self.key()

        def ask(name: str) -> Read | Unreadable:
            return self._chat(name, requests[name], key, read)

        found: dict[str, Read | Unreadable] = {}
        with (
            progress(label, len(requests)) if label else nullcontext(lambda _: None) as advance,
            ThreadPoolExecutor(self.settings.concurrency) as pool,
        ):
            asked = {name: pool.submit(ask, name) for name in requests}
            try:
                for name, future in asked.items():
                    found[name] = future.result()
                    advance(1)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return found

    def post(self, path: str, body: Body) -> Any:
        """One request's JSON reply, at the first try.

        Raises:
            ConfigError: the server's key is missing.
            EvaluationError: there is no such reply.
        """
        try:
            return self._post(path, body, self.key())
        except _TryAgainError as error:
            raise EvaluationError(f"{self._who}: {error}") from error

    def _chat(
        self, name: str, body: Body, key: str | None, read: Callable[[str, str | None], Read | None]
    ) -> Read | Unreadable:
        problem: Unreadable | EvaluationError = Unreadable("nothing")
        for attempt in range(self.settings.max_attempts):
            try:
                said = self._said(self._post("chat/completions", body, key))
            except _TryAgainError as error:
                problem = EvaluationError(f"{self._who}, prompt {name!r}: {error}")
                if attempt + 1 < self.settings.max_attempts:
                    time.sleep(wait_s(attempt, error.after_s))
                continue
            found = read(name, said)
            if found is not None:
                return found
            problem = Unreadable(said or "nothing")
        if isinstance(problem, EvaluationError):
            raise problem
        return problem

    def _said(self, reply: Any) -> str | None:
        """The text of a reply, once its tokens are counted; None where it holds none."""
        try:
            text = reply["choices"][0]["message"]["content"]
            usage = reply.get("usage") or {}
            counts = (int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise _TryAgainError("expected a chat completion, got JSON of another form") from error
        with self._counting:
            before = self.usage
            self.usage = Usage(
                before.requests + 1, before.prompt_tokens + counts[0], before.reply_tokens + counts[1]
            )
        return text if isinstance(text, str) else None

    def _post(self, path: str, body: Body, key: str | None) -> Any:
        """One request's JSON reply.

        Raises:
            _TryAgainError: the server is busy, failed, did not answer in time or not in JSON.
            EvaluationError: it refuses the request for good.
        """
        url = self.settings.url.rstrip("/")
        headers = {"Content-Type": "application/json"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(  # noqa: S310 - the config allows http and https alone
            f"{url}/{path}", json.dumps(body).encode(), headers
        )
        opener = urllib.request.build_opener(_NoRedirects)
        try:
            with opener.open(request, timeout=self.settings.timeout_s) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"expected an answer of {url}, got status {error.code} {error.reason}"
            if error.code in RETRIED:
                raise _TryAgainError(reason, _retry_after_s(error.headers.get("Retry-After"))) from error
            raise EvaluationError(f"{self._who}: {reason}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
            raise _TryAgainError(f"expected an answer of {url}, got {reason}") from error
        except ValueError as error:
            raise _TryAgainError(f"expected JSON of {url}, got something else") from error


class _TryAgainError(Exception):
    """A request failed in a way that another try may mend."""

    def __init__(self, reason: str, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.after_s = after_s


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows none: the key would go wherever the answer points."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """No request to go on with, so that the redirect is an error like other statuses."""


def _retry_after_s(header: str | None) -> float | None:
    """Seconds that a server asks to wait: a number, or a date; None where it says nothing readable."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        date = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return None
    # A date of HTTP is in GMT, be it said or not, and never in the time zone of this machine.
    return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time())


def wait_s(attempt: int, after_s: float | None) -> float:
    """Seconds to wait after a failed try.

    Args:
        attempt: tries before it.
        after_s: what the server asked for.
    """
    if after_s is not None:
        return min(after_s, LONGEST_WAIT_S)
    # Spread by chance, so that requests turned away together do not return together.
    return min(FIRST_WAIT_S * 2.0**attempt, LONGEST_WAIT_S) * random.uniform(0.5, 1)  # noqa: S311 - no secret
