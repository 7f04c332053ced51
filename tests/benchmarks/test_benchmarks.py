"""Every benchmark on the tiny models: that it runs and that its arms do the same work, not what it measures."""

import math

import pytest

from benchmarks.adapters import prompt_to_adapter
from benchmarks.measuring.workbench import Workbench
from benchmarks.run import BENCHMARKS

PEERS = {"service_vllm": "vLLM", "service_llama_cpp": "llama.cpp"}
SERVICES = {"service_overhead", "service_load", "stream_beside_job", *PEERS}


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name not in SERVICES])
def test_a_benchmark_gives_results(name: str, bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_to_adapter, "_DND_PARAMETERS", 100_000)
    monkeypatch.setattr(prompt_to_adapter, "_DND_WIDTH", 100)
    results = BENCHMARKS[name](bench)
    assert results
    assert len({one.name for one in results}) == len(results)
    for one in results:
        assert one.value is not None
        assert math.isfinite(one.value)
        assert one.n >= 1
        assert all(math.isfinite(number) for number in one.arms.values())


def test_both_training_steps_have_the_same_loss(bench: Workbench) -> None:
    *against_peft, fit_step = BENCHMARKS["training_step"](bench)
    assert set(fit_step.arms) == {"fit step", "products"}
    (note,) = {one.note for one in against_peft}
    apart = float(note.split("at most ")[1].split(" ")[0])
    assert apart < 1e-3


@pytest.mark.timeout(900)  # three services are started
def test_the_service_is_measured_and_a_peer_that_is_not_there_says_so(bench: Workbench) -> None:
    (overhead,) = BENCHMARKS["service_overhead"](bench)
    assert overhead.value is not None
    for name, arm in PEERS.items():
        (one,) = BENCHMARKS[name](bench)
        assert one.value is None
        assert "no-such-python" in one.missing[arm]
        assert one.arms["service"] > 0


@pytest.mark.timeout(600)  # a service and the worker of its job are started
def test_a_stream_and_a_job_are_measured_alone_and_beside_each_other(bench: Workbench) -> None:
    rate, step = BENCHMARKS["stream_beside_job"](bench)
    for one in (rate, step):
        assert set(one.arms) == {"alone", "beside"}
        assert one.value is not None
        assert all(number > 0 for number in one.arms.values())


@pytest.mark.timeout(600)
def test_many_clients_wait_for_their_first_text_and_memory_is_measured(bench: Workbench) -> None:
    first, rate, memory = BENCHMARKS["service_load"](bench)
    for one in (first, rate, memory):
        assert one.value is not None
        assert all(number > 0 for number in one.arms.values())
    assert first.arms["64 clients, median"] <= first.arms["64 clients, 95th percentile"]
    assert memory.arms["ready"] <= memory.arms["after 64 clients"]
