"""Guard models run here by transformers: loaded late, asked in batches, read by token or by text.

Special tokens that stand in a judged text are broken up, so that a response cannot end its own
turn and speak for the judge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from pydantic import JsonValue

from safemerge.config.judges import LocalGuardConfig
from safemerge.errors import CheckpointError, ConfigError, EvaluationError
from safemerge.evaluation.batches import FittingBatches, by_length, check_room
from safemerge.evaluation.decoding import Decoded, decode
from safemerge.evaluation.journal import Journal
from safemerge.evaluation.judges.base import Answer, ModelJudge, settings_revision
from safemerge.evaluation.progress import progress
from safemerge.records import JudgeRecord, json_digest

if TYPE_CHECKING:
    from torch import Tensor


class Guard(NamedTuple):
    """A loaded guard model."""

    model: Any
    tokenizer: Any


class LocalGuard(ModelJudge):
    """Base of judges whose model runs here."""

    config: LocalGuardConfig

    def __init__(self, kind: str, config: LocalGuardConfig, threshold: float | None = None) -> None:
        super().__init__(config)
        name, revision = identity(config.model)
        settings = config.model_dump(mode="json", exclude={"model", "batch_size"})
        self.record = JudgeRecord(
            id=f"{kind}:{name}",
            revision=settings_revision(revision, settings),
            smoke=False,
            threshold=threshold,
        )
        self._guard: Guard | None = None

    def release(self) -> None:
        """Free the model."""
        if self._guard is not None:
            self._guard = None
            free_memory()

    @property
    def guard(self) -> Guard:
        """The model, loaded on first use."""
        if self._guard is None:
            self._guard = load_guard(self.config.model)
        return self._guard

    def _replies(
        self,
        prompts: Mapping[str, Sequence[int]],
        max_new_tokens: int,
        wanted: Sequence[int] = (),
    ) -> dict[str, Decoded]:
        """Prompt id to reply."""
        return replies(
            self.guard,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_size=self.config.batch_size,
            wanted=wanted,
            label=f"judge {self.record.id}",
            journal=self._journal,
            judge=self.record,
        )

    def _text(self, reply: Decoded) -> str:
        text: str = self.guard.tokenizer.decode(reply.tokens, skip_special_tokens=True)
        return text

    def _read(
        self,
        answers: Sequence[Answer],
        prompts: Mapping[str, Sequence[int]],
        max_new_tokens: int,
        read: Callable[[str], bool | None],
    ) -> dict[str, bool | str]:
        """Let the guard speak about every answer and read its text; text that says nothing is kept."""
        said = {i: self._text(reply) for i, reply in self._replies(prompts, max_new_tokens).items()}
        found = {answer.prompt.id: read(said[answer.prompt.id]) for answer in answers}
        return {i: said[i] if flag is None else flag for i, flag in found.items()}


# --- which model ------------------------------------------------------------------------


def identity(source: str) -> tuple[str, str]:
    """Name and revision of a guard, without loading it: a folder is known by its files' sha256.

    A relative path is no folder, but the hub's: :mod:`safemerge.config.load` makes those of folders absolute.

    Raises:
        ConfigError: a hub id without a revision, whose weights may change under one name.
        CheckpointError: the folder is no checkpoint.
    """
    folder = Path(source)
    if folder.is_absolute() and folder.is_dir():
        state = tuple((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(folder.iterdir()))
        return folder.resolve().name, _folder_digest(folder.resolve(), state)[:12]
    name, _, revision = source.partition("@")
    if not revision:
        raise ConfigError(f"judge model {source}: expected a folder or name@revision, got no revision")
    return name, revision


@lru_cache
def _folder_digest(folder: Path, state: tuple[tuple[str, int, int], ...]) -> str:
    """sha256 of a guard's files, which are many gigabytes: read once while names, sizes and times stay."""
    from safemerge.storage.checkpoints import Checkpoint

    return Checkpoint.open(folder).files_digest()


def load_guard(source: str) -> Guard:
    """Load a guard and its tokenizer, which must have a chat template.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    from safemerge.evaluation.transformers_arm import device_and_dtype
    from safemerge.storage.hub import resolve

    folder = resolve(source, here=False)
    device, dtype = device_and_dtype()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        architectures = AutoConfig.from_pretrained(folder, local_files_only=True).architectures or [""]
        # Llama Guard 4 reads images too; its language part alone is asked here.
        sees = architectures[0].endswith("ForConditionalGeneration")
        kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        model = kind.from_pretrained(folder, dtype=dtype, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"judge model {source}: expected a guard model, got {error}") from error
    return Guard(model.to(device).eval(), tokenizer)


def free_memory() -> None:
    """Give the memory of models that nothing holds any more back to the device."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- what it is shown ---------------------------------------------------------------------


