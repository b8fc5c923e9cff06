"""Settings of adapters: every one that PEFT knows is decided, and targets are found as PEFT finds them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from safemerge.errors import AdapterError, UnsupportedAdapterError
from safemerge.storage.adapter_config import (
    PLAIN_SETTINGS,
    REFUSED_SETTINGS,
    check_targeted,
    is_saved,
    refuse_variants,
)


def test_every_setting_of_the_installed_peft_is_decided():
    from peft import LoraConfig

    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert not PLAIN_SETTINGS & REFUSED_SETTINGS.keys()
    assert fields - PLAIN_SETTINGS - REFUSED_SETTINGS.keys() == set()
    assert (PLAIN_SETTINGS | REFUSED_SETTINGS.keys()) - fields == set()


@pytest.mark.parametrize("name", sorted(REFUSED_SETTINGS))
def test_a_refusal_says_why(name: str):
    with pytest.raises(UnsupportedAdapterError) as caught:
        refuse_variants("x", {"peft_type": "LORA", name: "on"})
    assert str(caught.value).endswith(f'holds: {name}="on" ({REFUSED_SETTINGS[name]})')


def test_dora_passes_where_it_may():
    config = {"peft_type": "LORA", "use_dora": True}
    refuse_variants("x", config, dora=True)
    with pytest.raises(UnsupportedAdapterError, match="lora_bias=true"):
        refuse_variants("x", config | {"lora_bias": True}, dora=True)


MODULES = [
    f"model.layers.{layer}.{module}"
    for layer in (0, 1, 10)
    for module in ("self_attn.q_proj", "self_attn.v_proj", "mlp.experts.1.up_proj", "mlp.my_q_proj")
] + ["lm_head", "model.embed_tokens"]


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "up_proj"]},
        {"target_modules": ["layers.1.self_attn.q_proj", "lm_head"]},
        {"target_modules": r".*\.(1|10)\.self_attn\.[qv]_proj"},
        {"target_modules": "q_proj"},
        {"target_modules": r"lm_head|.*\.0\..*_proj"},
        {"target_modules": ["q_proj"], "exclude_modules": ["layers.1.self_attn.q_proj"]},
        {"target_modules": ["q_proj"], "exclude_modules": r".*\.10?\..*"},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1, 10]},
        {"target_modules": ["q_proj"], "layers_to_transform": 10, "layers_pattern": "layers"},
        {"target_modules": ["q_proj"], "layers_to_transform": 10, "layers_pattern": ["h", "layers"]},
        {"target_modules": ["up_proj"], "layers_to_transform": [1], "layers_pattern": "experts"},
        {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [1]},
        {"target_modules": ["lm_head", "model.layers.0.self_attn.q_proj"], "layers_to_transform": [1]},
        {"target_modules": ["q_proj"], "layers_to_transform": []},
        {"target_modules": r".*q_proj", "exclude_modules": ["self_attn.q_proj"]},
        {"target_modules": []},
    ],
)
def test_modules_are_targeted_as_in_peft(settings: dict[str, Any]):
    from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists

    config = {"layers_to_transform": None, "layers_pattern": None, "exclude_modules": None, **settings}
    found = {module: check_target_module_exists(SimpleNamespace(**config), module) for module in MODULES}
    left_out = sorted(
        module for module, match in found.items() if not match or isinstance(match, _ExcludedModule)
    )
    with pytest.raises(AdapterError) as caught:
        check_targeted(Path("x"), settings, MODULES)
    assert str(caught.value).endswith(f"that leave out {', '.join(left_out)}")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_modules": "all-linear"},
        {"target_modules": [], "target_parameters": ["mlp.gate.weight"]},
        {"target_modules": None, "target_parameters": ["gate.weight"]},
    ],
)
def test_modules_that_peft_finds_by_itself_are_targeted(settings: dict[str, Any]):
    check_targeted(Path("x"), settings, ["model.layers.0.mlp.gate"])


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules"])
def test_a_broken_expression_is_named(key: str):
    with pytest.raises(AdapterError, match=rf"x: {key}: expected a regular expression, got '\('"):
        check_targeted(Path("x"), {"target_modules": ["q_proj"], key: "("}, ["q_proj"])


def test_modules_to_save_are_matched_by_the_end_of_a_path():
    config = {"modules_to_save": ["norm", "mlp.0"]}
    saved = ["model.norm", "layers.0.input_layernorm", "layers.0.mlp.0", "layers.0.mlp.0.up_proj"]
    others = ["lm_head", "layers.0.mlp", "norms.0"]
    assert [module for module in saved + others if is_saved(config, module)] == saved
    assert not is_saved({"modules_to_save": None}, "lm_head")
