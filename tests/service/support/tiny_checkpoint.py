"""A random generator for the tiny base whose adapters change the base's answers."""

from __future__ import annotations

from pathlib import Path

import torch

from llgbm.base import load_base
from llgbm.checkpoint import GeneratorManifest, TrainingTask, save_generator
from llgbm.conditioning.context_choice import ContextChoice
from llgbm.conditioning.encoder_lora import EncoderLoRA
from llgbm.config import GeneratorConfig, lora_spec
from llgbm.generator import create_generator
from llgbm.text_encoder import PretrainedTextEncoder


def build_tiny_checkpoint(
    folder: Path, base_folder: Path, encoder_folder: Path, encoder_lora: EncoderLoRA | None = None
) -> Path:
    """Write the generator to `folder`, for the tiny base and encoder in the other folders; returns `folder`."""
    base = load_base(base_folder)
    config = GeneratorConfig(basis_rank=4, hidden_size=32, num_blocks=1)
    generator = create_generator(base.spec, lora_spec("tiny"), config, seed=3)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for b0 in generator.b0.values():
            b0.normal_(std=0.4, generator=random)
        generator.heads.normal_(std=0.3, generator=random)
    descriptions = ("Translate the English word to French.", "Reverse the letters.")
    manifest = GeneratorManifest(
        base_id=base.spec.base_id,
        base_revision=base.revision,
        encoder_id=str(encoder_folder),
        model=base.spec,
        lora=generator.lora,
        generator=config,
        tasks=tuple(TrainingTask(f"task_{i}", "test", "made", "CC0", (d,)) for i, d in enumerate(descriptions)),
        confidence={"similarity": [0.0, 1.0], "confidence": [0.0, 1.0], "threshold": 0.5},
        context_choice=ContextChoice.of_scales(similarity=0.9, far=0.5, near=1.0),
    )
    encoder = PretrainedTextEncoder(encoder_folder, lora=encoder_lora)
    folder.mkdir(exist_ok=True)
    blocks = [encoder.encode([d]) for d in descriptions]
    save_generator(folder, generator, manifest, blocks, encoder_lora=encoder_lora)
    return folder
