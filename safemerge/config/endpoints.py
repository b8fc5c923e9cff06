"""Typed configuration of OpenAI-compatible servers: where they are and how they are asked."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, JsonValue, model_validator

from safemerge.config.base import Config

RESERVED = {"model", "messages", "temperature", "max_tokens", "stream", "n"}
"""What a request says anyway."""


class EndpointSettings(Config):
    """Base of the settings of everything that asks such a server."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s@]+$")]
    """Base address, such as ``http://127.0.0.1:8000/v1``; ``/chat/completions`` is added."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Environment variable that holds the key; the key itself is never written anywhere."""
    concurrency: Annotated[int, Field(gt=0, le=256)] = 8
    """Requests under way at once."""
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds to wait for one reply."""
    max_attempts: Annotated[int, Field(gt=0)] = 5
    """Tries a request: rate limits, server errors, timeouts and unreadable replies are tried again."""


class EndpointConfig(EndpointSettings):
    """A server that holds the aligned model, and the adapters to be measured under names of their own."""

    models: Annotated[dict[str, str], Field(min_length=1)]
    """Arm (aligned, fine_tuned, safemerge, …) to the model's name on the server."""
    request: dict[str, JsonValue] = Field(default_factory=dict)
    """Keys of the server's own that every request for an answer has, such as ``repetition_penalty: 1.0``
    for vLLM, or ``chat_template_kwargs``."""

    @model_validator(mode="after")
    def _arms_can_be_told_apart(self) -> Self:
        names = list(self.models.values())
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"expected a name for each arm, got one for several: {', '.join(twice)}")
        if ours := sorted(self.request.keys() & RESERVED):
            raise ValueError(f"expected keys of the server's own in request, got {', '.join(ours)}")
        return self
