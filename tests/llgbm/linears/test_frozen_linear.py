from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llgbm.base import load_base
from llgbm.config import lora_spec
from llgbm.errors import ConfigError
from llgbm.functional import FunctionalLoRA
from llgbm.linears.frozen_linear import (
    BFloat16Linear,
    Int8Linear,
    Storage,
    fastest_storage,
    int8_group,
    store_linears,
)
from llgbm.linears.int8 import Int8TrainingLinear
from tests.fixtures import linear, random_lora

STORED: list[Storage] = ["bfloat16", "int8", "int8_training"]
TRAINABLE: list[Storage] = ["bfloat16", "int8_training"]
ERROR = {"bfloat16": 0.01, "int8": 0.03, "int8_training": 0.03}
"""Largest relative error of an output by the storage."""


def stored(module: nn.Linear, storage: Storage) -> nn.Module:
    parent = nn.Sequential(module)
    store_linears(parent, storage)
    return parent[0]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.float() - expected.float()).norm() / expected.float().norm())


@given(
    storage=st.sampled_from(STORED),
    rows=st.integers(1, 70),
    columns=st.integers(8, 70),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_output_is_near_that_of_float32(storage: Storage, rows: int, columns: int, bias: bool, seed: int) -> None:
    module = linear(rows, columns, seed, bias=bias)
    x = torch.randn(2, 32, columns, generator=torch.Generator().manual_seed(seed))
    # the bias keeps its precision, and cancellation of large numbers is no error of the storage
    expected = module(x)
    actual = stored(module, storage)(x)
    assert actual.shape == expected.shape
    assert actual.dtype == x.dtype
    scale = module.weight.norm(dim=1).mean() * x.norm(dim=-1).mean() / columns**0.5
    assert (actual - expected).abs().mean() <= ERROR[storage] * scale


@pytest.mark.parametrize("storage", STORED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_keep_their_dtype(storage: Storage, dtype: torch.dtype) -> None:
    module = stored(linear(16, 32, 0), storage)
    x = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        assert module(x).dtype == dtype


@given(
    columns=st.integers(1, 70),
    outputs=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    exponents=st.lists(st.integers(-6, 6), min_size=1, max_size=9),
    seed=st.integers(0, 99),
)
def test_an_int8_row_does_not_depend_on_the_rows_beside_it(
    columns: int, outputs: list[int], exponents: list[int], seed: int
) -> None:
    modules = int8_group([linear(rows, columns, seed + i, bias=i != 1) for i, rows in enumerate(outputs)])
    scales = torch.tensor([10.0**e for e in exponents])[:, None]
    x = torch.randn(len(exponents), columns, generator=torch.Generator().manual_seed(seed)) * scales
    together = [module(x) for module in modules]
    for row in range(len(exponents)):
        alone = x[row : row + 1].clone()
        for module, whole in zip(modules, together, strict=True):
            assert torch.equal(module(alone)[0], whole[row])


def test_an_int8_row_of_zeros_is_the_bias_and_one_without_numbers_spoils_no_other() -> None:
    module = linear(16, 24, 0)
    (int8,) = int8_group([module])
    x = torch.randn(4, 24, generator=torch.Generator().manual_seed(0))
    x[1] = 0
    expected = int8(x.clone())
    assert torch.equal(expected[1], module.bias)
    x[2] = torch.nan
    actual = int8(x)
    assert not actual[2].isfinite().any()
    assert torch.equal(actual[[0, 1, 3]], expected[[0, 1, 3]])


def test_int8_needs_a_processor_that_torch_has_the_kernel_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", ["none"], raising=False)
    with pytest.raises(ConfigError, match="no int8 kernel"):
        int8_group([linear(2, 3, 0)])


def test_the_fastest_storage_is_int8_only_where_there_is_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    for engines, expected in ((["fbgemm", "none"], "int8"), (["qnnpack", "none"], "float32")):
        monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", engines, raising=False)
        assert fastest_storage() == expected
        assert fastest_storage("cuda:1") == "bfloat16"


def test_bfloat16_passes_the_gradient_to_its_input_and_none_to_its_weight() -> None:
    module = linear(24, 40, 3)
    x = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (expected,) = torch.autograd.grad(module(x).square().sum(), x)
    half = stored(module, "bfloat16")
    assert isinstance(half, BFloat16Linear)
    (actual,) = torch.autograd.grad(half(x).square().sum(), x)
    assert relative_error(actual, expected) < 0.02
    assert not half.weight.requires_grad


@pytest.mark.parametrize("multiplies", [True, False])
def test_bfloat16_is_multiplied_in_float32_where_the_processor_has_no_such_products(
    monkeypatch: pytest.MonkeyPatch, multiplies: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": multiplies})
    module = linear(24, 40, 3)
    x = torch.randn(9, 40, generator=torch.Generator().manual_seed(1)).requires_grad_()
    half = stored(module, "bfloat16")
    few = x.detach()[:8]
    low = torch.nn.functional.linear(few.bfloat16(), module.weight.bfloat16()).float() + module.bias
    assert torch.equal(half(few), low)  # few rows are multiplied in bfloat16 on every CPU
    out = half(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    rounded = module.weight.to(torch.bfloat16).float()
    exact = (
        torch.equal(out, torch.nn.functional.linear(x, rounded) + module.bias),
        torch.allclose(gradient, rounded.sum(0).expand_as(x), rtol=1e-5),
    )
    assert exact == (not multiplies, not multiplies)


@pytest.mark.parametrize("storage", STORED)
def test_every_linear_of_a_model_is_replaced(storage: Storage, tiny_base_path: Path) -> None:
    model = load_base(tiny_base_path).model
    before = {n for n, m in model.named_modules() if type(m) is nn.Linear}
    store_linears(model, storage)
    kind = {"bfloat16": BFloat16Linear, "int8": Int8Linear, "int8_training": Int8TrainingLinear}[storage]
    # the next test is of the head, whose storage in training depends on the processor
    assert {n for n, m in model.named_modules() if type(m) is kind} - {"lm_head"} == before - {"lm_head"}


@pytest.mark.parametrize("storage", ["bfloat16_activations", "int8_mapped"])
def test_activations_in_bfloat16_leave_the_frequencies_of_the_rotations_exact(
    tiny_base_path: Path, monkeypatch: pytest.MonkeyPatch, storage: Storage
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    exact, model = load_base(tiny_base_path).model, load_base(tiny_base_path, storage=storage).model
    with torch.inference_mode():
        assert model(torch.tensor([[1, 2]])).logits.dtype == torch.bfloat16
    frequencies = [m.get_submodule("model.rotary_emb").get_buffer("inv_freq") for m in (exact, model)]
    assert torch.equal(*frequencies)


@pytest.mark.parametrize("multiplies", [True, False])
def test_a_head_in_training_is_bfloat16_where_the_processor_multiplies_in_it(
    tiny_base_path: Path, monkeypatch: pytest.MonkeyPatch, multiplies: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": multiplies})
    model = load_base(tiny_base_path, storage="int8_training").model
    kinds = {name.rpartition(".")[2]: type(m) for name, m in model.named_modules() if hasattr(m, "in_features")}
    assert kinds.pop("lm_head") is (BFloat16Linear if multiplies else nn.Linear)
    assert set(kinds.values()) == {Int8TrainingLinear}


def test_float32_leaves_a_model_alone_and_other_names_are_refused() -> None:
    parent = nn.Sequential(linear(2, 3, 0))
    module = parent[0]
    store_linears(parent, "float32")
    assert parent[0] is module
    with pytest.raises(ConfigError, match="int4"):
        store_linears(parent, "int4")  # type: ignore[arg-type]


@pytest.mark.parametrize("storage", STORED)
def test_adapters_work_on_stored_linears(storage: Storage, tiny_base_path: Path) -> None:
    weights = random_lora(lora_spec("tiny"), 0)
    ids = torch.arange(30).reshape(2, 15)

    def change(form: Storage) -> tuple[torch.Tensor, torch.Tensor]:
        base = load_base(tiny_base_path, storage=form)
        with torch.no_grad():
            plain = base.model(ids).logits
            with FunctionalLoRA(base.model).applied(weights) as applied:
                hooked = base.model(ids).logits
        assert applied.modules_hooked == len(weights.spec.modules)
        return plain, hooked

    (plain, hooked), (plain_stored, hooked_stored) = change("float32"), change(storage)
    assert relative_error(plain_stored, plain) < 0.1
    assert relative_error(hooked_stored, hooked) < 0.1
    assert relative_error(hooked_stored, plain) > 0.3


@pytest.mark.parametrize("storage", TRAINABLE)
def test_gradients_through_storage_are_near_those_of_float32(storage: Storage, tiny_base_path: Path) -> None:
    ids = torch.arange(30).reshape(2, 15)

    def gradients(form: Storage) -> list[torch.Tensor]:
        base = load_base(tiny_base_path, storage=form)
        weights = random_lora(lora_spec("tiny"), 0, size=0.3).map(lambda t: t.requires_grad_())
        with FunctionalLoRA(base.model).applied(weights):
            loss = base.model(ids).logits.float().log_softmax(-1)[..., 0].mean()
        return list(torch.autograd.grad(loss, weights.tensors))

    for actual, expected in zip(gradients(storage), gradients("float32"), strict=True):
        assert torch.nn.functional.cosine_similarity(actual.flatten(), expected.flatten(), dim=0) > 0.95


@pytest.mark.parametrize("storage", STORED)
def test_a_stored_linear_takes_less_room(storage: Storage) -> None:
    module = linear(64, 64, 0, bias=False)
    half = stored(module, storage)
    if storage == "int8_training":
        assert sum(p.numel() for p in half.parameters()) == 0
    elif storage == "bfloat16":
        assert sum(p.numel() * p.element_size() for p in half.parameters()) == module.weight.numel() * 2
    else:
        assert not list(half.parameters())


def test_a_linear_in_training_has_a_copy_in_one_byte_for_each_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    module = linear(64, 64, 0, bias=False)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    half = stored(module, "int8_training")
    assert sum(b.numel() for b in half.buffers() if b.dtype == torch.int8) == module.weight.numel() * 2
