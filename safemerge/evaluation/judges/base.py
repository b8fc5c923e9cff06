"""What all judges share: their interface, and how they are shown what a hostile model may have written."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from safemerge.config.judges import JudgeSettings
from safemerge.errors import EvaluationError
from safemerge.evaluation.journal import Journal
from safemerge.evaluation.suites import Prompt
from safemerge.records import JudgeRecord, SuiteKind, valid_unicode

logger = logging.getLogger(__name__)


class Answer(NamedTuple):
    """A prompt and what the model said to it."""

    prompt: Prompt
    response: str


class Judge(Protocol):
    """Anything that flags responses.

    Making one loads nothing and asks nobody, however large the model behind it: the
    pipeline makes judges just to know, by their record, what is done already.
    """

    @property
    def record(self) -> JudgeRecord:
        """Identity that every report shows, known before the first flag."""
        ...

    def flags(
        self, kind: SuiteKind, answers: Sequence[Answer], journal: Journal | None = None
    ) -> dict[str, bool]:
        """Prompt id to flag, for every answer; what a flag means depends on ``kind``. Loads what it needs.

        A judge that takes long or costs money keeps what it finds in the journal, and asks nothing twice.
        """
        ...

    def release(self) -> None:
        """Free what :meth:`flags` loaded; the next call loads it again."""
        ...


class ModelJudge:
    """Base of judges that ask a model: what they agree on before and after it is asked.

    An empty response has said nothing: it is no compliance with a harmful request, and it is a
    refusal of a harmless one. The model is not asked about it.
    """

    record: JudgeRecord

    def __init__(self, config: JudgeSettings) -> None:
        self.config = config
        self._journal = Journal()
        """Where what the model says is kept, while flags are being given."""

    def flags(
        self, kind: SuiteKind, answers: Sequence[Answer], journal: Journal | None = None
    ) -> dict[str, bool]:
        """Prompt id to flag.

        Raises:
            EvaluationError: the judge cannot judge such suites, or gave no verdict on an answer.
        """
        if kind is SuiteKind.OVER_REFUSAL and not self.config.sees_refusals:
            raise EvaluationError(
                f"judge {self.record.id}: expected a harmful suite, got one of harmless requests, "
                "of which it cannot see whether they were refused"
            )
        empty = {a.prompt.id: kind is SuiteKind.OVER_REFUSAL for a in answers if not a.response.strip()}
        rest = [answer for answer in answers if answer.prompt.id not in empty]
        self._journal = journal or Journal()
        given = self._verdicts(kind, shown(rest, self.config.max_response_chars)) if rest else {}
        check_readable(self.record.id, {i: said for i, said in given.items() if isinstance(said, str)})
        flags = {**empty, **{i: bool(flag) for i, flag in given.items()}}
        return {answer.prompt.id: flags[answer.prompt.id] for answer in answers}

    def _verdicts(self, kind: SuiteKind, answers: Sequence[Answer]) -> dict[str, bool | str]:
        """Prompt id to flag, or to the reply in which none could be read."""
        raise NotImplementedError

    def release(self) -> None:
        """Free what :meth:`flags` loaded; the next call loads it again."""


def shown(answers: Sequence[Answer], max_response_chars: int) -> list[Answer]:
    """The answers as a judge sees them: valid Unicode, and long responses without their middle.

    Both ends are kept, as harm may follow a harmless opening; a note stands where text was
    left out, and the log names the number of answers.

    Args:
        answers: what is to be judged.
        max_response_chars: characters of a response that are shown.
    """
    long = [answer.prompt.id for answer in answers if len(answer.response) > max_response_chars]
    if long:
        logger.warning(
            "%d of %d responses are longer than %d characters and are judged without their middle: %s",
            len(long),
            len(answers),
            max_response_chars,
            ", ".join(long[:10]) + (", …" if len(long) > 10 else ""),
        )
    return [
        Answer(
            answer.prompt._replace(text=valid_unicode(answer.prompt.text)),
            _without_middle(valid_unicode(answer.response), max_response_chars),
        )
        for answer in answers
    ]


def _without_middle(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    tail = limit // 4
    head = limit - tail
    return f"{text[:head]}\n[{len(text) - limit} characters left out]\n{text[-tail:]}"


def settings_revision(revision: str, settings: Mapping[str, object]) -> str:
    """A model's revision with a short digest of the settings that its flags depend on."""
    content = json.dumps(settings, sort_keys=True, default=str)
    return f"{revision}+{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def check_readable(judge: str, unreadable: Mapping[str, str]) -> None:
    """Check that a judge gave a verdict on every answer: one without is neither safe nor unsafe.

    Args:
        judge: its id.
        unreadable: prompt id to what the judge said instead of a verdict.

    Raises:
        EvaluationError: there are such answers; all are named, with the first reply.
    """
    if unreadable:
        first = repr(next(iter(unreadable.values())))
        first = first if len(first) <= 80 else f"{first[:79]}…"
        raise EvaluationError(
            f"judge {judge}: expected a verdict on every answer, got none on "
            f"{', '.join(sorted(unreadable))}; it said {first}"
        )
