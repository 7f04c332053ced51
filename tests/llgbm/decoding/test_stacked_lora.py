from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm.base import Base, load_base
from llgbm.config import LoRASpec, ModuleShape, lora_spec, model_spec
from llgbm.decoding.decode_pass import DecodePass
from llgbm.decoding.kv_cache import RowCache
from llgbm.decoding.stacked_lora import RowAdapters, StackedLoRA
from llgbm.errors import AdapterMismatchError
from llgbm.functional import FunctionalLoRA
from llgbm.linears.frozen_linear import Storage
from llgbm.lora import LoRAWeights
from tests.fixtures import random_lora

TINY, SPEC = model_spec("tiny"), lora_spec("tiny")
FEW = LoRASpec.for_model(TINY, rank=3, alpha=6.0, targets=("v_proj", "down_proj"))

# several of one kind; others with another rank, modules, scaling or dtype
ADAPTERS: list[LoRAWeights | None] = [
    None,
    *(random_lora(SPEC, seed) for seed in range(5)),
    random_lora(SPEC, 5).to(torch.bfloat16),
    random_lora(LoRASpec(SPEC.rank, 3.0, SPEC.modules), 6),
    random_lora(FEW, 7),
    random_lora(FEW, 8),
    random_lora(LoRASpec.for_model(TINY, rank=7, alpha=20.0, targets=("up_proj",), layers=(1,)), 9),
]
COMPOSITIONS = st.lists(st.integers(0, len(ADAPTERS) - 1), min_size=1, max_size=9)


def stacked_lora(base: Base) -> StackedLoRA:
    return StackedLoRA(DecodePass(base.model).groups, torch.zeros(0))


def one_token(base: Base, adapters: RowAdapters) -> torch.Tensor:
    """Last hidden states (rows, hidden) of one token in each row, by the pass that decodes."""
    spec, rows = base.spec, adapters.rows
    cache = RowCache(spec.num_layers, spec.num_kv_heads, spec.head_dim, torch.float32)
    nothing = [torch.zeros(rows, spec.num_kv_heads, 0, spec.head_dim)] * spec.num_layers
    cache.join(nothing, nothing, [0] * rows)
    ids = torch.arange(1, rows + 1)
    return DecodePass(base.model)(ids, torch.zeros_like(ids), cache.start_step(), cache, adapters)


def by_hooks(base: Base, adapters: Sequence[LoRAWeights | None]) -> torch.Tensor:
    """The same by the model's own pass."""
    model: Any = base.model
    with FunctionalLoRA(model).applied(adapters):
        hidden: torch.Tensor = model.model(torch.arange(1, len(adapters) + 1)[:, None]).last_hidden_state[:, 0]
    return hidden


@settings(max_examples=40)
@given(st.lists(COMPOSITIONS, min_size=1, max_size=5))
def test_rows_of_every_composition_are_the_rows_of_the_models_own_pass(
    tiny_base: Base, compositions: list[list[int]]
) -> None:
    stacked = stacked_lora(tiny_base)
    with torch.inference_mode():
        for chosen in compositions:
            adapters = [ADAPTERS[i] for i in chosen]
            together = one_token(tiny_base, stacked.arrange(adapters))
            torch.testing.assert_close(together, by_hooks(tiny_base, adapters), atol=1e-4, rtol=0)


@pytest.mark.parametrize("storage", ["int8", "bfloat16"])
def test_rows_on_other_storages_are_those_of_the_models_own_pass(storage: Storage, tiny_base_path: Path) -> None:
    base = load_base(tiny_base_path, storage=storage)
    with torch.inference_mode():
        together, expected = one_token(base, stacked_lora(base).arrange(ADAPTERS)), by_hooks(base, ADAPTERS)
        plain = by_hooks(base, [None] * len(ADAPTERS))
    # a sum that rounds otherwise moves an input of the next layer by a step of its dtype at most
    assert ((together - expected).norm(dim=1) < 0.02 * expected.norm(dim=1)).all()
    assert ((plain - expected).norm(dim=1) > 0.1 * expected.norm(dim=1)).sum() == len(ADAPTERS) - 1


def test_what_stays_in_the_batch_is_not_copied_again(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[LoRAWeights] = []
    pairs = LoRAWeights.pairs

    def counted(self: LoRAWeights) -> Any:
        copied.append(self)
        return pairs(self)

    monkeypatch.setattr(LoRAWeights, "pairs", counted)
    stacked = stacked_lora(tiny_base)
    first, second, third, fourth, fifth = ADAPTERS[1:6]
    stacked.arrange([first, second, third])
    assert len(copied) == 3
    stacked.arrange([third, None, first, second])
    assert len(copied) == 3
    stacked.arrange([first, fourth, second])
    assert copied[3:] == [fourth]
    stacked.arrange([fourth, second])
    assert copied[4:] in ([], [fourth], [second])
    stacked.arrange([fourth, second, fifth])
    assert copied[-1] is fifth


def test_a_copy_that_fails_is_made_up_for(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    stacked = stacked_lora(tiny_base)
    rows = [ADAPTERS[1], ADAPTERS[2]]
    with torch.inference_mode():
        stacked.arrange(rows)
        with monkeypatch.context() as patch:
            patch.setattr(LoRAWeights, "pairs", lambda self: iter([(SPEC.names[0], "no tensor", None)]))
            with pytest.raises((TypeError, RuntimeError, AttributeError)):
                stacked.arrange([ADAPTERS[3], ADAPTERS[4]])
        together = one_token(tiny_base, stacked.arrange(rows))
        torch.testing.assert_close(together, by_hooks(tiny_base, rows), atol=1e-4, rtol=0)


def test_another_number_of_rows_is_refused(tiny_base: Base) -> None:
    adapters = stacked_lora(tiny_base).arrange([ADAPTERS[1], None])
    cache = RowCache(TINY.num_layers, TINY.num_kv_heads, TINY.head_dim, torch.float32)
    ids = torch.zeros(3).long()
    with torch.inference_mode(), pytest.raises(AdapterMismatchError, match="for 2 rows, not for 3"):
        DecodePass(tiny_base.model)(ids, ids, None, cache, adapters)


def test_a_module_that_a_step_does_not_run_is_refused(tiny_base: Base) -> None:
    head = LoRASpec(2, 4.0, (ModuleShape("lm_head", 64, 256),))
    with pytest.raises(AdapterMismatchError, match="lm_head, which is not a part of a step"):
        stacked_lora(tiny_base).arrange([random_lora(head, 0)])
