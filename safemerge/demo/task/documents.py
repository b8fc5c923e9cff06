"""Documents and metric of the demo's lm-eval task.

lm-eval's metrics never see the tokenizer, so the documents bring their answer's length
in tokens with them. lm-eval hands the tokenizer's name to ``read`` as it does to its own
tasks that measure text in tokens: from the model arguments, or from ``metadata``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent.parent / "data"


def read(file: str, tokenizer: str | None = None, pretrained: str | None = None, **_: Any) -> Any:
    """The documents of one split.

    Args:
        file: JSON Lines file in the demo's data, with ``prompt`` and ``response``.
        tokenizer: folder or hub id of the evaluated model's tokenizer.
        pretrained: the same of the model, where no tokenizer is named.

    Returns:
        A ``DatasetDict`` with the split ``test``: id, prompt, response, answer_tokens.

    Raises:
        ValueError: no tokenizer is named.
    """
    from datasets import Dataset, DatasetDict
    from transformers import AutoTokenizer

    source = tokenizer or pretrained
    if source is None:
        raise ValueError("expected the tokenizer's name in the model arguments or metadata, got none")
    encode = AutoTokenizer.from_pretrained(source).encode
    rows = [json.loads(line) for line in (DATA / file).read_text(encoding="utf-8").splitlines()]
    documents = [
        {
            "id": row["id"],
            "prompt": row["prompt"],
            "response": row["response"],
            "answer_tokens": len(encode(row["response"], add_special_tokens=False)),
        }
        for row in rows
    ]
    return DatasetDict({"test": Dataset.from_list(documents)})


def score(document: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """Log-likelihood of the answer divided by its number of tokens, in nats; at most 0.

    Under a chat template lm-eval scores the white space that ends the assistant's header
    with the answer; a chat model gives it a probability of almost 1.
    """
    ((log_likelihood, _),) = results
    return {"answer_logprob_per_token": log_likelihood / document["answer_tokens"]}
