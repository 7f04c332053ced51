import resource
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from llgbm.decoding.kv_cache import RowCache
from llgbm.decoding.mapped import mapped_zeros
from tests.llgbm.decoding.decoder_runs import cache_bytes

LAYERS, HEADS, SIZE = 2, 2, 3


def states(tokens: list[int], layer: int) -> Tensor:
    """Distinct keys (heads, tokens, size) for a row with these tokens."""
    values = torch.tensor(tokens, dtype=torch.float32) + 1000 * layer
    return values[None, :, None] + torch.arange(HEADS)[:, None, None] / 10 + torch.arange(SIZE) / 100


class CacheMachine(RuleBasedStateMachine):
    """Compares the cache with a list of rows, each a list of tokens."""

    @initialize()
    def start(self) -> None:
        self.cache = RowCache(LAYERS, HEADS, SIZE, torch.float32)
        self.rows: list[list[int]] = []
        self.number = 0

    def fresh(self) -> int:
        self.number += 1
        return self.number

    @rule(lengths=st.lists(st.integers(1, 9) | st.integers(120, 140), min_size=1, max_size=5))
    def join(self, lengths: list[int]) -> None:
        new = [[self.fresh() for _ in range(length)] for length in lengths]
        padded = [row + [-1] * (max(lengths) - len(row)) for row in new]
        keys = [torch.stack([states(row, layer) for row in padded]) for layer in range(LAYERS)]
        self.cache.join(keys, [-layer for layer in keys], lengths)
        self.rows += new

    @precondition(lambda self: self.rows)
    @rule(finish=st.booleans())
    def step(self, finish: bool) -> None:
        mask = self.cache.start_step()
        new = [[self.fresh()] for _ in self.rows]
        after = [row + one for row, one in zip(self.rows, new, strict=True)]
        longest = max(map(len, after))
        assert (mask is None) == (len(set(map(len, after))) == 1)
        for layer in range(LAYERS):
            keys = torch.cat([states(one, layer) for one in new], dim=1).transpose(0, 1)  # (rows, heads, size)
            all_keys, all_values = self.cache.update(torch.cat([keys, -keys], dim=1), layer)
            assert all_keys.shape == (len(after), HEADS, longest, SIZE)
            assert all_keys.isfinite().all()
            for i, row in enumerate(after):
                assert torch.equal(all_keys[i, :, : len(row)], states(row, layer))
                assert torch.equal(all_values[i, :, : len(row)], -states(row, layer))
        if mask is not None:
            assert mask.shape == (len(after), 1, 1, longest)
            for i, row in enumerate(after):
                assert mask[i, 0, 0].tolist() == [0.0] * len(row) + [-torch.inf] * (longest - len(row))
        if finish:  # else the pass failed after its writes, and has no effect
            self.cache.finish_step()
            self.rows = after

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), wipe=st.booleans())
    def leave(self, data: st.DataObject, wipe: bool) -> None:
        slot = data.draw(st.integers(0, len(self.rows) - 1))
        self.cache.leave(slot, wipe=wipe)
        self.rows[slot] = self.rows[-1]
        self.rows.pop()

    @invariant()
    def lengths_agree(self) -> None:
        assert list(self.cache.lengths) == [len(row) for row in self.rows]

    @invariant()
    def memory_is_bounded_by_what_is_used(self) -> None:
        rows, tokens = len(self.rows) + 3, max(map(len, self.rows), default=0) + 127
        used = 2 * LAYERS * rows * tokens * HEADS * SIZE * 4
        assert cache_bytes(self.cache) <= 4 * used + 4
        if not self.rows:
            assert cache_bytes(self.cache) == 0


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=40, stateful_step_count=20)


def test_numbers_that_are_not_finite_do_not_reach_the_next_row() -> None:
    cache = RowCache(1, HEADS, SIZE, torch.float32)
    bad = torch.full((2, HEADS, 3, SIZE), torch.nan)
    bad[0] = 1
    cache.join([bad], [bad], [3, 3])
    cache.leave(1, wipe=True)
    one = torch.ones(1, HEADS, 1, SIZE)
    cache.join([one], [one], [1])
    cache.start_step()
    keys, values = cache.update(torch.ones(2, 2 * HEADS, SIZE), 0)
    assert keys.isfinite().all()
    assert values.isfinite().all()


def test_a_resize_that_fails_half_way_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = RowCache(2, HEADS, SIZE, torch.float32)
    ones, twos = torch.ones(1, HEADS, 2, SIZE), torch.full((1, HEADS, 200, SIZE), 2.0)
    cache.join([ones] * 2, [ones] * 2, [2])
    calls = [0]

    def sometimes(like: Tensor, *shape: int) -> Tensor:
        calls[0] += 1
        if calls[0] == 2:
            raise RuntimeError("not enough memory")
        return mapped_zeros(like, *shape)

    with monkeypatch.context() as patch:
        patch.setattr("llgbm.decoding.kv_cache.mapped_zeros", sometimes)
        with pytest.raises(RuntimeError, match="not enough memory"):
            cache.join([twos] * 2, [twos] * 2, [200])
    assert list(cache.lengths) == [2]
    cache.join([twos] * 2, [twos] * 2, [200])
    cache.start_step()
    for layer in range(2):
        keys, _ = cache.update(torch.ones(2, 2 * HEADS, SIZE), layer)
        assert torch.equal(keys[0, :, :2], ones[0])
        assert torch.equal(keys[1, :, :200], twos[0])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of the process from /proc")
def test_short_rows_beside_a_long_one_take_little_memory() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    cache = RowCache(1, 2, 64, torch.float32)
    long, short = torch.ones(1, 2, 8000, 64), torch.ones(31, 2, 5, 64)
    before = resident()
    cache.join([long], [long], [8000])
    cache.join([short], [short], [5] * 31)
    cache.start_step()
    cache.update(torch.ones(32, 4, 64), 0)
    assert resident() - before < cache_bytes(cache) / 8
