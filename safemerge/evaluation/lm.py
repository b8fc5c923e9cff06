"""A loaded arm as lm-eval's language model, with our progress in place of its bars."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from safemerge.evaluation.progress import progress

if TYPE_CHECKING:
    from safemerge.evaluation.transformers_arm import TransformersArm


@contextmanager
def lm_eval_log_level(level: int) -> Iterator[None]:
    """Let lm-eval log from this level on: it comments much of what it is told to do."""
    log = logging.getLogger("lm_eval")
    before = log.level
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(before)


def make_lm(arm: TransformersArm, batch_size: int, label: str) -> Any:
    """Wrap an arm for lm-eval; log-probabilities are computed in fp32 on any device.

    Args:
        arm: the loaded arm.
        batch_size: requests scored at once.
        label: name in the progress.
    """
    from lm_eval.models.huggingface import HFLM

    class ReportingLM(HFLM):  # type: ignore[misc]
        """HFLM that says how far it is."""

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, **options: Any) -> Any:
            with progress(label, len(requests)) as self._advance:
                return super()._loglikelihood_tokens(requests, disable_tqdm=True, **options)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            with progress(label, len(requests)) as self._advance:
                return super().generate_until(requests, disable_tqdm=True)

        def _model_call(self, inps: Any, **options: Any) -> Any:
            output = super()._model_call(inps, **options)
            self._advance(len(inps))
            return output

        def _model_generate(self, context: Any, *arguments: Any, **options: Any) -> Any:
            output = super()._model_generate(context, *arguments, **options)
            self._advance(len(context))
            return output

    with lm_eval_log_level(logging.ERROR):
        return ReportingLM(
            pretrained=arm.model, tokenizer=arm.tokenizer, batch_size=batch_size, softmax_dtype="float32"
        )
