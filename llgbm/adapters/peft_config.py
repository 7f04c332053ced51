"""LoRASpec <-> PEFT's `adapter_config.json`: which options are written, read, ignored and refused.

Only plain LoRA on a decoder's projections is read: `scaling * B @ A` on the names of `TARGET_MODULES`. Options that
change the numbers in another way (DoRA, biases, rank patterns, replaced modules, ...) are refused. An unknown option
that is set is refused too, not ignored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llgbm.adapters.peft_files import refuse_other_kinds
from llgbm.config import MODEL_SPECS, TARGET_MODULES, LoRASpec
from llgbm.errors import AdapterFormatError

_LAYERS_PATTERN = "layers"
_MODULE_NAME = re.compile(r"model\.layers\.(0|[1-9]\d{0,3})\.(self_attn|mlp)\.(\w+)", re.ASCII)
_ATTENTION = frozenset(("q_proj", "k_proj", "v_proj", "o_proj"))

_READ = frozenset(
    (
        "base_model_name_or_path",
        "exclude_modules",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "peft_type",
        "r",
        "target_modules",
        "task_type",
        "use_rslora",
    )
)
_WITHOUT_EFFECT = frozenset(
    (
        "auto_mapping",
        # corda, eva, loftq and lora_ga initialise a training: see _PLAIN_STARTS
        "corda_config",
        "eva_config",
        "inference_mode",
        "loftq_config",
        "lora_dropout",  # off outside of training
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
    )
)
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base unchanged; PiSSA, OLoRA, CorDA and LoftQ change it."""

_LAYERS_OF_BASE = {model.base_id: model.num_layers for model in MODEL_SPECS.values()}


@dataclass(frozen=True)
class PeftConfig:
    """The supported content of an `adapter_config.json`.

    Attributes:
        base_id: `base_model_name_or_path`.
        targets: `target_modules` as a list of names or name suffixes; None for a pattern.
        excluded: `exclude_modules` in the same form.
        layers: `layers_to_transform`; None for all.
    """

    base_id: str
    rank: int
    alpha: float
    use_rslora: bool
    targets: tuple[str, ...] | None
    excluded: tuple[str, ...] | None
    layers: frozenset[int] | None


def adapter_config(spec: LoRASpec, base_id: str) -> dict[str, Any]:
    """The content of `adapter_config.json` for adapters of `spec` on the base `base_id`.

    The layers are listed unless the adapter changes every layer of a base known here, so that PEFT adds modules to no
    other layer.
    """
    layers = tuple(dict.fromkeys(m.layer for m in spec.modules))
    full = {(layer, target) for layer in layers for target in spec.target_modules}
    if {(m.layer, m.target) for m in spec.modules} == full:
        all_of_base = layers == tuple(range(_LAYERS_OF_BASE.get(base_id, 0)))
        targets, listed = spec.target_modules, None if all_of_base else list(layers)
    else:
        targets, listed = spec.names, None
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": base_id,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None if listed is None else _LAYERS_PATTERN,
        "layers_to_transform": listed,
        "lora_alpha": int(spec.alpha) if float(spec.alpha).is_integer() else spec.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": spec.rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": list(targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": spec.use_rslora,
    }


def config_bytes(config: Mapping[str, Any]) -> bytes:
    """The bytes of the file as PEFT writes it: sorted keys, two spaces of indentation."""
    return json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"


