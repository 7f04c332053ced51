import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from llgbm.adapters.peft_io import save_peft
from llgbm.base import Base, load_base
from llgbm.config import LoRASpec, ModelSpec, ModuleShape, lora_spec, model_spec
from llgbm.errors import AdapterMismatchError, AdapterNotAppliedError
from llgbm.functional import FunctionalLoRA
from llgbm.lora import LoRAWeights
from llgbm.packed.batch import Row, pack, packed_hidden_states
from tests.fixtures import random_lora
from tests.small_generator import active_generator, conditions

TINY = model_spec("tiny")
SPEC = lora_spec("tiny")
IDS = torch.arange(60).reshape(3, 20)

# adapters of several ranks and targets in one batch
ADAPTERS: list[LoRAWeights | None] = [
    None,
    random_lora(SPEC, 0),
    random_lora(SPEC, 1),
    random_lora(LoRASpec.for_model(TINY, rank=1, alpha=1.0, targets=("q_proj", "down_proj")), 2),
    random_lora(LoRASpec.for_model(TINY, rank=7, alpha=20.0, targets=("up_proj",), layers=(1,)), 3),
    random_lora(LoRASpec(2, 3.0, SPEC.modules[3:9], use_rslora=True), 4).to(torch.bfloat16),
]


def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    out: Tensor = model(ids).logits
    return out


def hooked(base: Base, weights: LoRAWeights | Sequence[LoRAWeights | None], ids: Tensor = IDS) -> Tensor:
    with FunctionalLoRA(base.model).applied(weights):
        return logits(base.model, ids)


def merged(path: Path, weights: LoRAWeights) -> nn.Module:
    """The base with the dense products merged into its weights."""
    model = load_base(path).model
    with torch.no_grad():
        for name in weights.spec.names:
            module: Any = model.get_submodule(name)
            module.weight += weights.delta_weight(name)
    return model


def trainable(weights: LoRAWeights) -> LoRAWeights:
    return weights.map(lambda t: t.detach().clone().requires_grad_())


def assert_hooks_merge_and_peft_agree(base: Base, path: Path, weights: LoRAWeights, ids: Tensor, folder: Path) -> None:
    with torch.no_grad():
        plain = logits(base.model, ids)
        actual = hooked(base, weights, ids)
        assert (actual - plain).abs().max() > 0.05
        torch.testing.assert_close(actual, logits(merged(path, weights), ids), atol=1e-4, rtol=0)
        save_peft(weights, folder, base_id=base.spec.base_id)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        with_peft = PeftModel.from_pretrained(model, str(folder)).eval()
        torch.testing.assert_close(actual, logits(with_peft, ids), atol=1e-4, rtol=0)


# One adapter for the whole batch


@pytest.mark.parametrize(
    "adapter",
    [
        *(a for a in ADAPTERS if a is not None and a.dtype == torch.float32),
        random_lora(LoRASpec(3, 1.5, (SPEC.modules[0], SPEC.modules[-1]), use_rslora=True), 3),
    ],
)
def test_hooked_is_merged_is_peft(adapter: LoRAWeights, tiny_base: Base, tiny_base_path: Path, tmp_path: Path) -> None:
    assert_hooks_merge_and_peft_agree(tiny_base, tiny_base_path, adapter, IDS, tmp_path / "a")


def num_hooks(model: torch.nn.Module) -> int:
    """Number of forward hooks; transformers leaves some on a model after a request for hidden states."""
    return sum(len(module._forward_hooks) for module in model.modules())


def test_base_is_bit_identical_afterwards(tiny_base: Base) -> None:
    hooks = num_hooks(tiny_base.model)
    state = {name: tensor.clone() for name, tensor in tiny_base.model.state_dict().items()}
    with torch.no_grad():
        before = logits(tiny_base.model)
        hooked(tiny_base, random_lora(SPEC, 0))
        assert torch.equal(logits(tiny_base.model), before)
        functional = FunctionalLoRA(tiny_base.model)
        with pytest.raises(IndexError), functional.applied(ADAPTERS[:3]):
            logits(tiny_base.model, torch.full((3, 2), 10_000))  # no such token
        assert torch.equal(logits(tiny_base.model), before)
    assert all(torch.equal(state[name], tensor) for name, tensor in tiny_base.model.state_dict().items())
    assert num_hooks(tiny_base.model) == hooks


