"""Adapters as training data: RealAdapterDataset reads them, DeltaAugmentedDataset adds conditions and deltas.

An item of `DeltaAugmentedDataset` is (tokens, condition, delta): the adapter's weights as tokens, the embedding of a
prompt for it, and its delta on the base. Each epoch draws a new prompt for each adapter: one of its descriptions, or
some of its examples. The draw depends on (seed, epoch, index) only, so every worker gets the same item.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from llgbm.adapters.index import AdapterEntry, AdapterPrompts, load_index
from llgbm.adapters.peft_io import content_digest, load_peft, load_peft_for
from llgbm.delta import DeltaCache, DeltaMeter
from llgbm.errors import AdapterMismatchError, CacheMismatchError, ConfigError
from llgbm.lora import LoRAWeights
from llgbm.matching.weight_tokens import TokenLayout, TokenNormalizer, tokenize
from llgbm.measuring.measurement import Delta
from llgbm.prompting import TextEncoder, condition_of, example_lines, noisy


class RealAdapterDataset:
    """Adapters on disk, read on access.

    Args:
        source: a workdir (see `llgbm.adapters.index`), or entries that name PEFT folders.
        base_id: refuse adapters of other bases; None accepts any.

    Attributes:
        entries: ids, tasks and folders, in the order of the items.

    Raises:
        TaskFormatError: the workdir has no adapters or a damaged index.
        ConfigError: an empty list of entries.
    """

    def __init__(self, source: Path | Sequence[AdapterEntry], *, base_id: str | None = None) -> None:
        self.entries = tuple(load_index(source) if isinstance(source, Path) else source)
        if not self.entries:
            raise ConfigError("a dataset needs at least one adapter")
        self._base_id = base_id

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> LoRAWeights:
        """The adapter at `index`, float32.

        Raises:
            AdapterFormatError: the files are damaged or not a supported LoRA adapter.
            AdapterMismatchError: it names another base.
        """
        entry = self.entries[index]
        taken = load_peft(entry.folder)[0] if self._base_id is None else load_peft_for(entry.folder, self._base_id)
        return taken.to(torch.float32)

    def __iter__(self) -> Iterator[LoRAWeights]:
        return (self[i] for i in range(len(self)))


Measure = Callable[[Iterable[tuple[str, LoRAWeights]]], Iterable[tuple[str, Tensor]]]
"""(id, adapter) pairs -> (id, delta (probes, layers, hidden)) pairs, in any order."""


def measure_deltas(
    adapters: RealAdapterDataset, meter: DeltaMeter, cache: DeltaCache, measure: Measure | None = None
) -> Iterator[str]:
    """Fill a cache with the deltas of all adapters, one per iteration.

    A cached delta is kept, unless the adapter's weights have changed since.

    Args:
        measure: measures the missing adapters, for example in other processes; the meter by default, one by one.

    Yields:
        The id of each adapter, when its delta is in the cache.

    Raises:
        CacheMismatchError: the cache is of another measurement than the meter's.
        AdapterFormatError, AdapterMismatchError: an adapter is damaged or does not fit the base.
    """
    cache.put_base(meter.base_activation)
    present: list[str] = []
    digests: dict[str, str] = {}

    def missing() -> Iterator[tuple[str, LoRAWeights]]:
        for entry, weights in zip(adapters.entries, adapters, strict=True):
            digest = content_digest(weights)
            if cache.digest_of(entry.adapter_id) not in (None, digest):
                cache.discard(entry.adapter_id)
            if cache.get(entry.adapter_id) is None:
                digests[entry.adapter_id] = digest
                yield entry.adapter_id, weights
            else:
                present.append(entry.adapter_id)

    def here(missing: Iterable[tuple[str, LoRAWeights]]) -> Iterator[tuple[str, Tensor]]:
        for adapter_id, weights in missing:
            with torch.no_grad():
                values = meter.deltas([weights])[0]
            yield adapter_id, values

    for adapter_id, values in (measure or here)(missing()):
        cache.put(adapter_id, Delta(values, meter.measurement), adapter_digest=digests[adapter_id])
        yield from present
        present.clear()
        yield adapter_id
    yield from present


class AdapterTokens(NamedTuple):
    """Tokens of one adapter: `values` (T, D) float32, and `mask` (T, D) bool, False at padding."""

    values: Tensor
    mask: Tensor


class AdapterItem(NamedTuple):
    """One item: tokens, condition (condition_size,) float32, delta (probes, layers, hidden) float32."""

    tokens: AdapterTokens
    condition: Tensor
    delta: Tensor


@dataclass(frozen=True, eq=False)
class AdapterBatch:
    """Items of one batch; adapters with fewer tokens are padded with zeros.

    Attributes:
        tokens: (N, T, D) float32.
        mask: (N, T, D) bool, True where a value belongs to an adapter.
        condition: (N, condition_size) float32.
        delta: (N, probes, layers, hidden) float32.
    """

    tokens: Tensor
    mask: Tensor
    condition: Tensor
    delta: Tensor


@dataclass(frozen=True)
class Conditioning:
    """Distribution of an item's prompt.

    Attributes:
        example_share: probability, 0 to 1, of a prompt of examples in place of a description. An adapter that has only
            one of the two always gets that one.
        max_examples: such a prompt has 1 to this many examples.
        null_share: probability of a zero condition, an empty prompt.
        noise: standard deviation of noise on the embedding, relative to its norm of 1.
    """

    example_share: float = 0.25
    max_examples: int = 4
    null_share: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.example_share <= 1 or not 0 <= self.null_share <= 1:
            raise ConfigError("example_share and null_share must be between 0 and 1")
        if self.max_examples < 1 or self.noise < 0:
            raise ConfigError("max_examples must be at least 1 and noise not negative")


class DeltaAugmentedDataset:
    """(tokens, condition, delta) for every adapter of a `RealAdapterDataset`.

    Args:
        adapters: ranks and modules may differ.
        cache: deltas of these adapters, all of one measurement. Open it with the student's measurement
            (`DeltaMeter.measurement`), which refuses a cache of another one.
        encoder: embeds all prompts, once, in the constructor.
        normalizer: scales of the tokens; fitted on all adapters when None.
        token_size: D of the tokens.
        seed: of the prompts.

    Raises:
        CacheMismatchError: the cache lacks the delta of an adapter.
        TaskFormatError: an adapter has no prompts.
    """

    def __init__(
        self,
        adapters: RealAdapterDataset,
        cache: DeltaCache,
        encoder: TextEncoder,
        *,
        normalizer: TokenNormalizer | None = None,
        token_size: int = 128,
        conditioning: Conditioning | None = None,
        seed: int = 0,
    ) -> None:
        missing = {e.adapter_id for e in adapters.entries} - set(cache.ids())
        if missing:
            raise CacheMismatchError(
                f"{cache.folder} has no delta of {len(missing)} of {len(adapters)} adapters, "
                f"such as {min(missing)}; measure them with the same settings"
            )
        self.adapters, self.cache = adapters, cache
        self.normalizer = normalizer or TokenNormalizer.fit(adapters)
        self._token_size, self._conditioning, self._seed = token_size, conditioning or Conditioning(), seed
        prompts = [entry.read_prompts() for entry in adapters.entries]
        self._prompts = _PromptEmbeddings(prompts, encoder)
        self._epoch = 0

    def __len__(self) -> int:
        return len(self.adapters)

    def set_epoch(self, epoch: int) -> None:
        """Draw the prompts of this epoch, independently of earlier epochs."""
        self._epoch = epoch

    def __getitem__(self, index: int) -> AdapterItem:
        """The item at `index` of the current epoch.

        Raises:
            CacheMismatchError: the cached delta is damaged, or was measured on another adapter of this id.
            AdapterFormatError: the adapter is damaged.
        """
        weights = self.adapters[index]
        layout = TokenLayout(weights.spec, self._token_size)
        tokens = AdapterTokens(tokenize([weights], layout, self.normalizer)[0], layout.mask)
        return AdapterItem(tokens, self.condition(index), self._delta(index, weights).values)

    def __iter__(self) -> Iterator[AdapterItem]:
        return (self[i] for i in range(len(self)))

    def batches(self, size: int) -> Iterator[AdapterBatch]:
        """All adapters in the epoch's random order, `size` at a time; the last batch may be smaller."""
        order = list(range(len(self)))
        random.Random(f"{self._seed} order {self._epoch}").shuffle(order)
        for start in range(0, len(order), size):
            yield collate(self[i] for i in order[start : start + size])

    def _delta(self, index: int, weights: LoRAWeights) -> Delta:
        name = self.adapters.entries[index].adapter_id
        delta = self.cache.get(name, adapter_digest=content_digest(weights))
        if delta is None:
            raise CacheMismatchError(f"the delta of {name} is no longer in {self.cache.folder}; measure it again")
        return delta

    def condition(self, index: int) -> Tensor:
        """Condition of the item at `index` in the current epoch, (condition_size,) float32; reads no file."""
        settings = self._conditioning
        rng = random.Random(f"{self._seed} prompt {self._epoch} {index}")
        descriptions, examples = self._prompts.of(index)
        if rng.random() < settings.null_share:
            return torch.zeros(descriptions.shape[1])
        if len(examples) and (not len(descriptions) or rng.random() < settings.example_share):
            count = min(rng.randint(1, settings.max_examples), len(examples))
            condition = condition_of(descriptions[:0], examples[rng.sample(range(len(examples)), count)])
        else:
            chosen = rng.randrange(len(descriptions))
            condition = condition_of(descriptions[chosen : chosen + 1], examples[:0])
        if settings.noise:
            generator = torch.Generator().manual_seed(rng.getrandbits(63))
            condition = noisy(condition, torch.randn(len(condition), generator=generator), settings.noise)
        return condition


