"""Steps of axes and bins."""

from __future__ import annotations

import doctest

import pytest

from safemerge.plots import scales


def test_the_examples_hold() -> None:
    assert doctest.testmod(scales) == (0, 1)


# 0.01 is a step itself, whatever floating point makes of its logarithm.
@pytest.mark.parametrize(("width", "step"), [(0.03, 0.05), (0.011, 0.02), (0.01, 0.01), (0.07, 0.1)])
def test_steps_are_round(width: float, step: float) -> None:
    assert scales.round_step(width) == pytest.approx(step)
