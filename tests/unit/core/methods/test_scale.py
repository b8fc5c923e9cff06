"""The control in every layer."""

from __future__ import annotations

import torch

from safemerge.core import methods


def test_it_multiplies_the_update_of_every_layer(pair, merged, error_of):
    task = pair(0)
    assert error_of(merged("scale", task, task_weight=0.3), 0.3 * task.delta(torch.float64)) < 1e-6
    assert not methods.get("scale").chooses