def test_number_of_hooked_modules_is_told(tiny_base: Base) -> None:
    functional = FunctionalLoRA(tiny_base.model)
    with functional.applied(random_lora(SPEC, 0)) as applied:
        assert applied.modules_hooked == 14
    with functional.applied([ADAPTERS[3], None, ADAPTERS[4]]) as applied:
        assert applied.modules_hooked == 5
    with functional.applied([None, None]) as applied:
        assert applied.modules_hooked == 0


def test_adapter_of_zero_scale_changes_nothing(tiny_base: Base) -> None:
    with torch.no_grad():
        torch.testing.assert_close(
            hooked(tiny_base, random_lora(SPEC, 0).scaled(0.0)), logits(tiny_base.model), atol=1e-6, rtol=0
        )


# One adapter for each row


@settings(max_examples=30)
@given(
    chosen=st.lists(st.integers(0, len(ADAPTERS) - 1), min_size=1, max_size=6),
    width=st.sampled_from([1, 2, 20]),
    grad=st.booleans(),
)
def test_row_of_a_mixed_batch_is_the_row_alone(tiny_base: Base, chosen: list[int], width: int, grad: bool) -> None:
    ids = torch.arange(len(chosen) * width).reshape(len(chosen), width)
    with torch.set_grad_enabled(grad):
        together = hooked(tiny_base, [ADAPTERS[i] for i in chosen], ids)
        for row, i in enumerate(chosen):
            adapter, alone = ADAPTERS[i], ids[row : row + 1]
            single = logits(tiny_base.model, alone) if adapter is None else hooked(tiny_base, adapter, alone)
            torch.testing.assert_close(together[row : row + 1], single, atol=1e-4, rtol=0)


@settings(max_examples=30)
@given(chosen=st.lists(st.integers(0, len(ADAPTERS) - 1), min_size=1, max_size=4), data=st.data())
def test_packed_spans_are_separate_rows(tiny_base: Base, chosen: list[int], data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=len(chosen), max_size=len(chosen)))
    starts = data.draw(st.lists(st.integers(0, 240), min_size=len(chosen), max_size=len(chosen)))
    rows = [list(range(start, start + length)) for start, length in zip(starts, lengths, strict=True)]
    adapters = [ADAPTERS[i] for i in chosen]
    batch = pack([[Row(row)] for row in rows])
    assert batch.lengths == lengths
    functional = FunctionalLoRA(tiny_base.model)
    model: Any = tiny_base.model
    with torch.no_grad():
        with functional.applied(adapters, lengths=lengths):
            together = packed_hidden_states(model, batch)
        offset = 0
        for row, adapter in zip(rows, adapters, strict=True):
            with functional.applied([adapter]):
                alone = model.model(torch.tensor([row])).last_hidden_state[0]
            torch.testing.assert_close(together[offset : offset + len(row)], alone, atol=1e-4, rtol=0)
            offset += len(row)


def test_prepared_adapters_serve_many_contexts(tiny_base: Base) -> None:
    functional = FunctionalLoRA(tiny_base.model)
    adapters = [ADAPTERS[1], None, ADAPTERS[3]]
    prepared = functional.prepare(adapters)
    with torch.no_grad():
        for width in (1, 20, 1):
            expected = hooked(tiny_base, adapters, IDS[:, :width])
            plain = logits(tiny_base.model, IDS[:, :width])
            with functional.applied(prepared) as applied:
                assert torch.equal(logits(tiny_base.model, IDS[:, :width]), expected)
            assert applied.modules_hooked == len(SPEC.modules)
            assert torch.equal(logits(tiny_base.model, IDS[:, :width]), plain)


# Errors instead of silence


def test_an_adapter_for_other_modules_or_sizes_is_refused(tiny_base: Base) -> None:
    functional = FunctionalLoRA(tiny_base.model)
    more_layers = ModelSpec("m", "m", 3, 64, 128, 4, 2)
    wider = ModelSpec("m", "m", 2, 64, 256, 4, 2)
    for spec, message in (
        (LoRASpec.for_model(more_layers), r"model\.layers\.2\.self_attn\.q_proj, which this model does not have"),
        (LoRASpec.for_model(wider), r"gate_proj is 64 -> 256 in the adapter but 64 -> 128"),
        (LoRASpec(1, 1.0, (ModuleShape("model.embed_tokens", 259, 64),)), "embed_tokens"),
    ):
        adapter = random_lora(spec, 0)
        for weights in (adapter, [None, adapter]):
            with pytest.raises(AdapterMismatchError, match=message):
                functional.prepare(weights)
            with pytest.raises(AdapterMismatchError, match=message), functional.applied(weights):
                pass
    with torch.no_grad():
        assert logits(tiny_base.model).isfinite().all()


