"""Records and tiny adapters for tests of the store, numbered."""

from __future__ import annotations

from llgbm.adapters.peft_io import content_digest
from llgbm.lora import LoRAWeights
from service.adapters.records import AdapterRecord

BASE = "llgbm/tiny-random-qwen2"


def identity(number: int) -> str:
    return f"lora-{number:024x}"


def record(weights: LoRAWeights, number: int = 1, created: float = 1.0) -> AdapterRecord:
    spec = weights.spec
    return AdapterRecord(
        id=identity(number),
        digest=content_digest(weights),
        base=BASE,
        rank=spec.rank,
        alpha=spec.alpha,
        target_modules=spec.target_modules,
        num_parameters=spec.num_parameters,
        created=created,
        source="generated",
        descriptions=("a task",),
        nearest=(("t", 0.5),),
    )
