from collections.abc import Sequence
from itertools import chain

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from llgbm.base import Base
from llgbm.config import LoRASpec
from llgbm.errors import AdapterMismatchError
from llgbm.functional import FunctionalLoRA
from llgbm.lora import LoRAWeights
from llgbm.packed.batch import PackedBatch, Row, pack, packed_hidden_states
from llgbm.packed.layers import packed_layers
from tests.fixtures import random_lora
from tests.small_generator import SPEC, TINY

ADAPTERS: list[LoRAWeights | None] = [
    None,
    random_lora(SPEC, 0),
    random_lora(SPEC, 1),
    random_lora(LoRASpec.for_model(TINY, rank=2, targets=("v_proj", "up_proj")), 2),
]
Group = tuple[int, list[Row]]

# few different tokens, so prompts often share prefixes
tokens = st.lists(st.integers(0, 2), max_size=4)
prompts = st.lists(st.integers(0, 1), min_size=1, max_size=6)
rows = st.builds(Row, prompts, tokens)
groups = st.lists(
    st.tuples(st.integers(0, len(ADAPTERS) - 1), st.lists(rows, min_size=1, max_size=4)), min_size=1, max_size=4
)

ONE_TOKEN = [(1, [Row([5], [6, 7]), Row([5], [8])]), (0, [Row([5], [6])])]
IDENTICAL = [(1, [Row([1, 2, 3], [4]), Row([1, 2, 3], [4]), Row([1, 2, 3], [5, 6])])]
PREFIX_OF_ANOTHER = [(2, [Row([1, 2], [3, 4, 5]), Row([1, 2, 3, 4], [9]), Row([1, 2, 3], [4])])]
PROMPTS_ALONE = [(1, [Row([1, 2, 3]), Row([1, 2, 4, 5])]), (1, [Row([9])])]


def packed_rows(made: list[Group]) -> list[Row]:
    return list(chain.from_iterable(rows for _, rows in made))


def hidden_states(base: Base, made: list[Group]) -> tuple[PackedBatch, Tensor]:
    batch = pack([rows for _, rows in made])
    weights = [ADAPTERS[number] for number, _ in made]
    with torch.inference_mode(), FunctionalLoRA(base.model).applied(weights, lengths=batch.lengths):
        return batch, packed_hidden_states(base.model, batch)


def alone(base: Base, adapter: LoRAWeights | None, row: Row) -> Tensor:
    """Hidden states (tokens, hidden) of one row, by the model's own forward pass."""
    ids = torch.tensor([[*row.prompt, *row.answer]])
    with torch.inference_mode(), FunctionalLoRA(base.model).applied([adapter]):
        hidden: Tensor = base.model.get_submodule("model")(ids).last_hidden_state[0]
        return hidden


def visible_tokens(batch: PackedBatch, place: int) -> tuple[list[int], list[int]]:
    """Ids and positions of the tokens that the token at a flat index may attend to."""
    start = 0
    for mask, length in zip(batch.masks, batch.lengths, strict=True):
        if place < start + length:
            seen = (mask[place - start] == 0).nonzero()[:, 0] + start
            return batch.input_ids[0, seen].tolist(), batch.position_ids[0, seen].tolist()
        start += length
    raise AssertionError("the place is beyond the batch")


@settings(max_examples=40)
@given(made=groups)
@example(made=ONE_TOKEN)
@example(made=IDENTICAL)
@example(made=PREFIX_OF_ANOTHER)
@example(made=PROMPTS_ALONE)
def test_packed_rows_have_the_numbers_of_each_row_alone(tiny_base: Base, made: list[Group]) -> None:
    batch, hidden = hidden_states(tiny_base, made)
    head = tiny_base.model.get_submodule("lm_head")
    owners = [number for number, rows in made for _ in rows]
    for row_number, (owner, row) in enumerate(zip(owners, packed_rows(made), strict=True)):
        expected = alone(tiny_base, ADAPTERS[owner], row)
        torch.testing.assert_close(hidden[batch.last_index[row_number]], expected[-1], atol=1e-4, rtol=0)
        places = batch.label_index[batch.label_row == row_number]
        predicting = expected[len(row.prompt) - 1 : len(row.prompt) + len(row.answer) - 1]
        torch.testing.assert_close(head(hidden[places]), head(predicting), atol=1e-4, rtol=0)


