from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llgbm.adapters.peft_io import content_digest
from llgbm.config import LoRASpec, lora_spec, model_spec
from llgbm.errors import AdapterMismatchError
from llgbm.lora import LoRAWeights
from service.adapters.files import AdapterFiles
from service.adapters.store import AdapterStore, Lease
from service.observability.metrics import Metrics
from tests.fixtures import in_threads, random_lora
from tests.service.support.records import identity, record

SIZE = random_lora(lora_spec("tiny"), 0).num_bytes


def make_store(folder: Path, *, room: float = 2, adapters: int = 4) -> AdapterStore:
    """A store with `adapters` on disk and room in memory for `room` of them."""
    files = AdapterFiles(folder)
    for number in range(1, adapters + 1):
        weights = random_lora(lora_spec("tiny"), number)
        files.write(weights, record(weights, number))
    return AdapterStore(files, model_spec("tiny"), max_bytes=int(room * SIZE), metrics=Metrics())


def value(store: AdapterStore, name: str, **labels: str) -> float:
    return store._metrics.registry.get_sample_value(name, labels) or 0.0


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    store = make_store(tmp_path, room=2)
    for number in (1, 2, 1, 3):
        store.acquire(identity(number)).release()
    assert list(store.resident) == [identity(1), identity(3)]
    assert value(store, "llgbm_adapters_resident_bytes") == 2 * SIZE
    assert value(store, "llgbm_adapter_cache_total", where="disk") == 3
    assert value(store, "llgbm_adapter_cache_total", where="memory") == 1


def test_what_is_in_use_stays_even_beyond_the_limit_and_goes_when_it_is_free(tmp_path: Path) -> None:
    store = make_store(tmp_path, room=1)
    leases = [store.acquire(identity(number)) for number in (1, 2, 3)]
    assert len(store.resident) == 3
    leases[0].release()
    leases[0].release()  # a second release does nothing
    assert list(store.resident) == [identity(2), identity(3)]
    assert store.resident[identity(2)] == 1
    for lease in leases:
        lease.release()
    assert list(store.resident) == [identity(3)]
    assert value(store, "llgbm_adapters_in_use") == 0


def test_a_lease_keeps_its_tensors_when_the_adapter_is_deleted(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    lease = store.acquire(identity(1))
    digest = content_digest(lease.weights)
    assert store.delete(identity(1))
    assert content_digest(lease.weights) == digest
    with pytest.raises(FileNotFoundError):
        store.acquire(identity(1))
    lease.release()
    assert store.resident == {}


def test_an_adapter_that_another_process_deleted_is_gone_here_too(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.acquire(identity(1)).release()
    AdapterFiles(tmp_path).delete(identity(1))
    with pytest.raises(FileNotFoundError):
        store.acquire(identity(1))
    assert store.resident == {}


def test_many_who_want_one_adapter_read_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path)
    read, reads = store.files.read, []
    barrier = threading.Barrier(8)

    def slow_read(which: str):  # type: ignore[no-untyped-def]
        reads.append(which)
        threading.Event().wait(0.05)
        return read(which)

    monkeypatch.setattr(store.files, "read", slow_read)

    def want(_: int) -> Lease:
        barrier.wait()
        return store.acquire(identity(1))

    leases = in_threads(want, range(8))
    assert reads == [identity(1)]
    assert store.resident == {identity(1): 8}
    assert len({id(lease.weights) for lease in leases}) == 1


def test_an_entry_that_came_while_the_files_were_read_keeps_its_references(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path)
    read, leases = store.files.read, []

    def read_while_others_work(which: str) -> LoRAWeights:
        store.keep(which, random_lora(lora_spec("tiny"), 1))
        leases.append(store.acquire(which))
        return read(which)

    monkeypatch.setattr(store.files, "read", read_while_others_work)
    leases.append(store.acquire(identity(1)))
    assert store.resident == {identity(1): 2}
    assert leases[0].weights is leases[1].weights


def test_an_adapter_of_another_shape_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path, adapters=0)
    spec = lora_spec("qwen2.5-0.5b")
    weights = random_lora(LoRASpec(spec.rank, spec.alpha, spec.modules[:1]), 1)
    store.files.write(weights, record(weights))
    with pytest.raises(AdapterMismatchError):
        store.acquire(identity(1))
    assert store.resident == {}


class StoreMachine(RuleBasedStateMachine):
    """acquire, release and delete in any order."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.store = make_store(Path(self.folder.name), room=1.5)
        self.digests = {r.id: r.digest for r in self.store.files.records()}
        self.leases: list[Lease] = []
        self.deleted: set[str] = set()

    @rule(number=st.integers(1, 4))
    def acquire(self, number: int) -> None:
        if identity(number) in self.deleted:
            with pytest.raises(FileNotFoundError):
                self.store.acquire(identity(number))
        else:
            self.leases.append(self.store.acquire(identity(number)))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1))).release()

    @rule(number=st.integers(1, 4))
    def delete(self, number: int) -> None:
        assert self.store.delete(identity(number)) == (identity(number) not in self.deleted)
        self.deleted.add(identity(number))

    @invariant()
    def references_are_those_that_were_given_out(self) -> None:
        held = [lease.id for lease in self.leases]
        for which, references in self.store.resident.items():
            assert references == held.count(which)
        assert set(held) - self.deleted <= set(self.store.resident)

    @invariant()
    def memory_holds_little_more_than_what_is_in_use(self) -> None:
        unused = sum(references == 0 for references in self.store.resident.values())
        assert len(self.store.resident) * SIZE <= 1.5 * SIZE or unused == 0

    def teardown(self) -> None:
        for lease in self.leases:
            assert content_digest(lease.weights) == self.digests[lease.id]
        self.folder.cleanup()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = hypothesis_settings(
    max_examples=15, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
