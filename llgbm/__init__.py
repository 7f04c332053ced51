"""LLGBM: a sentence that describes a task becomes a LoRA adapter for a frozen Qwen2.5 model.

    from pathlib import Path
    from llgbm import AdapterMaker, AdapterRequest, load_generator, save_peft

    checkpoint = load_generator(Path("checkpoints/qwen2.5-0.5b"))
    maker = AdapterMaker(checkpoint, checkpoint.text_encoder())
    made = maker.make([AdapterRequest(("Translate the English word to French.",))])[0]
    save_peft(made.weights, Path("french"), base_id=checkpoint.manifest.base_id)

Names are imported on first use, so `import llgbm` alone loads neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llgbm.adapters.peft_io import load_peft, save_peft
    from llgbm.base import Base, load_base
    from llgbm.checkpoint import Checkpoint, load_generator, save_generator
    from llgbm.config import GeneratorConfig, LoRASpec, ModelSpec
    from llgbm.functional import FunctionalLoRA
    from llgbm.generator import LoRAGenerator, create_generator
    from llgbm.lora import LoRAWeights
    from llgbm.pretrained.find import resolve_pretrained
    from llgbm.prompting import AdapterMaker, AdapterRequest
    from llgbm.refining.refine import refine
    from llgbm.refining.settings import RefineConfig, Refined, RefineRow, RefineStep
    from llgbm.text_encoder import PretrainedTextEncoder

_MODULE_OF = {
    "AdapterMaker": "prompting",
    "AdapterRequest": "prompting",
    "Base": "base",
    "Checkpoint": "checkpoint",
    "FunctionalLoRA": "functional",
    "GeneratorConfig": "config",
    "LoRAGenerator": "generator",
    "LoRASpec": "config",
    "LoRAWeights": "lora",
    "ModelSpec": "config",
    "PretrainedTextEncoder": "text_encoder",
    "RefineConfig": "refining.settings",
    "RefineRow": "refining.settings",
    "RefineStep": "refining.settings",
    "Refined": "refining.settings",
    "create_generator": "generator",
    "load_base": "base",
    "load_generator": "checkpoint",
    "load_peft": "adapters.peft_io",
    "refine": "refining.refine",
    "resolve_pretrained": "pretrained.find",
    "save_generator": "checkpoint",
    "save_peft": "adapters.peft_io",
}

__all__ = [
    "AdapterMaker",
    "AdapterRequest",
    "Base",
    "Checkpoint",
    "FunctionalLoRA",
    "GeneratorConfig",
    "LoRAGenerator",
    "LoRASpec",
    "LoRAWeights",
    "ModelSpec",
    "PretrainedTextEncoder",
    "RefineConfig",
    "RefineRow",
    "RefineStep",
    "Refined",
    "create_generator",
    "load_base",
    "load_generator",
    "load_peft",
    "refine",
    "resolve_pretrained",
    "save_generator",
    "save_peft",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