def test_a_linear_that_was_replaced_is_noticed(tiny_base_path: Path) -> None:
    model: Any = load_base(tiny_base_path).model
    functional, adapter = FunctionalLoRA(model), random_lora(SPEC, 0)
    mlp = model.model.layers[1].mlp
    mlp.up_proj = copy.deepcopy(mlp.up_proj)
    with pytest.raises(AdapterMismatchError, match=r"model\.layers\.1\.mlp\.up_proj was replaced"):
        functional.prepare(adapter)
    with FunctionalLoRA(model).applied(adapter) as applied, torch.no_grad():
        logits(model)
    assert applied.modules_hooked == len(SPEC.modules)


@pytest.mark.parametrize("grad", [True, False])
def test_another_number_of_rows_or_tokens_is_refused(tiny_base: Base, grad: bool) -> None:
    functional = FunctionalLoRA(tiny_base.model)
    two = [ADAPTERS[1], ADAPTERS[2]]
    with torch.set_grad_enabled(grad):
        for weights, lengths, ids in (
            (two, None, IDS),
            (two, None, IDS[:1]),
            (two, [10, 9], IDS[:1]),
            (two, [20, 21], IDS[:2]),  # not the rows of a padded batch, which are as long as the longest span
        ):
            with (
                pytest.raises(AdapterMismatchError, match="adapters were given for"),
                functional.applied(weights, lengths=lengths),
            ):
                logits(tiny_base.model, ids)
    with pytest.raises(AdapterMismatchError, match="need one for each"):
        functional.prepare(two, lengths=[20])
    with pytest.raises(AdapterMismatchError, match="lengths go with a sequence"):
        functional.prepare(random_lora(SPEC, 0), lengths=[20])


def test_contexts_do_not_nest_on_one_model(tiny_base: Base, tiny_base_path: Path) -> None:
    one, other = FunctionalLoRA(tiny_base.model), FunctionalLoRA(tiny_base.model)
    adapter = random_lora(SPEC, 0)
    for inner in (one, other):
        with (
            one.applied(adapter),
            pytest.raises(AdapterMismatchError, match="already applied"),
            inner.applied(adapter),
        ):
            pass
    with one.applied(adapter):
        pass
    second = load_base(tiny_base_path)
    with torch.no_grad(), one.applied(adapter), FunctionalLoRA(second.model).applied(adapter):
        torch.testing.assert_close(logits(tiny_base.model), logits(second.model))


def test_a_model_that_runs_in_part_is_noticed(tiny_base: Base) -> None:
    functional = FunctionalLoRA(tiny_base.model)
    model: Any = tiny_base.model
    with (
        pytest.raises(AdapterNotAppliedError, match=r"3 of 14 adapted modules ran; model\.layers\.0\.mlp\.down_proj"),
        functional.applied(random_lora(SPEC, 0)),
        torch.no_grad(),
    ):
        model.model.layers[1].mlp(torch.zeros(1, 2, 64))
    with functional.applied(random_lora(SPEC, 0)):
        pass  # no module ran, so none ran without its adapter


# Gradients


def test_every_factor_gets_the_gradient_of_the_merged_computation(tiny_base: Base, tiny_base_path: Path) -> None:
    start = random_lora(SPEC, 0, size=0.5)

    def loss_of(output: Tensor) -> Tensor:
        return output.log_softmax(-1)[:, :, 3].mean()

    weights = trainable(start)
    actual = torch.autograd.grad(loss_of(hooked(tiny_base, weights)), weights.tensors)

    dense = trainable(start)
    model = load_base(tiny_base_path).model
    changed = {f"{n}.weight": model.get_parameter(f"{n}.weight") + dense.delta_weight(n) for n in SPEC.names}
    output = torch.func.functional_call(model, changed, (IDS,)).logits
    expected = torch.autograd.grad(loss_of(output), dense.tensors)
    for a, e in zip(actual, expected, strict=True):
        assert a.isfinite().all()
        assert a.norm() > 0
        torch.testing.assert_close(a, e, atol=1e-6, rtol=1e-3)