def parse_config_bytes(data: bytes) -> dict[str, Any]:
    """Read the bytes of an `adapter_config.json`.

    Raises:
        AdapterFormatError: not a JSON object.
    """
    refuse_other_kinds(data, "adapter_config.json")
    try:
        config = json.loads(data)  # UTF-8, -16 or -32, with a byte order mark or without, as editors leave it
    except (ValueError, RecursionError) as error:
        raise AdapterFormatError(f"adapter_config.json is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise AdapterFormatError(f"adapter_config.json must hold an object, not a {type(config).__name__}")
    return config


def read_config(config: Mapping[str, Any]) -> PeftConfig:
    """Check the options of an adapter.

    Raises:
        AdapterFormatError: an option is missing, has the wrong type, or changes an adapter's numbers in an
            unsupported way.
    """
    _refuse_unsupported(config)
    rank, alpha = config.get("r"), _finite_number(config.get("lora_alpha"))
    if type(rank) is not int or rank < 1:
        raise AdapterFormatError(f"r must be a whole number of at least 1, not {rank!r}")
    if alpha is None:
        raise AdapterFormatError(f"lora_alpha must be a finite number, not {config.get('lora_alpha')!r}")
    use_rslora = config.get("use_rslora", False)
    if not isinstance(use_rslora, bool):
        raise AdapterFormatError(f"use_rslora must be true or false, not {use_rslora!r}")
    base_id = config.get("base_model_name_or_path")
    if not isinstance(base_id, str) or not base_id:
        raise AdapterFormatError(f"base_model_name_or_path must name the base that the adapter is for, not {base_id!r}")
    targets = _read_names(config, "target_modules")
    if targets == ():
        raise AdapterFormatError(f"target_modules must be a list of names, not {config.get('target_modules')!r}")
    return PeftConfig(
        base_id=base_id,
        rank=rank,
        alpha=alpha,
        use_rslora=use_rslora,
        targets=targets,
        excluded=_read_names(config, "exclude_modules"),
        layers=_read_layers(config),
    )


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise AdapterFormatError(f"peft_type must be 'LORA', not {config.get('peft_type')!r}")
    if config.get("task_type") not in ("CAUSAL_LM", None):
        raise AdapterFormatError(f"task_type must be 'CAUSAL_LM', not {config['task_type']!r}")
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        raise AdapterFormatError(
            f"init_lora_weights is {config['init_lora_weights']!r}: such an adapter needs a changed base; "
            "convert it to plain LoRA with PEFT's path_initial_model_for_weight_conversion"
        )
    for option, value in config.items():
        if option in _READ or option in _WITHOUT_EFFECT:
            continue
        if value not in (None, False, 0, "", "none", [], {}):
            raise AdapterFormatError(
                f"the adapter uses {option} = {value!r}, which is not supported; only plain LoRA is"
            )


def _read_names(config: Mapping[str, Any], option: str) -> tuple[str, ...] | None:
    """A list of names or name suffixes; None for a pattern. Patterns are not run: some take hours on a short name."""
    names = config.get(option)
    if isinstance(names, str) and names:
        return None
    if names and not _is_list_of(names, str):
        raise AdapterFormatError(f"{option} must be a list of names, not {names!r}")
    return tuple(names or ())


def _read_layers(config: Mapping[str, Any]) -> frozenset[int] | None:
    layers, pattern = config.get("layers_to_transform"), config.get("layers_pattern")
    if layers is None:
        return None
    layers = [layers] if type(layers) is int else layers
    if not _is_list_of(layers, int) or not layers or min(layers) < 0:
        raise AdapterFormatError(f"layers_to_transform must list layer numbers, not {layers!r}")
    if pattern not in (None, _LAYERS_PATTERN, [_LAYERS_PATTERN]):
        raise AdapterFormatError(f"layers_pattern must be {_LAYERS_PATTERN!r}, not {pattern!r}")
    return frozenset(layers)


def _finite_number(value: Any) -> float | None:
    if type(value) not in (int, float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


def module_order(name: str) -> tuple[int, int] | None:
    """Sort key of a projection in a LoRASpec: (layer, position in TARGET_MODULES). None for other names."""
    match = _MODULE_NAME.fullmatch(name)
    if match is None or match[3] not in TARGET_MODULES:
        return None
    if (match[2] == "self_attn") != (match[3] in _ATTENTION):
        return None
    return int(match[1]), TARGET_MODULES.index(match[3])


def require_coverage(config: PeftConfig, names: Iterable[str]) -> None:
    """Check that the modules with tensors are exactly those of the options.

    As in PEFT, a listed name stands for all modules with that name or with that suffix after a dot. A pattern in
    `target_modules` accepts all modules; a pattern in `exclude_modules` accepts all gaps.

    An adapter does not record its base's number of layers. Without `layers_to_transform`, and for an unknown base,
    layers must start at 0 and have no gap.

    Raises:
        AdapterFormatError: names a missing or an extra module.
    """
    if config.targets is None:
        return
    present, targets, excluded = set(names), set(config.targets), set(config.excluded or ())
    highest = max(_layer(name) for name in present)
    announced, matched = set[str](), set[str]()
    for layer in config.layers or range(_LAYERS_OF_BASE.get(config.base_id, 1 + highest)):
        for target in TARGET_MODULES:
            ends = _name_ends(layer, target)
            matched |= targets & ends
            if targets & ends and not excluded & ends:
                announced.add(max(ends, key=len))
    missing = set[str]() if config.excluded is None else announced - present | targets - matched - excluded
    extra = sorted(present - announced)
    if missing or extra:
        raise AdapterFormatError(
            f"the tensors do not cover the modules that adapter_config.json names: missing "
            f"{sorted(missing)[:3]} ({len(missing)} in all), extra {extra[:3]} ({len(extra)} in all)"
        )


def _name_ends(layer: int, target: str) -> set[str]:
    """The names of a projection in a list: its full name, and every suffix of it after a dot."""
    parts = f"model.layers.{layer}.{'self_attn' if target in _ATTENTION else 'mlp'}.{target}".split(".")
    return {".".join(parts[place:]) for place in range(len(parts))}


def _layer(name: str) -> int:
    return int(name.split(".")[2])
