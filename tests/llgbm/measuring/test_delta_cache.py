"""The cache returns the stored deltas, refuses damaged and foreign ones, and two processes can fill it."""

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llgbm.errors import CacheMismatchError, ConfigError
from llgbm.measuring.delta_cache import MANIFEST_FILE, DeltaCache
from llgbm.measuring.measurement import Activation, Delta
from tests.llgbm.measuring.test_measurement import CHANGES, MEASUREMENT


def delta(seed: int) -> Delta:
    return Delta(torch.randn(MEASUREMENT.shape, generator=torch.Generator().manual_seed(seed)), MEASUREMENT)


def filled(folder: Path) -> DeltaCache:
    cache = DeltaCache(folder, MEASUREMENT)
    cache.put_base(Activation(delta(0).values, MEASUREMENT))
    cache.put("task_000", delta(1), adapter_digest="d1")
    return cache


def test_round_trip_and_layout(tmp_path: Path) -> None:
    filled(tmp_path / "deltas")
    cache = DeltaCache(tmp_path / "deltas", MEASUREMENT)
    stored, base = cache.get("task_000", adapter_digest="d1"), cache.get_base()
    assert stored is not None
    assert base is not None
    assert torch.equal(stored.values, delta(1).values)
    assert torch.equal(base.values, delta(0).values)
    assert cache.ids() == ("task_000",)
    assert cache.digest_of("task_000") == "d1"
    assert cache.get("task_001") is None
    visible = sorted(p.name for p in cache.folder.iterdir() if not p.name.startswith("."))
    assert visible == ["base_activation.npy", MANIFEST_FILE, "task_000.npy"]
    assert np.load(cache.folder / "task_000.npy").dtype == np.float32
    assert not list(cache.folder.glob(".*.tmp"))


def test_manifest_is_enough_to_open_a_cache(tmp_path: Path) -> None:
    filled(tmp_path)
    assert DeltaCache(tmp_path).measurement == MEASUREMENT
    with pytest.raises(CacheMismatchError, match="measure the deltas first"):
        DeltaCache(tmp_path / "nothing")


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: next(iter(c)))
def test_a_foreign_cache_is_refused_and_the_message_says_what_differs(
    tmp_path: Path, change: dict[str, object]
) -> None:
    filled(tmp_path)
    other = replace(MEASUREMENT, **change)  # type: ignore[arg-type]
    with pytest.raises(CacheMismatchError, match=next(iter(change))):
        DeltaCache(tmp_path, other)
    with pytest.raises(CacheMismatchError, match=next(iter(change))):
        DeltaCache(tmp_path).put("task_001", Delta(delta(1).values, other), adapter_digest="d")


def test_a_cache_that_turns_foreign_while_open_is_refused(tmp_path: Path) -> None:
    early = DeltaCache(tmp_path, replace(MEASUREMENT, revision="r2"))
    filled(tmp_path)
    with pytest.raises(CacheMismatchError, match="revision"):
        early.put("task_009", Delta(delta(1).values, early.measurement), adapter_digest="d")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("name", ["task_000", "base_activation"])
def test_a_torn_file_is_refused_until_it_is_discarded(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    cache = filled(tmp_path)
    damage(tmp_path / f"{name}.npy")
    read = cache.get_base if name == "base_activation" else lambda: cache.get(name)
    with pytest.raises(CacheMismatchError, match="damaged, missing"):
        read()
    cache.discard(name)
    assert read() is None
    filled(tmp_path)
    assert read() is not None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"version": 99}', '{"version": 1, "measurement": {}, "adapters": {"x": 1}, "base": null}'],
)
def test_a_torn_or_unknown_manifest_is_refused(tmp_path: Path, text: str) -> None:
    filled(tmp_path)
    (tmp_path / MANIFEST_FILE).write_text(text)
    with pytest.raises(CacheMismatchError):
        DeltaCache(tmp_path, MEASUREMENT)
    with pytest.raises(CacheMismatchError):
        DeltaCache(tmp_path)


def test_another_adapter_of_the_same_name_is_refused(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    with pytest.raises(CacheMismatchError, match="another adapter of that name"):
        cache.get("task_000", adapter_digest="d2")
    with pytest.raises(CacheMismatchError, match="another adapter of that name"):
        cache.put("task_000", delta(2), adapter_digest="d2")
    cache.discard("task_000")
    cache.put("task_000", delta(2), adapter_digest="d2")
    stored = cache.get("task_000", adapter_digest="d2")
    assert stored is not None
    assert torch.equal(stored.values, delta(2).values)


def test_the_first_of_two_measurements_of_one_adapter_stays(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    cache.put("task_000", delta(7), adapter_digest="d1")
    stored = cache.get("task_000")
    assert stored is not None
    assert torch.equal(stored.values, delta(1).values)


def test_a_file_that_a_crash_left_without_entry_is_not_used(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    np.save(tmp_path / "task_005.npy", np.zeros(MEASUREMENT.shape, np.float32))
    assert cache.get("task_005") is None
    cache.put("task_005", delta(5), adapter_digest="d5")
    stored = cache.get("task_005")
    assert stored is not None
    assert torch.equal(stored.values, delta(5).values)


@pytest.mark.parametrize("name", ["", ".x", "a/b", "../x", "base_activation", "a" * 201, "ä"])
def test_an_id_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a file"):
        filled(tmp_path).put(name, delta(1), adapter_digest="d")


def fill_some(folder: str, names: list[str]) -> None:
    cache = DeltaCache(Path(folder), MEASUREMENT)
    cache.put_base(Activation(delta(0).values, MEASUREMENT))
    for name in names:
        cache.put(name, delta(int(name[-3:])), adapter_digest=name)


def test_two_processes_fill_one_cache(tmp_path: Path) -> None:
    names = [f"task_{i:03d}" for i in range(24)]
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=fill_some, args=(str(tmp_path), part)) for part in (names[:16], names[8:])]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    cache = DeltaCache(tmp_path, MEASUREMENT)
    assert cache.ids() == tuple(names)
    for name in names:
        stored = cache.get(name, adapter_digest=name)
        assert stored is not None
        assert torch.equal(stored.values, delta(int(name[-3:])).values)
