from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm.base import Base
from llgbm.config import LoRASpec, lora_spec, model_spec
from llgbm.decoding.stacked_lora import StackedLoRA
from llgbm.errors import AdapterMismatchError
from llgbm.functional import FunctionalLoRA
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


def one_token(base: Base, rows: int) -> torch.Tensor:
    model: Any = base.model
    hidden: torch.Tensor = model.model(torch.arange(1, rows + 1)[:, None]).last_hidden_state[:, 0]
    return hidden


@settings(max_examples=40)
@given(st.lists(COMPOSITIONS, min_size=1, max_size=5))
def test_rows_of_every_composition_are_the_rows_alone(tiny_base: Base, compositions: list[list[int]]) -> None:
    stacked, functional = StackedLoRA(torch.zeros(0)), FunctionalLoRA(tiny_base.model)
    with torch.inference_mode():
        for chosen in compositions:
            prepared = stacked.arrange([ADAPTERS[i] for i in chosen])
            with functional.applied(prepared) as applied:
                together = one_token(tiny_base, len(chosen))
            names = {n for i in chosen if (a := ADAPTERS[i]) is not None for n in a.spec.names}
            assert applied.modules_hooked == len(names)
            with functional.applied([ADAPTERS[i] for i in chosen]):
                torch.testing.assert_close(together, one_token(tiny_base, len(chosen)), atol=1e-4, rtol=0)


def test_what_stays_in_the_batch_is_not_copied_again(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[LoRAWeights] = []
    pairs = LoRAWeights.pairs

    def counted(self: LoRAWeights) -> Any:
        copied.append(self)
        return pairs(self)

    monkeypatch.setattr(LoRAWeights, "pairs", counted)
    stacked = StackedLoRA(torch.zeros(0))
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
    stacked, functional = StackedLoRA(torch.zeros(0)), FunctionalLoRA(tiny_base.model)
    rows = [ADAPTERS[1], ADAPTERS[2]]
    with torch.inference_mode():
        stacked.arrange(rows)
        with monkeypatch.context() as patch:
            patch.setattr(LoRAWeights, "pairs", lambda self: iter([(SPEC.names[0], "no tensor", None)]))
            with pytest.raises((TypeError, RuntimeError, AttributeError)):
                stacked.arrange([ADAPTERS[3], ADAPTERS[4]])
        with functional.applied(stacked.arrange(rows)):
            together = one_token(tiny_base, 2)
        with functional.applied(rows):
            torch.testing.assert_close(together, one_token(tiny_base, 2), atol=1e-4, rtol=0)


def test_another_number_of_rows_or_tokens_is_refused(tiny_base: Base) -> None:
    stacked, functional = StackedLoRA(torch.zeros(0)), FunctionalLoRA(tiny_base.model)
    prepared = stacked.arrange([ADAPTERS[1], None])
    with torch.inference_mode():
        for ids in (torch.ones(3, 1, dtype=torch.long), torch.ones(2, 2, dtype=torch.long)):
            with pytest.raises(AdapterMismatchError, match="2 rows of one token"), functional.applied(prepared):
                tiny_base.model(ids)
