from collections.abc import Callable, Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm.config import LoRASpec, lora_spec
from llgbm.errors import AdapterMismatchError, ConfigError
from llgbm.generator import LoRAGenerator, create_generator
from llgbm.lora import LoRAWeights
from tests.small_generator import (
    IRREGULAR,
    SMALL,
    SPEC,
    SPECS,
    TINY,
    WORDY,
    active_generator,
    conditions,
    wordy_conditions,
)

ALL_SPECS = {**SPECS, "irregular": IRREGULAR}
every_spec = pytest.mark.parametrize("spec", ALL_SPECS.values(), ids=ALL_SPECS.keys())


def require_close(left: LoRAWeights, right: LoRAWeights, *, tolerance: float) -> None:
    assert left.spec == right.spec
    for name in left.spec.names:
        torch.testing.assert_close(left.a[name], right.a[name], atol=tolerance, rtol=0)
        torch.testing.assert_close(left.b[name], right.b[name], atol=tolerance, rtol=0)


def random_readout(adapters: Iterable[LoRAWeights]) -> torch.Tensor:
    """A scalar that depends on every entry of every A and B."""
    draw = torch.Generator().manual_seed(1)
    tensors = [t for adapter in adapters for t in adapter.tensors]
    return torch.stack([(t * torch.randn(t.shape, generator=draw)).sum() for t in tensors]).sum()


@every_spec
def test_adapters_have_the_shapes_of_their_spec(spec: LoRASpec) -> None:
    for adapter in active_generator(spec)(conditions(3)):
        assert adapter.spec == spec
        assert adapter.dtype == torch.float32
        for module in spec.modules:
            assert adapter.a[module.name].shape == (spec.rank, module.in_features)
            assert adapter.b[module.name].shape == (module.out_features, spec.rank)


@every_spec
def test_every_factor_is_a_core_in_the_span_of_its_own_modules_basis(spec: LoRASpec) -> None:
    generator = active_generator(spec)
    condition = conditions(2)
    q, p, _ = generator.cores(condition)
    seen_a: dict[int, int] = {}
    seen_b: dict[int, int] = {}
    for index, module in enumerate(spec.modules):
        place_a, place_b = seen_a.get(module.in_features, 0), seen_b.get(module.out_features, 0)
        seen_a[module.in_features], seen_b[module.out_features] = place_a + 1, place_b + 1
        a0 = generator.a0[str(module.in_features)][place_a]
        b0 = generator.b0[str(module.out_features)][place_b].t()
        for row, adapter in enumerate(generator(condition)):
            torch.testing.assert_close(adapter.a[module.name], q[row, index] @ a0)
            torch.testing.assert_close(adapter.b[module.name], b0 @ p[row, index])


@every_spec
@torch.no_grad()
def test_a_core_is_made_for_its_own_layer_and_target(spec: LoRASpec) -> None:
    condition = conditions(1)
    before = active_generator(spec).cores(condition)[0][0]

    def changed_modules(change: Callable[[LoRAGenerator], object]) -> list[bool]:
        generator = active_generator(spec)
        change(generator)
        return [not torch.equal(x, y) for x, y in zip(generator.cores(condition)[0][0], before, strict=True)]

    for layer in {m.layer for m in spec.modules}:
        found = changed_modules(lambda g, layer=layer: g.layer_embedding.weight[layer].add_(1))  # type: ignore[misc]
        assert found == [m.layer == layer for m in spec.modules]
    for number, target in enumerate(spec.target_modules):
        expected = [m.target == target for m in spec.modules]
        assert changed_modules(lambda g, i=number: g.target_embedding.weight[i].add_(1)) == expected  # type: ignore[misc]
        assert changed_modules(lambda g, i=number: g.heads[i].mul_(2)) == expected  # type: ignore[misc]


@every_spec
def test_a_batch_is_its_rows_one_by_one(spec: LoRASpec) -> None:
    generator = active_generator(spec)
    condition = conditions(5)
    for row, adapter in enumerate(generator(condition)):
        require_close(adapter, generator(condition[row : row + 1])[0], tolerance=1e-5)


@settings(max_examples=20)
@given(count=st.integers(0, 6), seed=st.integers(0, 1000))
def test_the_same_conditions_give_the_same_bits(count: int, seed: int) -> None:
    generator = active_generator()
    condition = conditions(count, seed=seed)
    first, again = generator(condition), generator(condition)
    assert len(first) == len(again) == count
    for left, right in zip(first, again, strict=True):
        require_close(left, right, tolerance=0)


def test_another_condition_gives_another_adapter_in_every_module() -> None:
    one, other = active_generator()(conditions(2))
    for name in SPEC.names:
        assert (one.a[name] - other.a[name]).norm() > 0.1 * one.a[name].norm()
        assert (one.b[name] - other.b[name]).norm() > 0.1 * one.b[name].norm()


