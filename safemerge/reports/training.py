"""How an adapter was fine-tuned."""

from __future__ import annotations

from pydantic import JsonValue

from safemerge.described import FORMAT_VERSION, Record

TRAINING_REPORT_FILE = "safemerge_training.json"
"""In the folder of a fine-tuned adapter."""


class TrainingReport(Record):
    """``safemerge_training.json``: how an adapter was fine-tuned."""

    format_version: int = FORMAT_VERSION
    model: str
    """The model that was fine-tuned, as the adapter's config names it."""
    data_digest: str
    """sha256 of the examples in their order."""
    examples: int
    """Examples that were trained on."""
    truncated_examples: int
    """Examples cut to the largest length; those with no answer left were dropped."""
    settings: dict[str, JsonValue]
    """The training settings as asked for."""
    batch_size: int
    """Examples a device and forward pass; smaller than asked for where memory ran out."""
    gradient_accumulation: int
    processes: int
    """Processes that trained together, one a device."""
    effective_batch_size: int
    """Examples an optimiser step, over all processes."""
    steps: int
    resumed_from_step: int | None
    """Step of the checkpoint that training went on from; None where it began at zero."""
    device: str
    dtype: str
    """Number format of the computation."""
    trainable_parameters: int
    final_loss: float
    """Mean loss a token of the answers over the last logging interval, in nats."""
    wall_s: float
    """Seconds this call spent training."""
