"""Modules in a few words."""

from __future__ import annotations

import doctest

import pytest

from safemerge.core import module_names
from safemerge.core.module_names import by_kind_and_layer, by_kind_and_position, grouped, module_kinds


def test_the_examples_hold() -> None:
    assert doctest.testmod(module_names) == (0, 3)


def test_kinds_are_told_apart_by_as_few_names_as_it_takes() -> None:
    modules = ["a.0.self_attn.q_proj", "a.0.cross_attn.q_proj", "a.0.v_proj", "q_proj"]
    assert list(module_kinds(modules).values()) == [
        "self_attn.q_proj",
        "cross_attn.q_proj",
        "v_proj",
        "q_proj",
    ]


def test_experts_share_the_cell_of_their_layer_and_have_positions_of_their_own() -> None:
    experts = ["layers.10.experts.0.up", "layers.2.experts.0.up", "layers.2.experts.1.up"]
    found = by_kind_and_layer([*experts, "lm_head"])
    assert found.kinds == ["up", "lm_head"]
    assert found.places == ["2", "10", "–"]
    assert found.cells == {("up", "10"): experts[:1], ("up", "2"): experts[1:], ("lm_head", "–"): ["lm_head"]}
    assert by_kind_and_position(experts).places == ["2.0", "2.1", "10.0"]


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        ([], ""),
        (["layers.3.q_proj"], "q_proj in layer 3"),
        (["layers.0.experts.0.up", "layers.0.experts.1.up"], "up × 2 places"),
    ],
)
def test_modules_are_grouped(modules: list[str], said: str) -> None:
    assert grouped(modules) == said
