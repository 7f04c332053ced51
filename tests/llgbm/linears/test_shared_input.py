import torch
from hypothesis import given
from hypothesis import strategies as st

from llgbm.linears.shared_input import SharedInput, input_groups


def test_modules_that_read_one_input_are_grouped_in_the_order_of_their_calls() -> None:
    names = ["m.0.v_proj", "m.0.q_proj", "m.1.q_proj", "m.0.up_proj", "m.0.o_proj", "m.0.gate_proj", "head", "q_proj"]
    assert sorted(input_groups(names)) == [
        ("head",),
        ("m.0.gate_proj", "m.0.up_proj"),
        ("m.0.o_proj",),
        ("m.0.q_proj", "m.0.v_proj"),
        ("m.1.q_proj",),
        ("q_proj",),
    ]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=30))
def test_a_reader_gets_the_result_of_its_own_input_whatever_the_order(calls: list[tuple[int, int]]) -> None:
    inputs = [torch.full((1,), float(i)) for i in range(3)]
    shared = SharedInput(float, 3)
    for reader, which in calls:
        assert shared.read(reader, inputs[which]) == which


def test_an_input_whose_memory_is_used_anew_is_read_anew() -> None:
    x = torch.zeros(1)
    shared = SharedInput(float, 2)
    assert [shared.read(0, x), shared.read(1, x)] == [0, 0]
    x.fill_(1)
    assert shared.read(0, x) == 1
    x.fill_(2)
    assert shared.read(0, x) == 2  # the same reader again, before the others


def test_readers_in_turn_have_it_computed_once_and_nothing_is_kept_afterwards() -> None:
    calls = []
    shared = SharedInput(lambda x: calls.append(x) or len(calls), 3)  # type: ignore[func-returns-value]
    x, y = torch.zeros(2), torch.zeros(2)
    assert [shared.read(reader, x) for reader in range(3)] == [1, 1, 1]
    assert [shared.read(reader, y) for reader in (2, 0)] == [2, 2]
    assert shared.read(0, y) == 3
    assert shared.read(1, x) == 4
    assert len(calls) == 4
