"""Batches cover all adapters, prompts change with the epoch only, and deltas of other adapters are refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from llgbm.adapters.index import AdapterEntry, AdapterPrompts, load_index, save_prompts
from llgbm.adapters.peft_io import save_peft
from llgbm.base import Base
from llgbm.config import LoRASpec, model_spec
from llgbm.dataset import (
    AdapterItem,
    AdapterTokens,
    Conditioning,
    DeltaAugmentedDataset,
    RealAdapterDataset,
    collate,
    measure_deltas,
)
from llgbm.delta import DeltaCache, DeltaMeter
from llgbm.errors import AdapterMismatchError, CacheMismatchError, ConfigError, TaskFormatError
from llgbm.matching.weight_tokens import TokenLayout, TokenNormalizer, detokenize
from llgbm.probes import ProbeSet
from llgbm.prompting import condition_of
from llgbm.text_encoder import PretrainedTextEncoder
from tests.fixtures import random_lora, same_weights

TINY = model_spec("tiny")
PROBES = ProbeSet(("one", "two words", "3"), chat=False)
RANKS = {"caps": 4, "count": 4, "french": 2}


@pytest.fixture(scope="module")
def encoder(tiny_encoder_path: Path) -> PretrainedTextEncoder:
    return PretrainedTextEncoder(tiny_encoder_path)


@pytest.fixture(scope="module")
def meter(tiny_base: Base) -> DeltaMeter:
    return DeltaMeter(tiny_base, PROBES, [0, 1])


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """Five adapters of three tasks and two ranks."""
    for t, (task, rank) in enumerate(RANKS.items()):
        for i in range(1 if task == "french" else 2):
            folder = tmp_path / task / f"{task}_{i:03d}"
            save_peft(random_lora(LoRASpec.for_model(TINY, rank=rank), 10 * t + i), folder, base_id=TINY.base_id)
            words = tuple(f"{task}: wording {n}" for n in range(6))
            save_prompts(folder, AdapterPrompts(words, (("a", "A"), ("b", "B"), (f"{task}", "x"))))
    return tmp_path


def measured(workdir: Path, meter: DeltaMeter) -> tuple[RealAdapterDataset, DeltaCache]:
    adapters, cache = RealAdapterDataset(workdir), DeltaCache(workdir / "deltas", meter.measurement)
    assert list(measure_deltas(adapters, meter, cache)) == [e.adapter_id for e in adapters.entries]
    return adapters, cache


def test_items_hold_the_adapter_its_prompt_and_its_delta(
    workdir: Path, meter: DeltaMeter, encoder: PretrainedTextEncoder
) -> None:
    adapters, cache = measured(workdir, meter)
    dataset = DeltaAugmentedDataset(adapters, cache, encoder, token_size=48)
    assert len(dataset) == len(list(dataset)) == 5
    for index, (weights, entry) in enumerate(zip(adapters, adapters.entries, strict=True)):
        tokens, condition, delta = dataset[index]
        layout = TokenLayout(weights.spec, 48)
        assert tokens.values.shape == tokens.mask.shape == (layout.num_tokens, 48)
        back = detokenize(tokens.values[None], layout, dataset.normalizer)[0]
        assert same_weights(back, weights)
        assert condition.shape == (384,)
        assert float(condition.norm()) == pytest.approx(1.0, abs=1e-5)
        torch.testing.assert_close(delta, meter.deltas([weights])[0].detach())  # without gradients and with them
        stored = cache.get(entry.adapter_id)
        assert stored is not None
        assert torch.equal(delta, stored.values)


def test_every_batch_iterates_and_every_adapter_comes_once(
    workdir: Path, meter: DeltaMeter, encoder: PretrainedTextEncoder
) -> None:
    adapters, cache = measured(workdir, meter)
    dataset = DeltaAugmentedDataset(adapters, cache, encoder)
    deltas = {tuple(item.delta.flatten()[:4].tolist()) for item in dataset}
    orders = []
    for epoch in range(4):
        dataset.set_epoch(epoch)
        batches = list(dataset.batches(2))
        assert [len(b.condition) for b in batches] == [2, 2, 1]
        seen = []
        for batch in batches:
            assert batch.tokens.shape == batch.mask.shape
            assert batch.delta.shape[1:] == (3, 2, 64)
            assert bool(torch.isfinite(batch.tokens).all())
            assert float(batch.tokens[~batch.mask].abs().sum()) == 0.0
            seen += [tuple(d.flatten()[:4].tolist()) for d in batch.delta]
        assert len(seen) == 5
        assert set(seen) == deltas
        orders.append(seen)
    assert len({tuple(o) for o in orders}) > 1


def test_adapters_of_other_ranks_are_filled_up_in_a_batch(
    workdir: Path, meter: DeltaMeter, encoder: PretrainedTextEncoder
) -> None:
    dataset = DeltaAugmentedDataset(*measured(workdir, meter), encoder)
    items = [dataset[0], dataset[4]]
    lengths = [len(i.tokens.values) for i in items]
    assert lengths[0] == 2 * lengths[1]
    batch = collate(items)
    assert batch.tokens.shape[1] == lengths[0]
    assert not bool(batch.mask[1, lengths[1] :].any())
    assert torch.equal(batch.tokens[1, : lengths[1]], items[1].tokens.values)


def test_prompts_are_drawn_by_seed_epoch_and_index_alone(
    workdir: Path, meter: DeltaMeter, encoder: PretrainedTextEncoder
) -> None:
    adapters, cache = measured(workdir, meter)
    one, two = (DeltaAugmentedDataset(adapters, cache, encoder, seed=3) for _ in range(2))
    other = DeltaAugmentedDataset(adapters, cache, encoder, seed=4)
    for dataset in (one, two, other):
        dataset.set_epoch(2)
    backwards = [two[i].condition for i in reversed(range(5))][::-1]
    assert all(torch.equal(one[i].condition, backwards[i]) for i in range(5))
    assert not all(torch.equal(one[i].condition, other[i].condition) for i in range(5))
    before = [one[i].condition for i in range(5)]
    one.set_epoch(3)
    assert not all(torch.equal(one[i].condition, before[i]) for i in range(5))
    one.set_epoch(2)
    assert all(torch.equal(one[i].condition, before[i]) for i in range(5))


def drawn(dataset: DeltaAugmentedDataset, epochs: int) -> list[Tensor]:
    conditions = []
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        conditions.append(dataset[0].condition)
    return conditions


def test_descriptions_and_examples_are_both_shown(
    workdir: Path, meter: DeltaMeter, encoder: PretrainedTextEncoder
) -> None:
    adapters, cache = measured(workdir, meter)
    words = encoder.encode([f"caps: wording {n}" for n in range(6)])
    lines = encoder.encode(["a -> A", "b -> B", "caps -> x"])
    described = drawn(DeltaAugmentedDataset(adapters, cache, encoder, conditioning=Conditioning(example_share=0.0)), 30)
    found = {int((words @ c).argmax()) for c in described if float((words @ c).max()) > 1 - 1e-5}
    assert found == set(range(6))
    settings = Conditioning(example_share=1.0, max_examples=1)
    shown = drawn(DeltaAugmentedDataset(adapters, cache, encoder, conditioning=settings), 20)
    assert {int((lines @ c).argmax()) for c in shown if float((lines @ c).max()) > 1 - 1e-5} == {0, 1, 2}
    settings = Conditioning(example_share=1.0, max_examples=9)
    several = drawn(DeltaAugmentedDataset(adapters, cache, encoder, conditioning=settings), 20)
    every = condition_of(words[:0], lines)
    assert any(torch.allclose(c, every, atol=1e-5) for c in several)


def test_null_prompts_and_noise(workdir: Path, meter: DeltaMeter, encoder: PretrainedTextEncoder) -> None:
    adapters, cache = measured(workdir, meter)
    nulls = drawn(DeltaAugmentedDataset(adapters, cache, encoder, conditioning=Conditioning(null_share=1.0)), 3)
    assert all(torch.equal(c, torch.zeros(384)) for c in nulls)
    settings = Conditioning(example_share=0.0, noise=0.3)
    noisy = drawn(DeltaAugmentedDataset(adapters, cache, encoder, conditioning=settings), 12)
    plain = drawn(DeltaAugmentedDataset(adapters, cache, encoder, conditioning=Conditioning(example_share=0.0)), 12)
    cosines = [float(a @ b) for a, b in zip(noisy, plain, strict=True)]
    assert all(0.9 < c < 0.99 for c in cosines)
    assert all(float(c.norm()) == pytest.approx(1.0, abs=1e-5) for c in noisy)


def test_peft_adapters_from_anywhere_are_read(
    tmp_path: Path, tiny_base_path: Path, meter: DeltaMeter, encoder: PretrainedTextEncoder
) -> None:
    """Adapters saved by PEFT, with their own targets and given prompts."""
    entries = []
    for i, targets in enumerate((["q_proj", "v_proj"], ["down_proj"])):
        torch.manual_seed(i)
        config = LoraConfig(r=3, lora_alpha=6, target_modules=targets, init_lora_weights=False)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_base_path), config)
        model.save_pretrained(str(tmp_path / f"somewhere{i}"))
        entries.append(AdapterEntry(f"mine{i}", "mine", tmp_path / f"somewhere{i}", AdapterPrompts((f"Do {i}.",))))
    adapters = RealAdapterDataset(entries)
    cache = DeltaCache(tmp_path / "deltas", meter.measurement)
    list(measure_deltas(adapters, meter, cache))
    dataset = DeltaAugmentedDataset(adapters, cache, encoder)
    assert [b.tokens.shape[0] for b in dataset.batches(4)] == [2]
    assert len({float(item.delta.norm()) for item in dataset}) == 2


def test_measuring_again_measures_only_what_is_new(workdir: Path, meter: DeltaMeter) -> None:
    adapters, cache = measured(workdir, meter)
    times = {p.name: p.stat().st_mtime_ns for p in cache.folder.glob("*.npy")}
    changed = workdir / "caps" / "caps_001"
    save_peft(random_lora(LoRASpec.for_model(TINY, rank=4), 99), changed, base_id=TINY.base_id)
    list(measure_deltas(adapters, meter, cache))
    again = {p.name: p.stat().st_mtime_ns for p in cache.folder.glob("*.npy")}
    assert {name for name in times if times[name] != again[name]} == {"caps_001.npy"}
    stored = cache.get("caps_001")
    assert stored is not None
    torch.testing.assert_close(stored.values, meter.deltas([adapters[1]])[0].detach())


def test_a_foreign_cache_is_refused(workdir: Path, meter: DeltaMeter, tiny_base: Base) -> None:
    measured(workdir, meter)
    student = DeltaMeter(tiny_base, replace(PROBES, texts=("one", "two words", "4")), [0, 1])
    with pytest.raises(CacheMismatchError, match="probes is"):
        DeltaCache(workdir / "deltas", student.measurement)


def damage_delta(workdir: Path) -> None:
    path = workdir / "deltas" / "caps_000.npy"
    path.write_bytes(path.read_bytes()[:-5])


def train_again(workdir: Path) -> None:
    folder = workdir / "caps" / "caps_000"
    save_peft(random_lora(LoRASpec.for_model(TINY, rank=4), 77), folder, base_id=TINY.base_id)


@pytest.mark.parametrize(("damage", "says"), [(damage_delta, "damaged, missing"), (train_again, "another adapter")])
def test_a_torn_or_stale_delta_is_refused(
    workdir: Path, meter: DeltaMeter, encoder: PretrainedTextEncoder, damage: Callable[[Path], None], says: str
) -> None:
    adapters, cache = measured(workdir, meter)
    dataset = DeltaAugmentedDataset(adapters, cache, encoder)
    damage(workdir)
    with pytest.raises(CacheMismatchError, match=says):
        dataset[0]


def test_a_delta_that_is_missing_is_named(workdir: Path, meter: DeltaMeter, encoder: PretrainedTextEncoder) -> None:
    adapters, cache = measured(workdir, meter)
    dataset = DeltaAugmentedDataset(adapters, cache, encoder)
    cache.discard("french_000")
    with pytest.raises(CacheMismatchError, match="1 of 5 adapters, such as french_000"):
        DeltaAugmentedDataset(adapters, cache, encoder)
    with pytest.raises(CacheMismatchError, match="no longer in"):
        dataset[4]


def test_what_cannot_be_data_is_refused(
    workdir: Path, meter: DeltaMeter, encoder: PretrainedTextEncoder, tmp_path: Path
) -> None:
    with pytest.raises(AdapterMismatchError, match="was made for"):
        RealAdapterDataset(workdir, base_id="Qwen/other")[0]
    with pytest.raises(ConfigError, match="at least one"):
        RealAdapterDataset([])
    with pytest.raises(TaskFormatError):
        RealAdapterDataset(tmp_path / "nothing")
    adapters, cache = measured(workdir, meter)
    (load_index(workdir)[0].folder / "prompts.json").unlink()
    with pytest.raises(TaskFormatError, match="missing"):
        DeltaAugmentedDataset(adapters, cache, encoder)
    narrow = TokenNormalizer.fit([random_lora(LoRASpec.for_model(TINY, rank=4, targets=["q_proj"]), 0)])
    save_prompts(load_index(workdir)[0].folder, AdapterPrompts(("x",)))
    with pytest.raises(AdapterMismatchError, match="no scale"):
        DeltaAugmentedDataset(adapters, cache, encoder, normalizer=narrow)[0]
    for settings in ({"example_share": 1.5}, {"null_share": -0.1}, {"max_examples": 0}, {"noise": -1.0}):
        with pytest.raises(ConfigError):
            Conditioning(**settings)


def test_items_of_different_forms_are_no_batch() -> None:
    def item(size: int, probes: int) -> AdapterItem:
        tokens = AdapterTokens(torch.zeros(2, size), torch.ones(2, size, dtype=torch.bool))
        return AdapterItem(tokens, torch.zeros(384), torch.zeros(probes, 1, 64))

    assert collate([item(4, 3), item(4, 3)]).tokens.shape == (2, 2, 4)
    for pair in ([item(4, 3), item(5, 3)], [item(4, 3), item(4, 2)], []):
        with pytest.raises(AdapterMismatchError):
            collate(pair)
