"""Loads the base, the generator, and the text encoder with its cache. Runs in the torch thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
import torch

from llgbm.base import INT8_FOLDER, BareBase, Base, load_bare_base, load_base, storage_of
from llgbm.checkpoint import load_generator
from llgbm.conditioning.embedding_cache import SqliteEmbeddingCache
from llgbm.conditioning.vocabulary import BaseVocabulary
from llgbm.decoding.decoder import Decoder, DecodeRequest
from llgbm.decoding.json_grammar import JsonGrammar
from llgbm.decoding.sampling import SamplingParams
from llgbm.errors import CheckpointError
from llgbm.linears.frozen_linear import fastest_storage
from llgbm.pretrained.find import resolve_pretrained
from llgbm.pretrained.folder import folder_problem
from llgbm.prompting import AdapterMaker
from service.engine.interface import DecoderLike
from service.models.embedding_cache import PersistentCache, RedisEmbeddingCache, ResilientCache
from service.models.memory import loaded_for_good
from service.observability.metrics import Metrics
from service.settings import Settings

_log = structlog.get_logger("service.models")
Progress = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Models:
    """All loaded models.

    Attributes:
        new_decoder: None if the base has no weights because another engine decodes.
        max_context: limit of prompt and answer together, in tokens.
        cache: of text embeddings.
    """

    base: Base | BareBase
    maker: AdapterMaker
    new_decoder: Callable[[], DecoderLike] | None
    max_context: int
    cache: ResilientCache

    @property
    def base_storage(self) -> str | None:
        """How the base's Linear weights are kept; None if another engine has them."""
        return storage_of(self.base) if isinstance(self.base, Base) else None

    @property
    def generator_digest(self) -> str:
        """sha256 of the generator's tensors."""
        return self.maker.checkpoint.manifest.digest


class LoadModels(Protocol):
    """The signature of `load_models`, which tests replace."""

    def __call__(self, settings: Settings, metrics: Metrics, progress: Progress) -> Models:
        """Load everything; called in the torch thread."""
        ...


def load_models(settings: Settings, metrics: Metrics, progress: Progress) -> Models:
    """Find, download if needed, and load all models.

    Raises:
        CheckpointError: there is no readable generator, or it was made for another base or encoder.
        PretrainedNotFoundError: the base or the encoder is in no source.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)

    def say(text: str) -> None:
        progress(text)
        _log.info("loading", step=text)

    say("reading the generator")
    manifest = (checkpoint := load_generator(settings.checkpoint)).manifest

    base_name = settings.base or manifest.base_id
    if not (settings.engine == "vllm" and Path(base_name).expanduser().is_dir()):
        _fetch(base_name, progress)
    say(f"loading {base_name}")
    base: Base | BareBase
    if settings.engine == "vllm":
        base = load_bare_base(base_name)
    else:
        storage = fastest_storage(settings.device) if settings.base_storage == "auto" else settings.base_storage
        base = load_base(
            base_name, storage=storage, device=settings.device, int8_folder=settings.cache_dir / INT8_FOLDER
        )
    try:
        manifest.require_base(base.spec.base_id)
    except CheckpointError as error:
        raise CheckpointError(f"{error}: set LLGBM_BASE or LLGBM_CHECKPOINT so that they fit") from error
    if isinstance(base, Base) and base.revision != manifest.base_revision:
        _log.warning(
            "other_base_weights",
            trained_on=manifest.base_revision,
            loaded=base.revision,
            hint="the published quality was measured on the weights that the generator was trained on",
        )

    cache = embedding_cache(settings, metrics)
    encoder = checkpoint.text_encoder(settings.text_encoder, cache=cache)
    encoder_name = encoder.encoder_id
    _fetch(encoder_name, progress)
    say(f"loading {encoder_name}" + (" with the generator's LoRA" if checkpoint.encoder_lora else ""))
    if encoder.dim != manifest.generator.condition_size:
        raise CheckpointError(
            f"the generator wants embeddings of {manifest.generator.condition_size} numbers, and {encoder_name} gives "
            f"{encoder.dim}; leave LLGBM_TEXT_ENCODER unset to use {manifest.encoder_id}"
        )

    vocabulary: BaseVocabulary | None = None
    if checkpoint.word_scorer is not None:
        # the folder of a base that vLLM serves may be without weights; then they come from the base's other sources
        whole = isinstance(base, Base) or folder_problem(Path(base_name).expanduser()) is None
        source = base_name if whole else manifest.base_id
        _fetch(source, progress)
        vocabulary = BaseVocabulary(resolve_pretrained(source), base.tokenizer.backend_tokenizer)
    maker = AdapterMaker(checkpoint, encoder.load(), base=vocabulary)
    try:
        maker.require_training_vectors()
    except CheckpointError as error:
        raise CheckpointError(f"{error}, or leave LLGBM_TEXT_ENCODER unset") from error
    limit = min(settings.max_context, base.max_positions)
    if isinstance(base, BareBase):
        return Models(base, maker, None, limit, cache)

    def new_decoder() -> Decoder:
        return Decoder(
            base,
            max_context=limit,
            prefill_tokens=settings.prefill_tokens,
            prefix_tokens=settings.prefix_tokens,
        )

    say("warming up")
    # first use reads the weights from the disk and prepares the vocabulary for grammars: do it now, not in the
    # first request
    hello = base.tokenizer("Hello", add_special_tokens=False)["input_ids"]
    new_decoder().add([DecodeRequest(hello, None, SamplingParams(max_tokens=1), JsonGrammar())])
    return Models(base, maker, new_decoder, limit, cache)


def load_models_for_good(settings: Settings, metrics: Metrics, progress: Progress) -> Models:
    """`load_models` in a process that serves until it ends."""
    with loaded_for_good():
        return load_models(settings, metrics, progress)


def _fetch(name_or_path: str, progress: Progress) -> None:
    """Download weights if they are not on this machine; shows progress in the log and in /readyz."""
    last = time.monotonic()

    def report(stage: str, done: int, total: int | None) -> None:
        nonlocal last
        share = f" {100 * done // total} %" if total else ""
        progress(f"{name_or_path}: {stage}{share}")
        if time.monotonic() - last > 2:
            last = time.monotonic()
            _log.info("fetching", what=name_or_path, stage=stage, done=done, total=total)

    progress(f"looking for {name_or_path}")
    resolve_pretrained(name_or_path, progress=report)


def embedding_cache(settings: Settings, metrics: Metrics) -> ResilientCache:
    """The cache of the settings: memory over Redis, or over a file."""
    check = None
    if settings.redis_url is None:
        path = settings.cache_dir / "embeddings.sqlite"

        def open_persistent() -> PersistentCache:
            return SqliteEmbeddingCache(path)
    else:
        redis = RedisEmbeddingCache(
            settings.redis_url.get_secret_value(),
            ttl=settings.redis_ttl,
            timeout=settings.redis_timeout,
            metrics=metrics,
        )
        check = redis.probe

        def open_persistent() -> PersistentCache:
            return redis

    return ResilientCache(
        open_persistent,
        max_items=settings.embedding_memory,
        retry_after=settings.redis_retry_after,
        metrics=metrics,
        check=check,
    )
