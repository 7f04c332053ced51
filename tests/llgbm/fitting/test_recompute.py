import gc
from typing import Any

import pytest
import torch

from llgbm.base import Base, load_base
from llgbm.config import LoRASpec, lora_spec
from llgbm.fitting.task_losses import label_logits, sft_loss
from llgbm.functional import FunctionalLoRA
from llgbm.lora import LoRAWeights
from llgbm.packed.batch import PackedBatch, Row, pack
from tests.fixtures import random_lora

SPEC = lora_spec("tiny")


def batch(base: Base) -> PackedBatch:
    def row(text: str, answer: str) -> Row:
        return Row(tuple(base.tokenizer(text)["input_ids"]), tuple(base.tokenizer(answer)["input_ids"]))

    return pack([[row("the cat", "CAT"), row("the dog", "DOG")], [row("a", "b")], [row("one two", "x")]])


def gradients(base: Base, *, recompute: bool, spec: LoRASpec = SPEC) -> tuple[float, list[torch.Tensor]]:
    leaves = [random_lora(spec, seed, size=0.3).map(lambda t: t.requires_grad_()) for seed in (0, 1)]
    weights: list[LoRAWeights | None] = [leaves[0], None, leaves[1]]
    functional, packed = FunctionalLoRA(base.model), batch(base)
    loss = sft_loss(label_logits(base, functional, packed, weights, recompute=recompute), packed)
    loss.backward()
    found = [t.grad for w in leaves for t in w.tensors]
    return float(loss.detach()), [g for g in found if g is not None]


@pytest.mark.parametrize(
    "spec",
    [SPEC, LoRASpec(4, 8.0, SPEC.modules[7:]), LoRASpec(4, 8.0, SPEC.modules[2:3])],
    ids=["all modules", "one layer", "one module"],
)
def test_loss_and_gradients_are_the_same_with_less_kept(tiny_base: Base, spec: LoRASpec) -> None:
    plain_loss, plain = gradients(tiny_base, recompute=False, spec=spec)
    saving_loss, saving = gradients(tiny_base, recompute=True, spec=spec)
    assert saving_loss == plain_loss
    assert len(saving) == len(plain) == 4 * len(spec.modules)
    for x, y in zip(plain, saving, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_every_a_and_b_gets_a_gradient_on_any_storage(tiny_base_path, storage) -> None:  # type: ignore[no-untyped-def]
    _, found = gradients(load_base(tiny_base_path, storage=storage), recompute=True)
    assert len(found) == 4 * len(SPEC.modules)
    assert all(torch.isfinite(g).all() and g.abs().sum() > 0 for g in found)


def test_fewer_tensors_are_alive_between_forward_and_backward(tiny_base: Base) -> None:
    def alive(recompute: bool) -> int:
        weights = [random_lora(SPEC, 0).map(lambda t: t.requires_grad_())] * 3
        packed = batch(tiny_base)
        kept: list[torch.Tensor] = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            logits = label_logits(tiny_base, FunctionalLoRA(tiny_base.model), packed, weights, recompute=recompute)
        count = len(kept)
        del logits
        gc.collect()
        return count

    assert alive(True) < 0.5 * alive(False)


def test_the_model_is_as_before(tiny_base: Base) -> None:
    layers = list(tiny_base.model.get_submodule("model.layers").children())
    hooks = [[len(module._forward_hooks) for module in layer.modules()] for layer in layers]
    gradients(tiny_base, recompute=True)
    assert [[len(module._forward_hooks) for module in layer.modules()] for layer in layers] == hooks
    for layer in layers:
        assert "forward" not in vars(layer)
    config: Any = tiny_base.model.config
    assert config._attn_implementation == "sdpa"


def test_the_backward_pass_can_be_run_after_another_adapter_was_applied(tiny_base: Base) -> None:
    """Each graph runs its layers again with its own adapters, also after others were applied."""
    functional, packed = FunctionalLoRA(tiny_base.model), batch(tiny_base)

    def one(seed: int) -> tuple[LoRAWeights, torch.Tensor]:
        leaf = random_lora(SPEC, seed, size=0.3).map(lambda t: t.requires_grad_())
        logits = label_logits(tiny_base, functional, packed, [leaf] * 3, recompute=True)
        return leaf, sft_loss(logits, packed)

    name = SPEC.names[0]
    alone, loss = one(0)
    loss.backward()
    first, first_loss = one(0)
    second, second_loss = one(1)
    first_loss.backward()
    second_loss.backward()
    assert torch.equal(first.a[name].grad, alone.a[name].grad)  # type: ignore[arg-type]
    assert not torch.equal(second.a[name].grad, alone.a[name].grad)  # type: ignore[arg-type]
