"""Probe sets are deterministic and without repetition, and every change changes their digest."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm.errors import ConfigError
from llgbm.probes import DOMAINS, ProbeSet, create_domain_probes, create_generic_probes, create_mixed_probes


def test_every_domain_has_different_texts_of_its_own() -> None:
    texts = [t for d in DOMAINS for t in create_domain_probes(d).texts] + list(create_generic_probes().texts)
    assert [t for t, n in Counter(texts).items() if n > 1] == []
    assert all(t == t.strip() for t in texts)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(0, 1000))
def test_mixed_probes_are_balanced_and_repeatable(count: int, seed: int) -> None:
    probes = create_mixed_probes(count, seed=seed)
    assert probes == create_mixed_probes(count, seed=seed)
    assert len(probes) == len(set(probes.texts)) == count
    home = {t: d for d in DOMAINS for t in create_domain_probes(d).texts}
    shares = Counter(home.get(t, "generic") for t in probes.texts)
    assert max(shares.values()) - min(shares.get(d, 0) for d in (*DOMAINS, "generic")) <= 1


def test_mixed_probes_differ_by_seed_and_keep_to_their_domains() -> None:
    assert create_mixed_probes(12, seed=1).texts != create_mixed_probes(12, seed=2).texts
    only = create_mixed_probes(10, domains=["math", "logic"], generic=False)
    allowed = {*create_domain_probes("math").texts, *create_domain_probes("logic").texts}
    assert set(only.texts) <= allowed


@pytest.mark.parametrize(
    "change", [{"texts": ("a", "c")}, {"texts": ("b", "a")}, {"chat": False}, {"max_length": 9}, {"system": "s"}]
)
def test_digest_sees_every_field(change: dict[str, Any]) -> None:
    probes = ProbeSet(("a", "b"))
    assert probes.digest() == ProbeSet(("a", "b")).digest()
    assert replace(probes, **change).digest() != probes.digest()


def test_dict_is_json_and_builds_the_same_set() -> None:
    probes = create_domain_probes("code", 3, chat=False, max_length=40)
    assert ProbeSet(**json.loads(json.dumps(probes.to_dict()))) == probes


@pytest.mark.parametrize(
    "make",
    [
        lambda: create_domain_probes("cooking"),
        lambda: create_domain_probes("math", 99),
        lambda: create_generic_probes(0),
        lambda: create_mixed_probes(500),
        lambda: create_mixed_probes(3, domains=["nothing"]),
        lambda: ProbeSet(()),
        lambda: ProbeSet((" ",)),
        lambda: ProbeSet(("a",), max_length=0),
        lambda: ProbeSet(("a",), chat=False, system="s"),
    ],
)
def test_bad_requests_are_refused(make: Callable[[], ProbeSet]) -> None:
    with pytest.raises(ConfigError):
        make()