@given(made=groups)
@example(made=ONE_TOKEN)
@example(made=IDENTICAL)
@example(made=PREFIX_OF_ANOTHER)
@example(made=PROMPTS_ALONE)
def test_each_rows_last_token_sees_its_own_row_and_nothing_else(made: list[Group]) -> None:
    batch = pack([rows for _, rows in made])
    for place, row in zip(batch.last_index.tolist(), packed_rows(made), strict=True):
        whole = [*row.prompt, *row.answer]
        assert visible_tokens(batch, place) == (whole, list(range(len(whole))))


@given(made=groups)
@example(made=ONE_TOKEN)
@example(made=PREFIX_OF_ANOTHER)
def test_each_label_is_predicted_from_what_comes_before_it(made: list[Group]) -> None:
    batch = pack([rows for _, rows in made])
    every = packed_rows(made)
    expected = [
        ([*row.prompt, *row.answer[:i]], token, number)
        for number, row in enumerate(every)
        for i, token in enumerate(row.answer)
    ]
    found = [
        (visible_tokens(batch, place)[0], label, number)
        for place, label, number in zip(
            batch.label_index.tolist(), batch.labels.tolist(), batch.label_row.tolist(), strict=True
        )
    ]
    assert found == expected
    assert len(batch.last_index) == len(every)


@given(made=groups)
def test_nothing_is_padded_and_what_rows_share_is_stored_once(made: list[Group]) -> None:
    batch = pack([rows for _, rows in made])
    assert batch.num_tokens == sum(batch.lengths) == batch.position_ids.shape[1]
    for (_, rows), length in zip(made, batch.lengths, strict=True):
        sizes = [len(row.prompt) + len(row.answer) for row in rows]
        shared = common_prefix([row.prompt for row in rows])
        assert length == shared + sum(size - shared for size in sizes)


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """The longest one that leaves every prompt a token of its own; none for a single row."""
    if len(prompts) == 1:
        return 0
    longest = min(map(len, prompts)) - 1
    return max(n for n in range(longest + 1) if len({tuple(p[:n]) for p in prompts}) == 1)


def test_gradients_are_those_of_the_rows_alone(tiny_base: Base) -> None:
    rows = [Row([1, 2, 3], [4, 5]), Row([1, 2, 9, 9], [7])]
    adapter = random_lora(SPEC, 3)
    names = SPEC.names[0], SPEC.names[-1]

    def gradients(batches: Sequence[Sequence[Row]]) -> list[Tensor]:
        leaf = adapter.map(lambda t: t.clone().requires_grad_())
        for rows_together in batches:
            batch = pack([rows_together])
            with FunctionalLoRA(tiny_base.model).applied([leaf], lengths=batch.lengths):
                hidden = packed_hidden_states(tiny_base.model, batch)
            hidden[batch.label_index].square().sum().backward()
        return [t.grad for name in names for t in (leaf.a[name], leaf.b[name]) if t.grad is not None]

    together, apart = gradients([rows]), gradients([[row] for row in rows])
    assert len(together) == 4
    for left, right in zip(together, apart, strict=True):
        torch.testing.assert_close(left, right, atol=1e-4 * float(right.abs().max()), rtol=0)
        assert bool(right.any())


def test_the_models_own_layers_come_back_whatever_happens(tiny_base: Base) -> None:
    def replaced() -> list[str]:
        return [name for name, module in tiny_base.model.named_modules() if "forward" in vars(module)]

    def broken() -> None:
        with packed_layers(tiny_base.model):
            assert len(replaced()) == 3 * tiny_base.spec.num_layers + 1
            raise RuntimeError("broke")

    ids = torch.tensor([[1, 2, 3]])
    plain = tiny_base.model(ids).logits
    hidden_states(tiny_base, IDENTICAL)
    assert replaced() == []
    with pytest.raises(RuntimeError, match="broke"):
        broken()
    assert replaced() == []
    assert torch.equal(tiny_base.model(ids).logits, plain)


@pytest.mark.parametrize("rows", [[], [[]], [[Row([1])], []], [[Row([], [1])]], [[Row([1]), Row([])]]])
def test_nothing_to_pack_is_refused(rows: list[list[Row]]) -> None:
    with pytest.raises(AdapterMismatchError, match=r"nothing to pack|every group needs a row"):
        pack(rows)