class _PromptEmbeddings:
    """Embeddings of all prompts; a text of several adapters is encoded once."""

    def __init__(self, prompts: Sequence[AdapterPrompts], encoder: TextEncoder) -> None:
        self._texts = [(p.descriptions, example_lines(p.examples)) for p in prompts]
        distinct = list(dict.fromkeys(text for sides in self._texts for side in sides for text in side))
        self._place = {text: i for i, text in enumerate(distinct)}
        self._embeddings = encoder.encode(distinct)

    def of(self, index: int) -> tuple[Tensor, Tensor]:
        """(descriptions, condition_size) and (examples, condition_size)."""
        descriptions, examples = self._texts[index]
        return self._rows(descriptions), self._rows(examples)

    def _rows(self, texts: Sequence[str]) -> Tensor:
        return self._embeddings[[self._place[text] for text in texts]]


def collate(items: Iterable[AdapterItem]) -> AdapterBatch:
    """One batch of items of one dataset.

    Raises:
        AdapterMismatchError: no items, or items with different token sizes, conditions or measurements.
    """
    listed = list(items)
    if not listed:
        raise AdapterMismatchError("a batch needs at least one item")
    shapes = {(i.tokens.values.shape[1], i.condition.shape, i.delta.shape) for i in listed}
    if len(shapes) > 1:
        raise AdapterMismatchError(f"items of {len(shapes)} different forms cannot be one batch: {shapes}")
    longest = max(len(item.tokens.values) for item in listed)

    def padded(tensor: Tensor) -> Tensor:
        # (tokens, D) -> (longest, D); the mask is padded with False
        return torch.nn.functional.pad(tensor, (0, 0, 0, longest - len(tensor)))

    return AdapterBatch(
        tokens=torch.stack([padded(item.tokens.values) for item in listed]),
        mask=torch.stack([padded(item.tokens.mask) for item in listed]),
        condition=torch.stack([item.condition for item in listed]),
        delta=torch.stack([item.delta for item in listed]),
    )
