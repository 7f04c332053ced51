"""Shapes of bases, adapters and generators: frozen, hashable, to and from JSON.

`ModelSpec` is the shape of a frozen decoder, `LoRASpec` the exact list of modules that an adapter changes, and
`GeneratorConfig` the size of the network that makes adapters. Presets: `qwen2.5-0.5b`, `qwen2.5-1.5b`, `tiny`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, TypeVar

from llgbm.errors import AdapterMismatchError, ConfigError

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_T = TypeVar("_T")
_ATTENTION = frozenset(("q_proj", "k_proj", "v_proj", "o_proj"))


@dataclass(frozen=True)
class ModuleShape:
    """One Linear of the base: dotted name, input size and output size."""

    name: str
    in_features: int
    out_features: int

    @property
    def layer(self) -> int:
        """Index of the decoder layer, read from `model.layers.{i}.`."""
        return int(self.name.split(".")[2])

    @property
    def target(self) -> str:
        """Last part of the name, for example `q_proj`."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class ModelSpec:
    """Shape of a Qwen2-style decoder.

    `base_id` is the hub id that exported adapters name in `base_model_name_or_path`.
    """

    name: str
    base_id: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.hidden_size // self.num_heads

    def module_shape(self, layer: int, target: str) -> ModuleShape:
        """The Linear `target` of decoder layer `layer`.

        Raises:
            ConfigError: `target` is not in `TARGET_MODULES`, or there is no such layer.
        """
        if target not in TARGET_MODULES:
            raise ConfigError(f"unknown target module {target!r}; known are {', '.join(TARGET_MODULES)}")
        if not 0 <= layer < self.num_layers:
            raise ConfigError(f"{self.name} has layers 0 to {self.num_layers - 1}, not {layer}")
        hidden, inner, kv = self.hidden_size, self.intermediate_size, self.num_kv_heads * self.head_dim
        sizes = {
            "q_proj": (hidden, hidden),
            "k_proj": (hidden, kv),
            "v_proj": (hidden, kv),
            "o_proj": (hidden, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }
        block = "self_attn" if target in _ATTENTION else "mlp"
        return ModuleShape(f"model.layers.{layer}.{block}.{target}", *sizes[target])

    @classmethod
    def from_hf_config(cls, config: Any, *, name: str, base_id: str) -> ModelSpec:
        """Read the shape from a transformers `Qwen2Config`."""
        return cls(
            name=name,
            base_id=base_id,
            num_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Inverse of `to_dict`; raises ConfigError for a missing, unknown or impossible value."""
        return _build(cls, data)


@dataclass(frozen=True)
class LoRASpec:
    """Rank, alpha and modules of an adapter, in layer order.

    A module's output gains `scaling * B @ A @ x` (Hu et al. 2021, arXiv 2106.09685), with `scaling = alpha / rank`, or
    `alpha / sqrt(rank)` for rank-stabilised LoRA.
    """

    rank: int
    alpha: float
    modules: tuple[ModuleShape, ...]
    use_rslora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"rank must be at least 1, not {self.rank}")
        if not self.modules:
            raise ConfigError("a LoRASpec must name at least one module")
        if len({m.name for m in self.modules}) != len(self.modules):
            raise ConfigError("a LoRASpec names a module twice")

    @classmethod
    def for_model(
        cls,
        model: ModelSpec,
        *,
        rank: int = 8,
        alpha: float = 16.0,
        targets: Sequence[str] = TARGET_MODULES,
        layers: Sequence[int] | None = None,
    ) -> LoRASpec:
        """The spec that adapts `targets` in every layer of `model`, or in `layers` only."""
        chosen = range(model.num_layers) if layers is None else layers
        return cls(rank, alpha, tuple(model.module_shape(i, t) for i in chosen for t in targets))

    @property
    def scaling(self) -> float:
        """Factor on B @ A @ x."""
        return self.alpha / (self.rank**0.5 if self.use_rslora else self.rank)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Module names, in order."""
        return tuple(m.name for m in self.modules)

    @cached_property
    def target_modules(self) -> tuple[str, ...]:
        """The distinct last name parts, in order of first appearance."""
        return tuple(dict.fromkeys(m.target for m in self.modules))

    @cached_property
    def num_parameters(self) -> int:
        """Number of elements of all A and B."""
        return sum(self.rank * (m.in_features + m.out_features) for m in self.modules)

    def require_fits(self, model: ModelSpec) -> None:
        """Check that every module exists in `model` with the same sizes.

        Raises:
            AdapterMismatchError: names the first module that differs.
        """
        for module in self.modules:
            try:
                expected = model.module_shape(module.layer, module.target)
            except (ConfigError, ValueError, IndexError) as error:
                raise AdapterMismatchError(f"{model.name} has no module {module.name!r}: {error}") from error
            if expected != module:
                raise AdapterMismatchError(
                    f"{module.name} is {module.in_features} -> {module.out_features} in the adapter, "
                    f"but {expected.name} is {expected.in_features} -> {expected.out_features} in {model.name}"
                )

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON; a module as [name, in, out]."""
        return {
            "rank": self.rank,
            "alpha": self.alpha,
            "use_rslora": self.use_rslora,
            "modules": [[m.name, m.in_features, m.out_features] for m in self.modules],
        }


WORD_SLOTS = 2
"""Directions that `AnswerWords` gives: of the tokens that answers begin with, and of those they go on with."""


@dataclass(frozen=True)
class GeneratorConfig:
    """Size of a `LoRAGenerator`."""

    condition_size: int = 384
    """Length of the condition vector; 384 for MiniLM-L6."""
    basis_rank: int = 32
    """Rank R of the bases A0 and B0 that all adapters of one module share."""
    hidden_size: int = 512
    """Width of the trunk."""
    num_blocks: int = 2
    """Residual MLP blocks on the condition, before the layer and target embeddings are added."""
    answer_words: bool = False
    """Whether the condition goes on with the `AnswerWords` of its texts."""

    def __post_init__(self) -> None:
        if not isinstance(self.answer_words, bool):
            raise ConfigError(f"GeneratorConfig.answer_words must be true or false, not {self.answer_words}")
        for field, value in asdict(self).items():
            if value < 1 and field != "answer_words":
                raise ConfigError(f"GeneratorConfig.{field} must be at least 1, not {value}")

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GeneratorConfig:
        """Inverse of `to_dict`; raises ConfigError for a missing, unknown or impossible value."""
        return _build(cls, data)


def _build(cls: type[_T], data: Mapping[str, Any]) -> _T:
    try:
        return cls(**data)
    except TypeError as error:
        raise ConfigError(f"{cls.__name__}: {error}") from error


MODEL_SPECS: Mapping[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec("qwen2.5-0.5b", "Qwen/Qwen2.5-Coder-0.5B-Instruct", 24, 896, 4864, 14, 2),
        ModelSpec("qwen2.5-1.5b", "Qwen/Qwen2.5-Coder-1.5B-Instruct", 28, 1536, 8960, 12, 2),
        ModelSpec("tiny", "llgbm/tiny-random-qwen2", 2, 64, 128, 4, 2),
    )
}

_LORA_DEFAULTS = {"qwen2.5-0.5b": (8, 16.0), "qwen2.5-1.5b": (16, 32.0), "tiny": (4, 8.0)}


def model_spec(name: str) -> ModelSpec:
    """The preset `name`.

    Raises:
        ConfigError: there is no such preset.
    """
    try:
        return MODEL_SPECS[name]
    except KeyError:
        raise ConfigError(f"unknown model preset {name!r}; known are {', '.join(MODEL_SPECS)}") from None


def lora_spec(name: str) -> LoRASpec:
    """The default LoRASpec of preset `name`: all seven projections of every layer."""
    rank, alpha = _LORA_DEFAULTS[model_spec(name).name]
    return LoRASpec.for_model(model_spec(name), rank=rank, alpha=alpha)


def default_lora(model: ModelSpec) -> LoRASpec:
    """The preset's LoRASpec; a base of another shape gets rank 8, alpha 16 on all projections."""
    return lora_spec(model.name) if model.name in MODEL_SPECS else LoRASpec.for_model(model)
