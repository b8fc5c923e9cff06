"""safemerge: repair what fine-tuning does to a language model's safety, and gate what is not repaired."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safemerge.core.lora import LoraPair
    from safemerge.core.merge import MergeResult, safemerge
    from safemerge.engine.coefficient_files import read_coefficients
    from safemerge.engine.comparing import compare_adapters
    from safemerge.engine.cosines import score_cosines
    from safemerge.engine.exporting import export_adapter, export_merge
    from safemerge.engine.inspection import inspect_adapters
    from safemerge.engine.learning import learn_coefficients
    from safemerge.engine.merging import merge_adapters
    from safemerge.engine.sweeping import sweep_adapters
    from safemerge.engine.tuning import tune_adapters
    from safemerge.peft_model import merge_into
    from safemerge.pipeline.rolling_back import rollback

__version__ = "0.1.0"

__all__ = [
    "LoraPair",
    "MergeResult",
    "compare_adapters",
    "export_adapter",
    "export_merge",
    "inspect_adapters",
    "learn_coefficients",
    "merge_adapters",
    "merge_into",
    "read_coefficients",
    "rollback",
    "safemerge",
    "score_cosines",
    "sweep_adapters",
    "tune_adapters",
]

_HOMES = {
    "LoraPair": "safemerge.core.lora",
    "MergeResult": "safemerge.core.merge",
    "compare_adapters": "safemerge.engine.comparing",
    "export_adapter": "safemerge.engine.exporting",
    "export_merge": "safemerge.engine.exporting",
    "inspect_adapters": "safemerge.engine.inspection",
    "learn_coefficients": "safemerge.engine.learning",
    "merge_adapters": "safemerge.engine.merging",
    "merge_into": "safemerge.peft_model",
    "read_coefficients": "safemerge.engine.coefficient_files",
    "rollback": "safemerge.pipeline.rolling_back",
    "safemerge": "safemerge.core.merge",
    "score_cosines": "safemerge.engine.cosines",
    "sweep_adapters": "safemerge.engine.sweeping",
    "tune_adapters": "safemerge.engine.tuning",
}


def __getattr__(name: str) -> Any:
    """Load public names on first use, so that ``import safemerge`` loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
