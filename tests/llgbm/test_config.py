import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llgbm.base import Base
from llgbm.config import (
    MODEL_SPECS,
    TARGET_MODULES,
    GeneratorConfig,
    LoRASpec,
    ModelSpec,
    ModuleShape,
    lora_spec,
    model_spec,
)
from llgbm.errors import AdapterMismatchError, ConfigError

TINY = model_spec("tiny")

heads = st.sampled_from([(4, 2), (4, 4), (14, 2), (12, 2)])
model_specs = st.builds(
    lambda layers, head, kv, inner: ModelSpec("m", "o/m", layers, head * kv[0], inner, *kv),
    layers=st.integers(1, 40),
    head=st.integers(1, 16),
    kv=heads,
    inner=st.integers(1, 999),
)


@pytest.mark.parametrize(
    ("name", "rank", "alpha", "parameters"),
    [
        ("qwen2.5-0.5b", 8, 16.0, 4_399_104),
        ("qwen2.5-1.5b", 16, 32.0, 18_464_768),
        ("tiny", 4, 8.0, 8_192),
    ],
)
def test_presets(name: str, rank: int, alpha: float, parameters: int) -> None:
    spec, model = lora_spec(name), model_spec(name)
    assert (spec.rank, spec.alpha, spec.scaling) == (rank, alpha, alpha / rank)
    assert len(spec.modules) == 7 * model.num_layers
    assert spec.num_parameters == parameters
    assert spec.target_modules == TARGET_MODULES
    spec.require_fits(model)


@pytest.mark.real
def test_the_preset_has_the_shape_of_the_real_base(real_base: Base) -> None:
    read = ModelSpec.from_hf_config(real_base.model.config, name="qwen2.5-0.5b", base_id=real_base.spec.base_id)
    assert read == model_spec("qwen2.5-0.5b")
    modules = dict(real_base.model.named_modules())
    for shape in lora_spec("qwen2.5-0.5b").modules:
        linear: Any = modules[shape.name]
        assert (linear.in_features, linear.out_features) == (shape.in_features, shape.out_features)


@given(model_specs)
def test_model_specs_survive_json(model: ModelSpec) -> None:
    assert ModelSpec.from_dict(json.loads(json.dumps(model.to_dict()))) == model


@given(model_specs, st.integers(1, 64), st.floats(0, 99), st.booleans())
def test_the_json_of_a_spec_says_all_of_it(model: ModelSpec, rank: int, alpha: float, rslora: bool) -> None:
    spec = LoRASpec(rank, alpha, LoRASpec.for_model(model).modules, rslora)
    said = json.loads(json.dumps(spec.to_dict()))
    assert LoRASpec(**said | {"modules": tuple(ModuleShape(*module) for module in said["modules"])}) == spec


@given(model_specs, st.sets(st.sampled_from(TARGET_MODULES), min_size=1))
def test_modules_are_in_layer_order_and_fit(model: ModelSpec, targets: set[str]) -> None:
    spec = LoRASpec.for_model(model, targets=sorted(targets))
    assert [m.layer for m in spec.modules] == sorted(m.layer for m in spec.modules)
    assert {m.target for m in spec.modules} == targets
    assert spec.names == tuple(m.name for m in spec.modules)
    spec.require_fits(model)


def test_scaling_of_both_kinds() -> None:
    modules = lora_spec("tiny").modules
    assert LoRASpec(16, 8.0, modules).scaling == 0.5
    assert LoRASpec(16, 8.0, modules, use_rslora=True).scaling == 2.0


def test_modules_of_another_base_are_named() -> None:
    other = lora_spec("qwen2.5-0.5b")
    with pytest.raises(AdapterMismatchError, match=r"model\.layers\.0\.self_attn\.q_proj is 896"):
        other.require_fits(TINY)
    with pytest.raises(AdapterMismatchError, match=r"model\.layers\.2\."):
        LoRASpec(1, 1.0, (ModuleShape("model.layers.2.mlp.up_proj", 64, 128),)).require_fits(TINY)
    for name in ("lm_head", "model.layers.x.mlp.up_proj", "model.layers.0.mlp.extra_proj"):
        with pytest.raises(AdapterMismatchError, match=name):
            LoRASpec(1, 1.0, (ModuleShape(name, 64, 128),)).require_fits(TINY)
    misplaced = ModuleShape("model.layers.0.self_attn.up_proj", 64, 128)
    with pytest.raises(AdapterMismatchError, match="self_attn"):
        LoRASpec(1, 1.0, (misplaced,)).require_fits(TINY)


def test_wrong_specs_are_refused() -> None:
    module = TINY.module_shape(0, "q_proj")
    for rank, modules in ((0, (module,)), (1, ()), (1, (module, module))):
        with pytest.raises(ConfigError):
            LoRASpec(rank, 1.0, modules)
    with pytest.raises(ConfigError, match="unknown target"):
        LoRASpec.for_model(TINY, targets=("lm_head",))
    for layer in (-1, 2):
        with pytest.raises(ConfigError, match="layers 0 to 1"):
            TINY.module_shape(layer, "q_proj")
    with pytest.raises(ConfigError, match="ModelSpec"):
        ModelSpec.from_dict({**TINY.to_dict(), "more": 1})


@pytest.mark.parametrize("name", ["qwen", "", "TINY"])
def test_unknown_presets_list_the_known(name: str) -> None:
    for look_up in (model_spec, lora_spec):
        with pytest.raises(ConfigError, match=", ".join(MODEL_SPECS)):
            look_up(name)


def test_generator_config() -> None:
    config = GeneratorConfig(basis_rank=7)
    assert GeneratorConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ConfigError, match="GeneratorConfig"):
        GeneratorConfig.from_dict({"unknown": 1})
    for field in config.to_dict():
        with pytest.raises(ConfigError, match=field):
            GeneratorConfig.from_dict({field: 0})
