"""Loads YAML files and dotted overrides into one frozen, nested dataclass. Unknown keys are refused.

The type of the field decides how a value is read, not YAML: `lr: 1e-3` is a number if the field is a float, and
`name: no` is a text if the field is a str. Types: int, float, str, bool, Path, Literal of texts, X | None, tuple, and
dataclasses of these. An override is `optimiser.lr=1e-3`; a list is `tasks=[a, b]` or `tasks=a,b`.

One file may configure several commands. Each command then has a section under its own name. Values under `shared` go
to every command that has such a field:

    shared: {workdir: runs/tiny}
    teachers: {rank: 8}
    fit: {steps: 100, optimiser: {lr: 1e-3}}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_type_hints

import yaml

from llgbm.errors import ConfigError, LLGBMError
from training.cli.config_values import Tree, convert, is_config, merged, parse_override, parse_yaml, read_yaml

T = TypeVar("T")
SHARED = "shared"


def load_config(
    cls: type[T],
    files: Sequence[Path | str] = (),
    overrides: Sequence[str] = (),
    *,
    section: str = "",
    other_sections: Mapping[str, Callable[[], type]] | None = None,
) -> T:
    """Build a configuration from files, then overrides, on top of the defaults of `cls`.

    Args:
        cls: a frozen dataclass; fields without a default must be given.
        files: YAML files; a later one wins, key by key.
        overrides: `dotted.path=value`; a later one wins. A path may start with the section's name.
        section: the name of this class's section in a file.
        other_sections: names of other classes' sections, with functions that return the classes. They are called
            only to check whether a key under `shared` belongs to any class.

    Raises:
        ConfigError: an unknown key (with similar ones), a value of the wrong type, a missing value, or an unreadable
            file. The message has the path of the key, with file and line for a value from a file.
    """
    others = {name: load for name, load in (other_sections or {}).items() if name != section}
    tree: Tree = {}
    for file in files:
        tree = merged(tree, _own_part(read_yaml(Path(file)), cls, section, others))
    for text in overrides:
        tree = merged(tree, _own_part(parse_override(text), cls, section, others, one_of_many=False))
    return cast(T, build(cls, tree, ""))


def build(cls: type, tree: Tree, path: str, default: object = None) -> object:
    """A `cls` with the values of `tree` on top of `default`, or of the defaults of `cls`."""
    known = config_fields(cls)
    hints = get_type_hints(cls)
    for key, node in tree.items():
        if key not in known:
            raise ConfigError(f"{node.where}{_dotted(path, key)}: unknown key{_suggest(key, cls)}")
    values: dict[str, Any] = {}
    for name, field in known.items():
        start = default_of(field) if default is None else getattr(default, name)
        if name in tree:
            values[name] = convert(tree[name], hints[name], _dotted(path, name), start, build)
        elif start is MISSING:
            raise ConfigError(f"{_dotted(path, name)}: has no default and was not given; add {_dotted(path, name)}=...")
    try:
        return cls(**values) if default is None else replace(cast(Any, default), **values)
    except LLGBMError as error:
        raise ConfigError(f"{path}: {error}" if path else str(error)) from error


def config_fields(cls: type) -> dict[str, Field[Any]]:
    """The fields of a dataclass that a configuration may set, by name."""
    return {field.name: field for field in fields(cls) if field.init}


def config_paths(cls: type, prefix: str = "") -> list[str]:
    """The dotted path of every value in a dataclass, nested ones too, in order."""
    paths: list[str] = []
    hints = get_type_hints(cls)
    for name in config_fields(cls):
        path = _dotted(prefix, name)
        paths.extend(config_paths(hints[name], path) if is_config(hints[name]) else [path])
    return paths


def to_dict(config: object) -> dict[str, Any]:
    """The full configuration as JSON types: paths become texts, tuples become lists."""
    return cast(dict[str, Any], _plain(config))


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """The inverse of `to_dict`, for example for a configuration that a manifest recorded.

    Raises:
        ConfigError: an unknown key or a value of the wrong type, for example in a record of another version.
    """
    return cast(T, build(cls, parse_yaml(yaml.safe_dump(dict(values))), ""))


def to_yaml(config: object) -> str:
    """The full configuration as a YAML file that `load_config` reads back to an equal one."""
    return str(yaml.safe_dump(to_dict(config), sort_keys=False, width=100))


def config_digest(config: object) -> str:
    """The first 16 hex digits of the sha256 of a configuration; equal for equal values, on every machine."""
    return json_digest(to_dict(config))


def json_digest(value: object) -> str:
    """The first 16 hex digits of the sha256 of a JSON value."""
    text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _own_part(
    tree: Tree, cls: type, section: str, others: Mapping[str, Callable[[], type]], *, one_of_many: bool = True
) -> Tree:
    """The entries of a file or an override that are for `cls`; entries of its own section win."""
    known = config_fields(cls)
    hints = get_type_hints(cls)
    own: Tree = {}
    shared: Tree = {}
    named: Tree = {}
    for key, node in tree.items():
        is_section = key in (section, SHARED, *others) and key != ""
        if not is_section or (key in known and (_holds_keys(hints[key]) or not isinstance(node.content, dict))):
            own[key] = node
        elif key == section:
            named = node.mapping(key)
        elif not one_of_many:
            raise ConfigError(f"{key}: belongs to another command than {section or cls.__name__}")
        elif key == SHARED:
            shared = node.mapping(SHARED)
    for key, node in shared.items():
        if key not in known and not any(key in config_fields(load()) for load in others.values()):
            raise ConfigError(f"{node.where}{SHARED}.{key}: unknown key{_suggest(key, cls)}")
    shared = {key: node for key, node in shared.items() if key in known}
    return merged(merged(shared, own), named)


def _holds_keys(hint: Any) -> bool:
    """Whether a field accepts a mapping. Only then may a mapping under a section's name be this field."""
    return any(map(is_config, (hint, *get_args(hint))))


def _suggest(key: str, cls: type) -> str:
    paths = config_paths(cls)
    names = {path.rpartition(".")[2]: path for path in reversed(paths)}
    close = get_close_matches(key, [*config_fields(cls), *names], n=3)
    if close:
        return f"; did you mean {' or '.join(dict.fromkeys(names.get(name, name) for name in close))}?"
    return f"; {cls.__name__} has {', '.join(config_fields(cls)) or 'no values to set'}"


def default_of(field: Field[Any]) -> Any:
    """The default of a field; MISSING without one."""
    if field.default is not MISSING:
        return field.default
    return MISSING if field.default_factory is MISSING else field.default_factory()


def _dotted(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(getattr(value, name)) for name in config_fields(type(value))}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _canonical(value: object) -> object:
    """Give whole numbers one form, so that 2 and 2.0 have the same digest."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
