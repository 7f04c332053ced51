"""Small generators for the tiny base, with adapters that are not zero."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from llgbm.checkpoint import GeneratorManifest, write_calibration
from llgbm.conditioning.answer_words import NUM_FEATURES, WordScorer
from llgbm.conditioning.context_choice import ContextChoice
from llgbm.conditioning.encoder_lora import EncoderLoRA
from llgbm.conditioning.sentence_model import SentenceModel
from llgbm.conditioning.task_detector import TaskDetector
from llgbm.config import WORD_SLOTS, GeneratorConfig, LoRASpec, lora_spec, model_spec
from llgbm.generator import LoRAGenerator, create_generator

TINY = model_spec("tiny")
SPEC = lora_spec("tiny")
SMALL = GeneratorConfig(condition_size=384, basis_rank=8, hidden_size=32, num_blocks=1)
WORDY = replace(SMALL, answer_words=True)
"""Reads answer words."""

SPECS = {
    "all": SPEC,
    "rank 1": LoRASpec.for_model(TINY, rank=1, alpha=1.0),
    "two targets": LoRASpec.for_model(TINY, rank=3, alpha=5.0, targets=("down_proj", "q_proj")),
    "one layer": LoRASpec.for_model(TINY, rank=4, layers=(1,)),
    "layers upside down": LoRASpec.for_model(TINY, rank=4, layers=(1, 0)),
    "one module": LoRASpec.for_model(TINY, rank=2, targets=("k_proj",), layers=(0,)),
    "rank-stabilised": LoRASpec(2, 3.0, SPEC.modules, use_rslora=True),
}
IRREGULAR = LoRASpec(2, 3.0, SPEC.modules[3:9])
"""Targets that differ between the two layers."""


def calibrate_artefact(folder: Path, scale: float = 0.5) -> GeneratorManifest:
    """Give a generator a calibration: every text asks for a task, and the adapter has `scale` with a description."""
    detector = TaskDetector(torch.zeros(384), torch.tensor(9.0))
    return write_calibration(folder, detector, {}, ContextChoice.of_scales(similarity=0.0, far=scale, near=scale))


def active_generator(
    spec: LoRASpec = SPEC, *, config: GeneratorConfig = SMALL, seed: int = 0, size: float = 0.1
) -> LoRAGenerator:
    """A generator as after training: B0 is not zero, and adapters depend on the condition."""
    generator = create_generator(TINY, spec, config, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for b0 in generator.b0.values():
            b0.normal_(std=size, generator=draw)
        generator.heads.normal_(std=4 * config.hidden_size**-0.5, generator=draw)
        if config.answer_words:
            generator.word_rows.normal_(std=size, generator=draw)
    return generator


def conditions(count: int, *, seed: int = 0, size: int = SMALL.condition_size) -> Tensor:
    """(count, size) float32, rows of length 1."""
    return torch.nn.functional.normalize(
        torch.randn(count, size, generator=torch.Generator().manual_seed(seed)), dim=-1
    )


def wordy_conditions(count: int, *, seed: int = 0) -> Tensor:
    """(count, input_size) float32 for `WORDY`: the conditions, and random answer words."""
    draw = torch.Generator().manual_seed(seed + 1)
    return torch.cat(
        [conditions(count, seed=seed), torch.randn(count, WORD_SLOTS * TINY.hidden_size, generator=draw)], 1
    )


def word_scorer(*, seed: int = 0) -> WordScorer:
    """A random scorer for the tiny text encoder and the tiny base, with values that float16 holds."""
    draw = torch.Generator().manual_seed(seed)
    features, width, hidden = SMALL.condition_size + NUM_FEATURES, 8, TINY.hidden_size

    def random(*shape: int) -> Tensor:
        drawn: Tensor = torch.randn(shape, generator=draw) / float(shape[-1]) ** 0.5
        return drawn.half().float()

    root = random(hidden, hidden)
    return WordScorer(
        mean=torch.zeros(features),
        spread=torch.ones(features),
        w1=random(width, features),
        b1=torch.zeros(width),
        w2=(3 * random(WORD_SLOTS * 3, width)).half().float(),
        b2=torch.full((WORD_SLOTS * 3,), -2.0),
        metric=(root @ root.T + torch.eye(hidden)).half().float(),
    )


def encoder_lora(encoder_folder: Path, *, seed: int = 0, rank: int = 4) -> EncoderLoRA:
    """A random change of the tiny text encoder, large enough to move every vector."""
    draw = torch.Generator().manual_seed(seed)
    weights = {name: linear.weight for name, linear in SentenceModel(encoder_folder).linears.items()}
    a = {name: torch.randn(rank, w.shape[1], generator=draw).bfloat16() for name, w in weights.items()}
    b = {name: (0.03 * torch.randn(w.shape[0], rank, generator=draw)).bfloat16() for name, w in weights.items()}
    return EncoderLoRA(a, b)