@settings(max_examples=15)
@given(st.lists(st.integers(0, len(ADAPTERS) - 2), min_size=1, max_size=4), st.booleans())
def test_gradients_of_mixed_batches_are_those_of_each_row(tiny_base: Base, chosen: list[int], packed: bool) -> None:
    pool = [None if a is None else trainable(a) for a in ADAPTERS]
    rows = [list(range(7 * i, 7 * i + 7)) for i in range(len(chosen))]
    functional = FunctionalLoRA(tiny_base.model)
    adapters = [pool[i] for i in chosen]
    wanted = list(dict.fromkeys(t for a in adapters if a is not None for t in a.tensors))
    if not wanted:
        return
    model: Any = tiny_base.model
    if packed:
        batch = pack([[Row(row)] for row in rows])
        with functional.applied(adapters, lengths=batch.lengths):
            together = packed_hidden_states(model, batch).square().sum()
    else:
        with functional.applied(adapters):
            together = model.model(torch.tensor(rows)).last_hidden_state.square().sum()
    single = torch.zeros(())
    for row, adapter in zip(rows, adapters, strict=True):
        with functional.applied([adapter]):
            single = single + model.model(torch.tensor([row])).last_hidden_state.square().sum()
    actual, expected = torch.autograd.grad(together, wanted), torch.autograd.grad(single, wanted)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("places", [(0, 1, 2), (0, 1, 2, 2), (1, 0, 2), (0, 1)])
def test_adapters_of_a_stack_compute_as_copies_of_them(tiny_base: Base, places: tuple[int, ...]) -> None:
    """Also where a batch has an adapter twice, others in between, or not all of them."""
    generator = active_generator(SPEC)
    ids = IDS[:, :4].repeat(2, 1)[: len(places)]

    def output_and_gradients(copied: bool) -> list[Tensor]:
        made = generator(conditions(3))
        chosen = [made[i].map(torch.clone) if copied else made[i] for i in places]
        output = hooked(tiny_base, chosen, ids)
        generator.zero_grad()
        output.log_softmax(-1)[..., 3].sum().backward()
        return [output.detach(), *(p.grad.clone() for p in generator.parameters() if p.grad is not None)]

    found, expected = output_and_gradients(False), output_and_gradients(True)
    assert len(found) == 1 + len(list(generator.parameters()))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_gradient_is_the_one_that_numbers_give() -> None:
    """Against finite differences in float64, on one module, independently of autograd."""

    model = nn.Sequential(nn.Linear(5, 4)).double().requires_grad_(False)
    functional = FunctionalLoRA(model)
    spec = LoRASpec(2, 3.0, (ModuleShape("0", 5, 4),))
    generator = torch.Generator().manual_seed(0)
    x, a1, b1, a2, b2 = (
        torch.randn(*shape, dtype=torch.double, generator=generator, requires_grad=True)
        for shape in ((3, 2, 5), (2, 5), (4, 2), (2, 5), (4, 2))
    )

    def run(x: Tensor, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
        with functional.applied(
            [LoRAWeights(spec, {"0": a1}, {"0": b1}), None, LoRAWeights(spec, {"0": a2}, {"0": b2})]
        ):
            out: Tensor = model(x)
        return out

    assert torch.autograd.gradcheck(run, (x, a1, b1, a2, b2))


def test_frozen_base_gets_no_gradient(tiny_base: Base) -> None:
    weights = trainable(random_lora(SPEC, 0))
    hooked(tiny_base, weights).sum().backward()
    assert all(p.grad is None for p in tiny_base.model.parameters())
    assert all(t.grad is not None for t in weights.tensors)


def test_adapters_that_need_no_gradient_make_no_graph(tiny_base: Base) -> None:
    assert not hooked(tiny_base, random_lora(SPEC, 0)).requires_grad


# Activations in bfloat16


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_bfloat16_activations(stored: torch.dtype, tiny_base: Base, tiny_base_path: Path) -> None:
    model = load_base(tiny_base_path).model.to(torch.bfloat16)
    weights = trainable(random_lora(SPEC, 0).to(stored))
    adapters = [weights, None, weights]
    with FunctionalLoRA(model).applied(adapters):
        output = logits(model)
        with torch.no_grad():
            torch.testing.assert_close(logits(model), output)
    assert output.dtype == torch.bfloat16
    expected = hooked(tiny_base, adapters)
    assert (output.float() - expected).norm() < 0.05 * expected.norm()
    gradients = torch.autograd.grad(output.float().log_softmax(-1)[..., 0].mean(), weights.tensors)
    for tensor, gradient in zip(weights.tensors, gradients, strict=True):
        assert gradient.dtype == tensor.dtype
        assert gradient.isfinite().all()
        assert gradient.norm() > 0