@every_spec
def test_a_trunk_in_bfloat16_makes_nearly_the_same_cores_in_float32(spec: LoRASpec) -> None:
    generator = active_generator(spec)
    torch.nn.init.normal_(generator.gate.weight, generator=torch.Generator().manual_seed(0))
    exact = generator.changes(conditions(3))
    generator.trunk_dtype = torch.bfloat16
    for found, right in zip(generator.changes(conditions(3))[:3], exact[:3], strict=True):
        assert found.dtype == torch.float32
        assert 0 < (found - right).norm() < 0.02 * right.norm()


@every_spec
def test_adapters_are_views_of_one_stack_in_the_dtype_that_is_asked_for(spec: LoRASpec) -> None:
    generator = active_generator(spec)
    cores = generator.cores(conditions(3))
    exact, made = generator.materialise(cores), generator.materialise(cores, torch.bfloat16)
    for place, (right, found) in enumerate(zip(exact, made, strict=True)):
        assert found.dtype == torch.bfloat16
        assert found.stack is not None
        for name, a, b in found.pairs():
            assert torch.equal(found.stack.a[name][place], a)
            assert torch.equal(found.stack.b[name][place].mT, b)
            assert 0 < (a - right.a[name]).norm() < 0.01 * right.a[name].norm()
            assert 0 < (b - right.b[name]).norm() < 0.01 * right.b[name].norm()


