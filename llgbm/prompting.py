"""From a user's request to an adapter: request -> condition -> LoRAWeights, with an id and a confidence.

A request has descriptions, examples, or both. Its condition is the normalised mean of the embeddings of the
descriptions and of the "input -> output" lines, each side with equal weight. The id is a content hash, so equal
requests to one generator share one adapter. The order of descriptions and examples changes neither.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from llgbm.checkpoint import Checkpoint, TrainingTask
from llgbm.conditioning.answer_words import ARROW, Vocabulary
from llgbm.conditioning.context_choice import UNCALIBRATED, ContextSetting, ContextWanted, pick
from llgbm.conditioning.prompt_index import confidence_at
from llgbm.config import LoRASpec
from llgbm.errors import CheckpointError, ConfigError
from llgbm.lora import LoRAWeights
from llgbm.text_encoder import PretrainedTextEncoder

_SAME_VECTOR = 0.999
"""Least cosine of two computations of a text's vector; float16 in the prompt index takes less than 1e-5 from 1."""


class TextEncoder(Protocol):
    """Interface of a text encoder, such as `llgbm.text_encoder.PretrainedTextEncoder`."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """(n, condition_size) float32, L2-normalised."""
        ...


@dataclass(frozen=True)
class AdapterRequest:
    """A request for an adapter.

    Attributes:
        descriptions: the task in plain words, in one or several wordings.
        examples: (input, output) pairs.
        scale: factor on the adapter's product BA; 1 is as trained, 0 the plain base.

    Texts are normalised: Unicode NFC, white space collapsed to single blanks, none at the ends.

    Raises:
        ConfigError: neither a description nor an example, an empty text, invalid Unicode, or a scale that is not
            finite.
    """

    descriptions: tuple[str, ...] = ()
    examples: tuple[tuple[str, str], ...] = ()
    scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "descriptions", tuple(_normalise(d) for d in self.descriptions))
        object.__setattr__(self, "examples", tuple((_normalise(i), _normalise(o)) for i, o in self.examples))
        if not self.descriptions and not self.examples:
            raise ConfigError("an adapter needs a description of the task or at least one example")
        if not all(self.descriptions) or not all(i and o for i, o in self.examples):
            raise ConfigError("a description and both sides of an example must hold more than white space")
        if not math.isfinite(self.scale):
            raise ConfigError(f"scale must be a finite number, not {self.scale}")
        object.__setattr__(self, "scale", float(self.scale) + 0.0)  # 1 becomes 1.0 and -0.0 becomes 0.0, in the id too

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts for the encoder, sorted: the descriptions, then the lines of the examples."""
        return (*sorted(self.descriptions), *example_lines(sorted(self.examples)))


