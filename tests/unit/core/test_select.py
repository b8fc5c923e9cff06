"""From cosines to chosen layers: strict threshold, counted quantile, ties."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safemerge.core.select import (
    select_by_count,
    select_by_modules,
    select_by_quantile,
    select_by_threshold,
)
from safemerge.errors import ConfigError

COSINES = {"a": 0.1, "b": 0.35, "c": 0.2, "d": 0.9}
quick = settings(max_examples=60, deadline=None, derandomize=True)
cosine_maps = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.floats(0, 1), max_size=12)


@pytest.mark.parametrize(
    ("threshold", "chosen"),
    [
        (-1, ""),
        (0, ""),
        (0.1, ""),
        (0.11, "a"),
        (0.35, "ac"),
        (0.35 + 1e-12, "abc"),
        (1.01, "abcd"),
    ],
)
def test_threshold_is_strict(threshold: float, chosen: str):
    assert select_by_threshold(COSINES, threshold) == (frozenset(chosen), threshold)


@pytest.mark.parametrize(
    ("quantile", "chosen", "threshold"),
    [
        (0.0, "", 0.1),
        (0.12, "", 0.1),
        (0.125, "a", 0.2),  # half a layer rounds up
        (0.25, "a", 0.2),
        (0.5, "ac", 0.35),
        (0.75, "abc", 0.9),
    ],
)
def test_quantile_takes_the_lowest(quantile: float, chosen: str, threshold: float):
    assert select_by_quantile(COSINES, quantile) == (frozenset(chosen), threshold)


def test_quantile_one_takes_all_with_a_threshold_just_above_them():
    selection = select_by_quantile(COSINES, 1)
    assert selection.chosen == frozenset("abcd")
    assert 0.9 < selection.threshold < 0.9 + 1e-12


def test_ties_are_taken_in_the_order_of_their_paths():
    cosines = {"d": 0.5, "b": 0.5, "c": 0.5, "a": 0.5}
    assert select_by_quantile(cosines, 0.5).chosen == frozenset("ab")


def test_nothing_to_choose_from():
    assert select_by_quantile({}, 0.5) == (frozenset(), 0.0)
    assert select_by_threshold({}, 0.5).chosen == frozenset()


@given(cosine_maps, st.floats(0, 1))
@quick
def test_quantile_holds_its_count_whatever_the_order(cosines: dict[str, float], quantile: float):
    selection = select_by_quantile(cosines, quantile)
    assert abs(len(selection.chosen) - quantile * len(cosines)) <= 0.5
    assert selection == select_by_quantile(dict(reversed(cosines.items())), quantile)
    kept = [rho for module, rho in cosines.items() if module not in selection.chosen]
    assert all(cosines[module] <= rho for module in selection.chosen for rho in kept)


@given(st.lists(st.floats(0, 1), unique=True, max_size=12), st.floats(0, 1))
@quick
def test_without_ties_its_threshold_makes_the_same_choice(values: list[float], quantile: float):
    cosines = {f"layer{index}": rho for index, rho in enumerate(values)}
    selection = select_by_quantile(cosines, quantile)
    assert select_by_threshold(cosines, selection.threshold) == selection


@pytest.mark.parametrize(("count", "chosen", "threshold"), [(0, "", 0.1), (1, "a", 0.2), (3, "abc", 0.9)])
def test_count_takes_the_lowest(count: int, chosen: str, threshold: float):
    assert select_by_count(COSINES, count) == (frozenset(chosen), threshold)


def test_more_layers_than_there_are_is_refused():
    with pytest.raises(ConfigError, match="count: expected at most the 4 layers with a cosine, got 5"):
        select_by_count(COSINES, 5)


def test_modules_are_chosen_by_path_or_pattern():
    modules = ["layers.1.q_proj", "layers.1.v_proj", "layers.10.q_proj"]
    assert select_by_modules(modules, ["layers.1.*"]) == (frozenset(modules[:2]), None)
    assert select_by_modules(modules, ["*.q_proj", modules[1]]).chosen == frozenset(modules)


def test_patterns_that_choose_nothing_are_named():
    with pytest.raises(ConfigError, match=r"got none for \*\.K_PROJ, layers\.2$"):
        select_by_modules(["layers.1.k_proj"], ["layers.2", "*.K_PROJ", "*.k_proj"])