@every_spec
def test_gradients_reach_every_parameter_once_b0_is_not_zero(spec: LoRASpec) -> None:
    generator = active_generator(spec)
    random_readout(generator(conditions(3))).backward()
    silent = [name for name, p in generator.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert silent == []


def test_a_new_generator_changes_nothing_and_can_learn() -> None:
    generator = create_generator(TINY, SPEC, SMALL)
    adapters = generator(conditions(2))
    for adapter in [*adapters, generator.shared_adapter()]:
        assert set(adapter.detach().product_norms().values()) == {0.0}
    random_readout(adapters).backward()
    for b0 in generator.b0.values():
        assert b0.grad is not None
        assert bool(b0.grad.any(dim=-1).all())


def test_the_shared_adapter_is_what_the_constant_cores_give() -> None:
    generator = active_generator()
    (adapter,) = generator.materialise(generator.cores(None))
    require_close(adapter, generator.shared_adapter(), tolerance=1e-6)
    with torch.no_grad():
        generator.heads.zero_()
    require_close(generator(conditions(1))[0], generator.shared_adapter(), tolerance=1e-6)


def test_the_seed_decides_the_parameters_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, same, other = (create_generator(TINY, SPEC, SMALL, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    for (name, p), q in zip(one.named_parameters(), same.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert not torch.equal(one.q0, other.q0)
    assert not torch.equal(one.a0["64"], other.a0["64"])


def test_names_and_shapes_of_the_state_stay_readable() -> None:
    """Saved runs and artefacts hold these names: a change must convert the old ones."""
    shapes = {name: tuple(tensor.shape) for name, tensor in create_generator(TINY, SPEC, SMALL).state_dict().items()}
    assert shapes == {
        "a0.64": (12, 8, 64),
        "a0.128": (2, 8, 128),
        "b0.64": (6, 8, 64),
        "b0.32": (4, 8, 32),
        "b0.128": (4, 8, 128),
        "q0": (14, 4, 8),
        "p0": (14, 8, 4),
        "read.weight": (32, 384),
        "read.bias": (32,),
        "layer_embedding.weight": (2, 32),
        "target_embedding.weight": (7, 32),
        "norm.weight": (32,),
        "norm.bias": (32,),
        "heads": (7, 32, 64),
        "gate.weight": (1, 32),
        "gate.bias": (1,),
        **{
            f"{block}.{name}": shape
            for block in ("blocks.0", "module_block")
            for name, shape in {
                "norm.weight": (32,),
                "norm.bias": (32,),
                "up.weight": (64, 32),
                "up.bias": (64,),
                "down.weight": (32, 64),
                "down.bias": (32,),
            }.items()
        },
    }


@pytest.mark.parametrize("shape", [(384,), (2, 383), (1, 2, 384)])
def test_a_condition_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="this generator reads"):
        active_generator()(torch.zeros(shape))


def test_a_spec_of_another_model_is_refused() -> None:
    with pytest.raises(AdapterMismatchError, match="in the adapter"):
        create_generator(TINY, lora_spec("qwen2.5-0.5b"), SMALL)


@every_spec
@torch.no_grad()
def test_the_gate_is_one_when_new_and_scales_what_every_module_adds(spec: LoRASpec) -> None:
    generator, condition = active_generator(spec), conditions(2)
    assert torch.equal(generator.changes(condition)[0], torch.ones(2))
    open_, shared = generator(condition), generator.shared_adapter()
    generator.gate.bias.fill_(-20)
    shut = generator(condition)
    for name in spec.names:
        for before, after in zip(open_, shut, strict=True):
            assert torch.equal(after.a[name], before.a[name])
            assert after.b[name].abs().max() < 1e-7 < before.b[name].abs().max()
        assert torch.equal(generator.shared_adapter().b[name], shared.b[name])


# answer words

LAST_DOWN = "model.layers.1.mlp.down_proj"


def test_the_last_two_ranks_of_the_last_down_proj_are_the_answer_words() -> None:
    generator, condition = active_generator(config=WORDY), wordy_conditions(3)
    torch.nn.init.normal_(generator.gate.weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(generator.word_gain.weight, generator=torch.Generator().manual_seed(1))
    gate, _, _, gain = generator.changes(condition)
    assert gain is not None
    assert len(gain.flatten().unique()) == 6
    words = condition[:, SMALL.condition_size :].view(3, 2, TINY.hidden_size)
    for row, adapter in enumerate(generator(condition)):
        assert torch.equal(adapter.a[LAST_DOWN][-2:], generator.word_rows)
        expected = words[row].T * gain[row] * gate[row]  # (hidden, slots)
        torch.testing.assert_close(adapter.b[LAST_DOWN][:, -2:], expected)


def test_answer_words_change_nothing_else() -> None:
    generator, condition = active_generator(config=WORDY), wordy_conditions(2)
    other = torch.cat([condition[:, : SMALL.condition_size], wordy_conditions(2, seed=5)[:, SMALL.condition_size :]], 1)
    plain = active_generator()
    own = plain.state_dict()
    plain.load_state_dict({name: tensor for name, tensor in generator.state_dict().items() if name in own})
    made, changed, without = generator(condition), generator(other), plain(condition[:, : SMALL.condition_size])
    for one, two, three in zip(made, changed, without, strict=True):
        for name in SPEC.names:
            kept = slice(0, -2) if name == LAST_DOWN else slice(None)
            for adapter in (two, three):
                torch.testing.assert_close(adapter.a[name][kept], one.a[name][kept])
                torch.testing.assert_close(adapter.b[name][:, kept], one.b[name][:, kept])
        assert not torch.allclose(one.b[LAST_DOWN][:, -2:], two.b[LAST_DOWN][:, -2:], atol=0.1)


def test_the_shared_adapter_has_no_answer_words() -> None:
    shared = active_generator(config=WORDY).shared_adapter()
    assert not shared.b[LAST_DOWN][:, -2:].any()
    assert bool(shared.b[LAST_DOWN][:, :-2].any())


def test_gradients_reach_the_parameters_of_the_answer_words() -> None:
    generator = active_generator(config=WORDY)
    random_readout(generator(wordy_conditions(3))).backward()
    silent = [name for name, p in generator.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert silent == []
    fresh = create_generator(TINY, SPEC, WORDY)
    assert [m for m, norm in fresh(wordy_conditions(1))[0].detach().product_norms().items() if norm] == []
    random_readout(fresh(wordy_conditions(3))).backward()
    assert fresh.word_rows.grad is not None
    assert bool(fresh.word_rows.grad.any())
    assert any(p is fresh.word_rows for p in fresh.shared_parameters())


def test_answer_words_in_bfloat16_are_nearly_the_same() -> None:
    generator, condition = active_generator(config=WORDY), wordy_conditions(3)
    exact = generator(condition)
    generator.trunk_dtype = torch.bfloat16
    for found, right in zip(generator.materialise(generator.cores(condition), torch.bfloat16), exact, strict=True):
        assert found.dtype == torch.bfloat16
        error = found.b[LAST_DOWN][:, -2:].float() - right.b[LAST_DOWN][:, -2:]
        assert 0 < error.norm() < 0.02 * right.b[LAST_DOWN][:, -2:].norm()


@pytest.mark.parametrize("size", [SMALL.condition_size, SMALL.condition_size + 2 * TINY.hidden_size - 1])
def test_a_condition_without_all_of_its_answer_words_is_refused(size: int) -> None:
    generator = active_generator(config=WORDY)
    assert generator.input_size == SMALL.condition_size + 2 * TINY.hidden_size
    with pytest.raises(ConfigError, match=rf"this generator reads \(n, {generator.input_size}\)"):
        generator(torch.zeros(2, size))


@pytest.mark.parametrize(
    "spec",
    [
        LoRASpec.for_model(TINY, rank=2),
        LoRASpec.for_model(TINY, rank=4, layers=(0,)),
        LoRASpec.for_model(TINY, rank=4, targets=("q_proj", "up_proj")),
    ],
    ids=["rank 2", "not in the last layer", "no down_proj"],
)
def test_answer_words_need_a_place(spec: LoRASpec) -> None:
    with pytest.raises(ConfigError, match=r"down_proj of the last layer, of a rank above 2"):
        create_generator(TINY, spec, WORDY)
