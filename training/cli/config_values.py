"""Parses YAML into a tree with line numbers, and converts each leaf to the type of its field.

Scalars stay text until the type of the field is known. A quoted scalar is always a text.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from dataclasses import MISSING, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeGuard, Union, get_args, get_origin

import yaml

from llgbm.errors import ConfigError

Content: TypeAlias = "str | list[Node] | dict[str, Node]"
Tree: TypeAlias = "dict[str, Node]"
Builder: TypeAlias = Callable[[type, "Tree", str, object], object]

_NONE = ("", "~", "null", "none")
_INT = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
_FLOAT = re.compile(r"[+-]?([0-9]+(_[0-9]+)*\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?\.?inf")
_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*")


@dataclass(frozen=True)
class Node:
    """A scalar as text, a list or a mapping, with its position `file:line: ` (or an empty text)."""

    content: Content
    where: str = ""
    quoted: bool = False
    bare: bool = False
    """A scalar of an override: it is split at commas if a list is expected."""

    def mapping(self, path: str) -> Tree:
        """The entries; an empty scalar is an empty mapping.

        Raises:
            ConfigError: the node is not a mapping.
        """
        if isinstance(self.content, dict):
            return self.content
        if self.content == "" and not self.quoted:
            return {}
        raise ConfigError(f"{self.where}{path}: expected a mapping of keys to values, got {self.shown()}")

    def shown(self) -> str:
        """The content for an error message, shortened to fit a line."""
        if isinstance(self.content, str):
            return f"{self.content[:60]!r}" + (" in quotes" if self.quoted else "")
        return f"a list of {len(self.content)}" if isinstance(self.content, list) else "a mapping"


def read_yaml(path: Path) -> Tree:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML, is not a mapping, or has a duplicate key.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; name a YAML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from error


def parse_yaml(text: str, file: str = "") -> Tree:
    """The mapping in a YAML text; `file` is named in errors.

    Raises:
        ConfigError: the text is not YAML, is not a mapping, or has a duplicate key.
    """
    try:
        document = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: is not YAML: {' '.join(str(error).split())}") from error
    return {} if document is None else _node(document, file).mapping("the file")


def parse_override(text: str) -> Tree:
    """The tree of one `dotted.path=value`.

    Raises:
        ConfigError: there is no `=`, the path is invalid, or a bracketed value is not YAML.
    """
    path, equals, value = text.partition("=")
    if not equals or not _KEY.fullmatch(path):
        raise ConfigError(f"{text!r}: expected name=value, such as steps=100 or optimiser.lr=1e-3")
    node = Node(value, bare=True)
    if value[:1] in ("[", "{", "'", '"'):
        try:
            node = _node(yaml.compose(value, Loader=yaml.SafeLoader), "")
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: {value!r} is not YAML: {' '.join(str(error).split())}") from error
    for key in reversed(path.split(".")):
        node = Node({key: node})
    return node.mapping(path)


def merged(below: Tree, above: Tree) -> Tree:
    """Merge two trees. If both have a key, mappings are merged and other values come from `above`."""
    result = dict(below)
    for key, node in above.items():
        old = result.get(key)
        if old is not None and isinstance(old.content, dict) and isinstance(node.content, dict):
            node = Node(merged(old.content, node.content), node.where)
        result[key] = node
    return result


def is_config(hint: object) -> TypeGuard[type]:
    """Whether a type is a dataclass, whose fields are configured one by one."""
    return isinstance(hint, type) and is_dataclass(hint)


def convert(node: Node, hint: Any, path: str, default: object, build: Builder) -> Any:
    """The value of a node as the type `hint`.

    Args:
        node: the given value.
        hint: the field's type.
        path: the dotted name of the field, for error messages.
        default: the field's default, which a nested dataclass starts from; MISSING without one.
        build: builds a dataclass from its type, tree, path and default.

    Raises:
        ConfigError: the value does not have the type.
        TypeError: a configuration cannot hold this type; the dataclass must be changed.
    """
    if type(None) in get_args(hint):
        if not node.quoted and isinstance(node.content, str) and node.content.lower() in _NONE:
            return None
        (hint,) = (kind for kind in get_args(hint) if kind is not type(None))
    if is_config(hint):
        return build(hint, node.mapping(path), path, default if isinstance(default, hint) else None)
    if get_origin(hint) is tuple:
        kinds, items = get_args(hint), _items(node, hint, path)
        if kinds[-1] is ...:
            kinds = kinds[:1] * len(items)
        if len(items) != len(kinds):
            raise _wrong(node, hint, path)
        pairs = enumerate(zip(items, kinds, strict=True))
        return tuple(convert(item, kind, f"{path}[{i}]", MISSING, build) for i, (item, kind) in pairs)
    return _convert_scalar(node, hint, path)


def type_name(hint: Any) -> str:
    """A readable name of a type: `int or none`, `one of adamw, sgd`, `list of str`."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(arg) for arg in args)
    if origin is Literal:
        return "one of " + ", ".join(str(arg) for arg in args)
    if origin is tuple:
        many = args[-1] is ...
        return f"list of {type_name(args[0])}" if many else f"list of {len(args)}: {', '.join(map(type_name, args))}"
    if hint is type(None):
        return "none"
    return "path" if hint is Path else str(getattr(hint, "__name__", hint))


def _convert_scalar(node: Node, hint: Any, path: str) -> Any:
    text = node.content
    if not isinstance(text, str):
        raise _wrong(node, hint, path)
    if get_origin(hint) is Literal:
        if text not in get_args(hint):
            raise _wrong(node, hint, path)
        return text
    if hint is str:
        return text
    if hint is Path:
        return Path(text).expanduser()
    if not node.quoted:
        if hint is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if hint is int and _INT.fullmatch(text):
            return int(text)
        if hint is float and _FLOAT.fullmatch(text):
            return float(text.replace(".inf", "inf"))
    if hint in (bool, int, float):
        raise _wrong(node, hint, path)
    raise TypeError(f"{path}: a configuration cannot hold the type {hint}")


def _items(node: Node, hint: Any, path: str) -> list[Node]:
    if isinstance(node.content, list):
        return node.content
    if node.bare and isinstance(node.content, str):
        return [Node(part.strip(), bare=True) for part in node.content.split(",")] if node.content else []
    raise _wrong(node, hint, path)


def _wrong(node: Node, hint: Any, path: str) -> ConfigError:
    name = "true or false" if hint is bool else type_name(hint)
    return ConfigError(f"{node.where}{path}: expected {name}, got {node.shown()}")


def _node(node: yaml.Node | None, file: str) -> Node:
    if node is None:
        return Node("")
    where = f"{file}:{node.start_mark.line + 1}: " if file else ""
    if isinstance(node, yaml.ScalarNode):
        return Node(node.value, where, quoted=node.style is not None)
    if isinstance(node, yaml.SequenceNode):
        return Node([_node(item, file) for item in node.value], where)
    entries: dict[str, Node] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{where}a key must be a plain text")
        if key.value in entries:
            raise ConfigError(f"{where}{key.value}: duplicate key")
        entries[key.value] = _node(value, file)
    return Node(entries, where)
