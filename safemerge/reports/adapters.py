"""Frozen results about adapters: what they are, how they score, differ and might merge, and their exports."""

from __future__ import annotations

from pydantic import Field, JsonValue

from safemerge.described import FORMAT_VERSION, Record

# --- inspect -------------------------------------------------------------


class AdapterSummary(Record):
    """What is in an adapter's folder."""

    name: str
    """As the user wrote it."""
    readable: bool
    """Whether it is an adapter that can be merged; otherwise ``problems`` of the report says why not."""
    base_model: str | None
    """The model that the adapter names as its own."""
    ranks: dict[int, int] = Field(default_factory=dict)
    """Rank to number of modules; as configured where the adapter is not readable."""
    alphas: dict[str, int] = Field(default_factory=dict)
    """lora_alpha to number of modules."""
    scales: dict[str, int] = Field(default_factory=dict)
    """Factor of B·A, lora_alpha / r or lora_alpha / √r, to number of modules."""
    rslora: bool = False
    targets: str = ""
    """Modules by kind, such as ``q_proj, v_proj × 32 layers``."""
    modules: tuple[str, ...] = ()
    parameters: int | None = None
    size_bytes: int | None = None
    dtype: str | None = None
    norm: float | None = None
    """Frobenius norm of all ΔW together."""
    digest: str | None = None


class InspectionReport(Record):
    """What is in some adapters, and whether they fit each other and the models."""

    format_version: int = FORMAT_VERSION
    safemerge_version: str
    adapters: tuple[AdapterSummary, ...]
    aligned_model: str | None = None
    unaligned_model: str | None = None
    problems: tuple[str, ...]
    """What stands in the way of a merge, one line each."""
    notes: tuple[str, ...]
    """What is worth knowing, and no hindrance."""


# --- score ---------------------------------------------------------------


class LayerCosine(Record):
    """How far one layer's update lies within the directions of alignment."""

    module: str
    cosine: float | None
    """ρ in [0, 1]; None where it is undefined."""
    undefined: str | None = None
    """Why it is undefined."""
    task_norm: float
    """Frobenius norm of ΔW_task."""


class Choice(Record):
    """How many layers a threshold or a quantile would choose."""

    threshold: float
    """τ."""
    quantile: float | None = None
    """The share of layers that τ was derived from."""
    layers: int
    """Layers with a cosine below τ."""


class AdapterCosines(Record):
    """The scores of one adapter."""

    name: str
    digest: str
    layers: tuple[LayerCosine, ...]
    """In natural order of their paths."""
    choices: tuple[Choice, ...]

    @property
    def cosines(self) -> list[float]:
        """Those that are defined, in rising order."""
        return sorted(layer.cosine for layer in self.layers if layer.cosine is not None)


class CosineReport(Record):
    """The scores of adapters, from one pass over the checkpoints."""

    format_version: int = FORMAT_VERSION
    safemerge_version: str
    adapters: tuple[AdapterCosines, ...]
    digests: dict[str, str]
    """sha256 of aligned_model and unaligned_model, as far as they were read."""
    warnings: tuple[str, ...] = ()


# --- diff ----------------------------------------------------------------


class LayerDifference(Record):
    """How one layer's update differs between two adapters A and B."""

    module: str
    norm_a: float | None
    """Frobenius norm of ΔW_A; None where A lacks the layer."""
    norm_b: float | None
    difference: float | None
    """‖ΔW_A − ΔW_B‖ / ‖ΔW_A‖; None where it is infinite or one lacks the layer."""
    cosine: float | None
    """Between ΔW_A and ΔW_B, in [−1, 1]; None where either is zero or missing."""


class DifferenceReport(Record):
    """How two adapters differ."""

    format_version: int = FORMAT_VERSION
    safemerge_version: str
    a: str
    b: str
    digests: dict[str, str]
    """sha256 of a and b."""
    difference: float | None
    """‖ΔW_A − ΔW_B‖ / ‖ΔW_A‖ over all layers together, where a missing layer counts as zero."""
    cosine: float | None
    """Over all layers together."""
    tolerance: float
    """Largest relative difference of the adapters, and of each layer, that counts as none."""
    same: bool
    """Whether the adapters have the same layers and differ by no more than the tolerance."""
    identical: bool
    """Whether the settings and bytes are the same."""
    layers: tuple[LayerDifference, ...]


# --- sweep ---------------------------------------------------------------


class Candidate(Record):
    """One merge that could be made, and how far it goes."""

    name: str
    options: dict[str, JsonValue]
    """All that was chosen, by the names of :class:`safemerge.core.options.MergeOptions`."""
    layers_merged: int
    threshold: float | None
    """τ; None where layers were not chosen by cosine."""
    change: float
    """‖ΔW_merged − ΔW_task‖ / ‖ΔW_task‖ over all layers together."""
    safety_cosine: float | None
    """Cosine between ΔW_merged and ΔW_safety over all layers together, in [−1, 1]: the share of safety."""
    rank: int
    """Rank that the adapter is stored at."""
    error: float
    """Largest relative error of a layer, of storing its update at that rank."""
    output: str | None = None
    """Folder that it was written to."""


class SweepReport(Record):
    """The merges that a grid of settings gives, from one pass over the checkpoints."""

    format_version: int = FORMAT_VERSION
    safemerge_version: str
    digests: dict[str, str]
    """sha256 of task_adapter, safety_adapter (where there is one), aligned_model, unaligned_model."""
    layers: int
    """Layers of the task adapter."""
    candidates: tuple[Candidate, ...]
    warnings: tuple[str, ...] = ()


# --- export --------------------------------------------------------------


class ExportReport(Record):
    """``safemerge_export.json``: how a full model came about."""

    format_version: int = FORMAT_VERSION
    safemerge_version: str
    model: str | None
    """Hub id of the model whose weights were changed; None where it came from a folder."""
    adapter: str | None
    """Hub id of the adapter, or of the task adapter of a merge; None where it came from a folder."""
    method: str | None = None
    """Merge method; None where an adapter was folded in as it is."""
    dtype: str
    """What float tensors are stored as; ``keep`` where each kept its own."""
    digests: dict[str, str]
    """sha256 of ``adapter``, or of a merge's inputs."""
    changed: tuple[str, ...]
    """Tensors that are not the model's own, in natural order."""
    untied: bool
    """Whether the output embedding was given weights of its own, since input and output now differ."""
    n_bytes: int
    """Size of the weight files."""
    warnings: tuple[str, ...] = ()