def example_lines(examples: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Examples as lines for the text encoder, in training and in serving."""
    return tuple(f"{given}{ARROW}{wanted}" for given, wanted in examples)


def condition_of(descriptions: Tensor, examples: Tensor) -> Tensor:
    """Condition (d,) of embeddings (n, d) and (m, d): the normalised mean of both means. One of them may be empty.

    Raises:
        ConfigError: both are empty.
    """
    if not len(descriptions) and not len(examples):
        raise ConfigError("a condition needs the embedding of a description or of an example")
    return torch.nn.functional.normalize(_mean_of_sides(descriptions, examples), dim=-1)


def _mean_of_sides(descriptions: Tensor, examples: Tensor) -> Tensor:
    """The mean (d,) of both means of (n, d) and (m, d); one of them may be empty."""
    return torch.stack([side.mean(0) for side in (descriptions, examples) if len(side)]).mean(0)


def joined_condition(vectors: Tensor, words: Tensor | None, descriptions: int) -> Tensor:
    """The vector that a generator reads, (input_size,): the condition of some texts, and their answer words.

    Args:
        vectors: (n, d) of the text encoder; the first `descriptions` are of descriptions, the others of examples.
        words: (n, w), the `AnswerWords` of the same texts; None for a generator that does not read them.
        descriptions: number of descriptions.

    Raises:
        ConfigError: there is no text.
    """
    condition = condition_of(vectors[:descriptions], vectors[descriptions:])
    if words is None:
        return condition
    return torch.cat([condition, _mean_of_sides(words[:descriptions], words[descriptions:])])


def noisy(conditions: Tensor, normal: Tensor, length: float) -> Tensor:
    """Conditions (..., d) with a random vector of about `length` added to each, normalised again.

    Args:
        normal: standard normal numbers of the same shape; d of them have a norm of about sqrt(d).
    """
    shifted = conditions + length * normal / conditions.shape[-1] ** 0.5
    return torch.nn.functional.normalize(shifted, dim=-1)


def adapter_id(request: AdapterRequest, *, generator_digest: str, base_id: str, lora: LoRASpec) -> str:
    """Content hash of a request to one generator: `lora-` and 24 hex digits."""
    prompts = sorted(request.descriptions), sorted(request.examples)
    content = [*prompts, request.scale, generator_digest, base_id, lora.to_dict()]
    return "lora-" + hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:24]


@dataclass(frozen=True, eq=False)
class MadeAdapter:
    """An adapter with its id and diagnostics.

    Attributes:
        nearest: (task_id, cosine) of the nearest training tasks, best first.
        confidence: 0 to 1, quality in calibration of requests at this distance from the training prompts; None without
            calibration.
        task_probability: 0 to 1, probability that the descriptions ask for a task; the adapter is scaled by it. 1 with
            examples, or without a detector.
        scale_in_context: the scale to request if the conversation has the description too; None without calibration
            or a description.
        warning: set when the request does not read like a task, or few right answers are expected of context `auto`.
        seconds: wall time of `encode` and `generate`, for the whole call.
    """

    id: str
    request: AdapterRequest
    weights: LoRAWeights
    nearest: tuple[tuple[str, float], ...]
    confidence: float | None
    task_probability: float
    scale_in_context: float | None
    warning: str | None
    seconds: dict[str, float]


class AdapterMaker:
    """Makes adapters from requests: one encoder pass and one generator pass for any number of them.

    Args:
        encoder: mostly `checkpoint.text_encoder()`.
        base: another source of the generator's base than its manifest names, or its vocabulary.

    Raises:
        ConfigError: the encoder has another LoRA than in the generator's training, or none, or cannot give the answer
            words that the generator reads.
        PretrainedNotFoundError: the generator reads answer words, and no source has the base.
    """

    def __init__(
        self, checkpoint: Checkpoint, encoder: TextEncoder, *, base: str | Path | Vocabulary | None = None
    ) -> None:
        self._words: TextEncoder | None = None
        if isinstance(encoder, PretrainedTextEncoder):
            checkpoint.require_encoder(encoder)
            self._words = checkpoint.answer_words(encoder, base)
        elif checkpoint.word_scorer is not None:
            raise ConfigError("this generator reads answer words; take the encoder of checkpoint.text_encoder()")
        self.checkpoint, self._encoder = checkpoint, encoder

    def require_training_vectors(self) -> None:
        """Encode a training description and compare it with the prompt index. An empty index passes.

        Another encoder with vectors of the same length raises no other error, and its adapters would be meaningless.

        Raises:
            CheckpointError: the vector is not that of the generator's training.
        """
        manifest, index = self.checkpoint.manifest, self.checkpoint.prompt_index
        if not len(index.task):
            return
        task = int(index.task[0])
        (vector,) = self._encoder.encode(manifest.tasks[task].descriptions[:1])
        trained = index.embeddings[index.task == task]  # (descriptions, condition_size)
        # not `<`, since a NaN must not pass
        if len(vector) != trained.shape[1] or not float((trained @ vector).max()) >= _SAME_VECTOR:
            raise CheckpointError(
                "the text encoder is not the one that the generator was trained with: it has another vector for a "
                f"training description; use {manifest.encoder_id}"
            )

    def id_of(self, request: AdapterRequest) -> str:
        """The id of the adapter for `request`, without making it."""
        manifest = self.checkpoint.manifest
        return adapter_id(request, generator_digest=manifest.digest, base_id=manifest.base_id, lora=manifest.lora)

    def make(self, requests: Sequence[AdapterRequest]) -> list[MadeAdapter]:
        """Adapters for `requests`, in order.

        The same call gives the same tensors. Other requests in the call change an adapter by rounding only.

        Raises:
            ConfigError: the encoder's vectors have another length than in the generator's training.
        """
        start = time.perf_counter()
        conditions = self._conditions(requests, self._words)
        encoded = time.perf_counter()
        with torch.inference_mode():
            adapters = self.checkpoint.generator(torch.stack(conditions)) if conditions else []
            probabilities = self._task_probabilities(requests, conditions)
        seconds = {"encode": encoded - start, "generate": time.perf_counter() - encoded}
        return [
            self._describe(request, condition, weights, probability, seconds)
            for request, condition, weights, probability in zip(
                requests, conditions, adapters, probabilities, strict=True
            )
        ]

    def context_setting(self, request: AdapterRequest, wanted: ContextWanted = "auto") -> ContextSetting:
        """The context for `request` and the scale of its adapter there, without making the adapter.

        Raises:
            ConfigError: the request lacks the text for the context `wanted`.
        """
        (condition,) = self._conditions([request], None)
        return self._setting(request, self.checkpoint.prompt_index.nearest(condition, 1), wanted)

    def _setting(
        self, request: AdapterRequest, nearest: Sequence[tuple[int, float]], wanted: ContextWanted
    ) -> ContextSetting:
        described, shown = bool(request.descriptions), bool(request.examples)
        ranking: Sequence[ContextSetting] = UNCALIBRATED
        if (choice := self.checkpoint.manifest.context_choice) is not None and nearest:
            ranking = choice.ranking(nearest[0][1], with_examples=shown)
        return pick(ranking, wanted, description=described, examples=shown)

    def _scale_in_context(self, request: AdapterRequest, nearest: Sequence[tuple[int, float]]) -> float | None:
        if self.checkpoint.manifest.context_choice is None or not request.descriptions:
            return None
        return self._setting(request, nearest, "description").scale

    def _conditions(self, requests: Sequence[AdapterRequest], reader: TextEncoder | None) -> list[Tensor]:
        """Conditions from one pass over all texts; with a reader of answer words, whole inputs of the generator."""
        texts = [text for request in requests for text in request.texts]
        vectors = self._encoder.encode(texts)
        words = reader.encode(texts) if reader is not None else None
        conditions, place = [], 0
        for request in requests:
            own = slice(place, place := place + len(request.texts))
            found = None if words is None else words[own]
            conditions.append(joined_condition(vectors[own], found, len(request.descriptions)))
        return conditions

    def _sentence(self, condition: Tensor) -> Tensor:
        """The part of a generator's input (..., input_size) that is of the text encoder."""
        return condition[..., : self.checkpoint.generator.config.condition_size]

    def _task_probabilities(self, requests: Sequence[AdapterRequest], conditions: Sequence[Tensor]) -> list[float]:
        detector = self.checkpoint.detector
        if detector is None or not requests:
            return [1.0] * len(requests)
        found = detector(self._sentence(torch.stack(list(conditions)))).tolist()
        return [1.0 if request.examples else p for request, p in zip(requests, found, strict=True)]

    def _describe(
        self,
        request: AdapterRequest,
        condition: Tensor,
        weights: LoRAWeights,
        task_probability: float,
        seconds: dict[str, float],
    ) -> MadeAdapter:
        tasks = self.checkpoint.manifest.tasks
        found = self.checkpoint.prompt_index.nearest(self._sentence(condition))
        nearest = tuple((tasks[i].task_id, cos) for i, cos in found)
        auto = self._setting(request, found, "auto")
        confidence = warning = None
        if (curve := self.checkpoint.manifest.confidence) and nearest:
            confidence = confidence_at(nearest[0][1], curve)
            expected = confidence if auto.accuracy is None else auto.accuracy
            if expected < curve["threshold"]:
                warning = _advice(tasks[found[0][0]], more_examples=bool(request.examples))
        if task_probability < 0.5:
            warning = (
                "this does not read like the description of a task, so the adapter is held back and the answers are "
                "nearly those of the plain base; say what is to be done with an input"
            )
        if (scale := request.scale * task_probability) != 1.0:
            weights = weights.scaled(scale)
        return MadeAdapter(
            id=self.id_of(request),
            request=request,
            weights=weights,
            nearest=nearest,
            confidence=confidence,
            task_probability=task_probability,
            scale_in_context=self._scale_in_context(request, found),
            warning=warning,
            seconds=seconds,
        )


def _advice(nearest: TrainingTask, *, more_examples: bool) -> str:
    """A warning with the help for a request that is far from all training tasks."""
    examples = "more examples" if more_examples else "a few examples"
    return (
        f"few right answers are to be expected, since the nearest task that the generator knows is "
        f"{nearest.descriptions[0]!r}: give {examples}, or a description that says clearly what form the answer has"
    )


def _normalise(text: str) -> str:
    """Unicode NFC, white space collapsed to single blanks, none at the ends."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"a text has half of a surrogate pair, which is no character: {error}") from error
    return " ".join(unicodedata.normalize("NFC", text).split())
