"""Control: α·ΔW_task in all layers."""

from __future__ import annotations

from safemerge.core.methods.base import MergeMethod
from safemerge.core.methods.scale_selected import merge

METHOD = MergeMethod(merge, chooses=False, needs_safety=False, weighed_sum=True)
