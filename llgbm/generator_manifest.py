"""The manifest of a generator artefact: the generator's size, its training tasks and its base.

Written as `manifest.json` next to the tensors, see `llgbm.checkpoint`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

from llgbm.conditioning.context_choice import ContextChoice
from llgbm.config import GeneratorConfig, LoRASpec, ModelSpec
from llgbm.errors import CheckpointError, ConfigError

FORMAT_VERSION = 3
MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class TrainingTask:
    """A training task of the generator and its training descriptions."""

    task_id: str
    category: str
    source: str
    licence: str
    descriptions: tuple[str, ...]


@dataclass(frozen=True)
class GeneratorManifest:
    """The description of a checkpoint.

    Attributes:
        base_id: hub id of the only base that its adapters fit.
        base_revision: revision of that base in training.
        encoder_id: text encoder whose embeddings are the condition.
        tasks: the training tasks, with licences.
        made_by: the command, configuration and cost of the training run.
        confidence: empty before calibration; then `similarity` (rising cosines), `confidence` (0 to 1 at each of them)
            and `threshold`, the confidence below which a request gets a warning.
        context_choice: None before calibration.
        digest: sha256 of the tensors file; set on save.

    Raises:
        CheckpointError: `confidence` has another form.
    """

    base_id: str
    base_revision: str
    encoder_id: str
    model: ModelSpec
    lora: LoRASpec
    generator: GeneratorConfig
    tasks: tuple[TrainingTask, ...]
    made_by: dict[str, Any] = field(default_factory=dict)
    confidence: dict[str, Any] = field(default_factory=dict)
    context_choice: ContextChoice | None = None
    digest: str = ""

    def __post_init__(self) -> None:
        if self.confidence:
            _require_curve(self.confidence)

    def require_base(self, base_id: str) -> None:
        """Refuse any base but the generator's, even one of the same shape.

        Raises:
            CheckpointError: names both bases.
        """
        if base_id != self.base_id:
            raise CheckpointError(
                f"the generator makes adapters for {self.base_id}, not for {base_id}; use its own base, or another "
                "generator"
            )

    def to_json(self) -> str:
        """The content of `manifest.json`.

        Raises:
            CheckpointError: the layers of the LoRASpec differ in their targets, which the format cannot express.
        """
        data = {"format_version": FORMAT_VERSION, **asdict(self)}
        data |= {"model": self.model.to_dict(), "generator": self.generator.to_dict()}
        data["lora"] = lora = {
            "rank": self.lora.rank,
            "alpha": self.lora.alpha,
            "use_rslora": self.lora.use_rslora,
            "target_modules": list(self.lora.target_modules),
            "layers": list(dict.fromkeys(m.layer for m in self.lora.modules)),
        }
        if _lora_from_json(lora, self.model) != self.lora:
            raise CheckpointError(
                "only a LoRASpec with the same targets in every one of its layers can be saved; "
                "make it with LoRASpec.for_model"
            )
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> GeneratorManifest:
        """Raises CheckpointError: not JSON, another version, or a missing or unknown key."""
        try:
            data = json.loads(text)
            version = data.pop("format_version")
            if version != FORMAT_VERSION:
                raise CheckpointError(
                    f"the checkpoint has format version {version}, this library reads {FORMAT_VERSION}; "
                    "update the library, or fetch a checkpoint made for it"
                )
            model = ModelSpec.from_dict(data.pop("model"))
            choice, scale = data.pop("context_choice", None), data.pop("context_scale", None)
            return cls(
                model=model,
                lora=_lora_from_json(data.pop("lora"), model),
                generator=GeneratorConfig.from_dict(data.pop("generator")),
                tasks=tuple(
                    TrainingTask(**{**task, "descriptions": tuple(task["descriptions"])}) for task in data.pop("tasks")
                ),
                context_choice=_context_choice(choice, scale),
                **data,
            )
        except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
            raise CheckpointError(f"{MANIFEST_FILE} is not a valid generator manifest: {error!r}") from error


def _context_choice(choice: dict[str, Any] | None, scale: dict[str, Any] | None) -> ContextChoice | None:
    """The choice of context; `scale` is how earlier manifests have it."""
    if choice is not None:
        return ContextChoice.from_dict(choice)
    return None if scale is None else ContextChoice.of_scales(**scale)


def _lora_from_json(data: dict[str, Any], model: ModelSpec) -> LoRASpec:
    spec = LoRASpec.for_model(
        model, rank=data["rank"], alpha=data["alpha"], targets=data["target_modules"], layers=data["layers"]
    )
    return replace(spec, use_rslora=data.get("use_rslora", False))


def _require_curve(curve: dict[str, Any]) -> None:
    """Check the confidence curve on load, so that no request fails on it."""
    try:
        similarity, confidence = [float(x) for x in curve["similarity"]], [float(y) for y in curve["confidence"]]
        threshold = float(curve["threshold"])
        rising = all(x < y for x, y in pairwise(similarity))
        fits = bool(similarity) and rising and len(similarity) == len(confidence)
        fits = fits and all(0 <= y <= 1 for y in [*confidence, threshold])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the manifest's confidence needs similarity, confidence and threshold: {error!r}"
        ) from error
    if not fits:
        raise CheckpointError(
            "the manifest's confidence needs rising similarities, and a confidence between 0 and 1 for each; "
            "calibrate again"
        )
