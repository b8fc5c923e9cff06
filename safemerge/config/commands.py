"""The config files of single commands, as :mod:`safemerge.config.pipeline` is of the pipeline's."""

from __future__ import annotations

from safemerge.config.base import Config
from safemerge.config.grid import SweepGrid
from safemerge.config.merge import MergeConfig
from safemerge.config.places import FilePlace, ModelPlace


class Inputs(Config):
    """What a merge is made of: folders (relative to the config file) or hub ids (``org/name@revision``)."""

    task_adapter: ModelPlace
    """LoRA adapter fine-tuned on the task."""
    safety_adapter: ModelPlace | None = None
    """LoRA adapter fine-tuned to refuse harm; methods that need none do without."""
    aligned_model: ModelPlace
    """The model that both adapters were trained on."""
    unaligned_model: ModelPlace
    """Its counterpart before alignment; same architecture."""


class MergeFileConfig(Inputs):
    """``safemerge merge --config``: what to merge, how, and where to."""

    output: FilePlace
    """Folder to make (relative to the config file); it must not exist."""
    merge: MergeConfig = MergeConfig()


class SweepFileConfig(Inputs):
    """``safemerge sweep --config``: what to merge, and the settings to try."""

    output: FilePlace | None = None
    """Folder to make for reports and adapters (relative to the config file); it must not exist."""
    grid: SweepGrid = SweepGrid()
    write: tuple[str, ...] = ()
    """Names of candidates to write as adapters, or ``all``."""
