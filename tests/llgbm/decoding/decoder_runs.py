"""Helpers for tests of the decoder: run it to the end, and compare the steps of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from llgbm.base import Base
from llgbm.decoding.decoder import Decoder, DecodeRequest, Step
from llgbm.decoding.kv_cache import RowCache


def run(decoder: Decoder, rows: Sequence[DecodeRequest] = ()) -> list[Step]:
    """Every step until no row is left."""
    steps = decoder.add(rows)
    while decoder.rows:
        steps += decoder.step()
    return steps


def alone(base: Base, row: DecodeRequest) -> list[Step]:
    """The steps of an equal row, decoded alone."""
    return run(Decoder(base), [dataclasses.replace(row, output=[], finish_reason=None)])


def assert_same(actual: Sequence[Step], expected: Sequence[Step]) -> None:
    assert [(s.token, s.finish_reason) for s in actual] == [(s.token, s.finish_reason) for s in expected]
    for a, e in zip(actual, expected, strict=True):
        if e.logprob is not None:
            assert a.logprob == pytest.approx(e.logprob, abs=1e-4)
            assert [v for _, v in a.top_logprobs] == pytest.approx([v for _, v in e.top_logprobs], abs=1e-4)


def cache_bytes(cache: RowCache) -> int:
    """Current size of its keys and values in bytes."""
    return sum(t.numel() * t.element_size() for t in cache._states)


def of_row(steps: Sequence[Step], row: DecodeRequest) -> list[Step]:
    return [step for step in steps if step.row is row]
