"""Help for a configuration class, taken from the docstrings under its fields or its class's `Attributes:` section."""

from __future__ import annotations

import textwrap
from dataclasses import MISSING, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import docstring_parser

from training.cli.config import config_fields, default_of
from training.cli.config_values import is_config, type_name

_TEXT_WIDTH = 94
"""Characters of a line of a description, without its indentation."""


def field_docs(cls: type) -> dict[str, str]:
    """The documentation of each field of a dataclass, on one line; undocumented fields are left out."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if is_dataclass(base):
            described = docstring_parser.parse_from_object(base).params
            docs |= {param.arg_name: " ".join(param.description.split()) for param in described if param.description}
    return {name: docs[name] for name in config_fields(cls) if name in docs}


def config_help(cls: type) -> str:
    """List every value of a configuration: dotted path, type, default and description."""
    return "\n".join(_lines(cls, "", MISSING))


def _lines(cls: type, prefix: str, instance: object) -> list[str]:
    docs, hints, lines = field_docs(cls), get_type_hints(cls), list[str]()
    for name, field in config_fields(cls).items():
        default = default_of(field) if instance is MISSING else getattr(instance, name)
        path = f"{prefix}{name}"
        text = textwrap.indent(textwrap.fill(docs.get(name, ""), _TEXT_WIDTH), "      ")
        if is_config(hints[name]):
            lines += [text] if text else []
            lines += _lines(hints[name], f"{path}.", default)
            continue
        value = "must be given" if default is MISSING else f"default {_shown(default)}"
        lines += [f"  {path}  ({type_name(hints[name])}; {value})"] + ([text] if text else [])
    return lines


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_shown, value))}]"
    return str(value) if isinstance(value, Path | str) and str(value) else repr(value)
