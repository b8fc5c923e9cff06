"""The page as the api-server mounts it, loaded in the background while that starts.

So the server starts as soon as without it, the first visitor does not wait for what is loaded once, and
a page that cannot be loaded takes nothing else with it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

logger = logging.getLogger(__name__)


class PageApp:
    """The page as an ASGI application, loaded with its first request where it is not yet."""

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Answer one request."""
        from safemerge_airflow.page.app import app

        await app(scope, receive, send)


@asynccontextmanager
async def _loading(_: FastAPI) -> AsyncIterator[None]:
    """Begin to load the page when the server starts."""
    threading.Thread(target=_load, name="safemerge-page-start", daemon=True).start()
    yield


def _load() -> None:
    try:
        from safemerge_airflow.page.app import warm_up

        warm_up()
    except Exception:  # said again to whoever asks for the page
        logger.exception("the page could not be prepared")


# Airflow runs the lifespan of mounted apps that are FastAPI's, and of no others.
page = FastAPI(lifespan=_loading, docs_url=None, redoc_url=None, openapi_url=None)
page.mount("", PageApp())