def neutral(text: str, tokenizer: Any) -> str:
    """The text with every special token of the tokenizer broken up, so that it is read as text."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    for token in sorted({*tokenizer.all_special_tokens, *added}, key=len, reverse=True):
        if len(token) > 1 and token.strip():
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def chat_tokens(guard: Guard, answer: Answer, *, add_generation_prompt: bool, **template: Any) -> list[int]:
    """A prompt and its response in the guard's own chat template, as tokens.

    Args:
        guard: whose tokenizer has the template.
        answer: what is judged.
        add_generation_prompt: as the model's card calls its template; most open the reply anyway.
        template: further values that the template takes, such as a guideline.

    Raises:
        EvaluationError: the template does not show the response.
    """
    tokenizer = guard.tokenizer
    options = {"add_generation_prompt": add_generation_prompt, **template}
    prompt, response = (neutral(text, tokenizer) for text in (answer.prompt.text, answer.response))
    for form in (_plain, _parts):
        if _PROBE in _rendered(tokenizer, form("?", _PROBE), options):
            text = _rendered(tokenizer, form(prompt, response), options)
            tokens: list[int] = tokenizer.encode(text, add_special_tokens=False)
            return tokens
    raise EvaluationError(
        f"prompt {answer.prompt.id!r}: expected a chat template of {tokenizer.name_or_path} that shows "
        "the response, got one that does not"
    )


_PROBE = "c7e1probe52d0"
"""A response that no template holds by itself: tells which form of messages a template shows."""


def _plain(prompt: str, response: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def _parts(prompt: str, response: str) -> list[dict[str, Any]]:
    """Messages as templates of models that read images too want them: lists of parts."""
    turns = _plain(prompt, response)
    return [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]


def _rendered(tokenizer: Any, messages: list[dict[str, Any]], options: Mapping[str, Any]) -> str:
    """The messages in the tokenizer's template; nothing where it is not made for their form."""
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except (TemplateError, TypeError, ValueError):
        return ""
    return text


# --- what it says --------------------------------------------------------------------------


def replies(
    guard: Guard,
    prompts: Mapping[str, Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    wanted: Sequence[int] = (),
    label: str,
    journal: Journal,
    judge: JudgeRecord,
) -> dict[str, Decoded]:
    """Let a guard speak, greedily; the longest prompts first, fewer at once where memory runs out.

    Args:
        guard: the model.
        prompts: id to tokens.
        max_new_tokens: length of a reply.
        batch_size: prompts at once.
        wanted: tokens whose logits are kept at every step.
        label: name in the progress.
        journal: where replies are kept, batch by batch.
        judge: whose replies these are.

    Raises:
        EvaluationError: a prompt is longer than the model reads, memory does not suffice for one, or the
            guard computes NaN.
    """
    room = getattr(guard.model.config.get_text_config(), "max_position_embeddings", None)
    lengths = {prompt_id: len(tokens) for prompt_id, tokens in prompts.items()}
    try:
        check_room(room, lengths, max_new_tokens)
    except EvaluationError as error:
        raise EvaluationError(f"{label}: {error}; a smaller max_response_chars makes room") from error
    fitting = FittingBatches(label, "one answer")
    found: dict[str, Decoded] = {}
    with progress(label, len(prompts)) as advance:
        for batch in by_length(lengths, batch_size):
            asked = [list(prompts[prompt_id]) for prompt_id in batch]
            settings = [judge.id, judge.revision, max_new_tokens, list(wanted), guard.model.device.type]
            key = json_digest({"judge": settings, "batch": asked})
            kept = cast("list[tuple[list[int], list[list[float]] | None]] | None", journal.get(key))
            if kept is None:
                said = fitting(batch, partial(_said, guard, prompts, max_new_tokens, wanted))
                _check_finite(label, dict(zip(batch, said, strict=True)))
                journal.put(key, [_plain_reply(reply) for reply in said])
            else:
                said = [Decoded(tokens, None if rows is None else _logits(rows)) for tokens, rows in kept]
            found.update(zip(batch, said, strict=True))
            advance(len(batch))
    return found


def _check_finite(label: str, said: Mapping[str, Decoded]) -> None:
    """Refuse NaN: no threshold is reached by it, so that every answer would count as safe.

    Raises:
        EvaluationError: there is some; all such prompts are named.
    """
    bad = [i for i, reply in said.items() if reply.logits is not None and not reply.logits.isfinite().all()]
    if bad:
        raise EvaluationError(
            f"{label}: expected finite logits, got NaN or infinity on {', '.join(bad)}; a guard that was "
            "trained in bfloat16 may overflow in float16, in which a GPU without bfloat16 computes"
        )


def _said(
    guard: Guard,
    prompts: Mapping[str, Sequence[int]],
    max_new_tokens: int,
    wanted: Sequence[int],
    ids: Sequence[str],
) -> list[Decoded]:
    """The replies to some prompts, in one batch."""
    encoded = [prompts[prompt_id] for prompt_id in ids]
    return decode(guard.model, guard.tokenizer, encoded, max_new_tokens=max_new_tokens, wanted=wanted)


def _plain_reply(reply: Decoded) -> JsonValue:
    return [list(reply.tokens), None if reply.logits is None else reply.logits.tolist()]


def _logits(rows: list[list[float]]) -> Tensor:
    import torch

    return torch.tensor(rows, dtype=torch.float32)
