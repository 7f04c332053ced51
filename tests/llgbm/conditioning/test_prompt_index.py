import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm.conditioning.prompt_index import PromptIndex
from tests.small_generator import conditions


@settings(max_examples=40)
@given(data=st.data(), count=st.integers(1, 5), seed=st.integers(0, 100))
def test_nearest_tasks_are_sorted_and_those_of_a_search_by_hand(data: st.DataObject, count: int, seed: int) -> None:
    tasks = data.draw(st.lists(st.integers(0, 3), min_size=4, max_size=12).map(lambda extra: [0, 1, 2, 3, *extra]))
    embeddings, query = conditions(len(tasks), seed=seed, size=4), conditions(1, seed=seed + 1, size=4)[0]
    found = PromptIndex(embeddings, torch.tensor(tasks)).nearest(query, count)
    by_hand = {
        task: max(float(e @ query) for e, t in zip(embeddings, tasks, strict=True) if t == task) for task in set(tasks)
    }
    assert len(found) == min(count, 4)
    assert [cosine for _, cosine in found] == pytest.approx(sorted(by_hand.values(), reverse=True)[:count], abs=1e-6)
    assert all(cosine == pytest.approx(by_hand[task], abs=1e-6) for task, cosine in found)
