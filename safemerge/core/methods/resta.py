"""RESTA: add the safety update to the task's in every layer.

α·ΔW_task + γ·ΔW_safety with α = 1 and γ = 0.5 where not given; γ is ``safety_weight``. The safety update is
the safety adapter's; in the paper it is what unlearning safety takes away. The factors are set side by
side, so the sum is exact. The paper's variant with DARE is not part of it: ``dare_linear`` with a threshold
above 1 and both weights given prunes both updates before it adds them in every layer.

Source: RESTA, arXiv:2402.11746.
"""

from __future__ import annotations

from safemerge.core.methods.base import MergeMethod
from safemerge.core.methods.exact import merge

METHOD = MergeMethod(merge, chooses=False, default_weights=(1.0, 0.5), weighed_sum=True)
