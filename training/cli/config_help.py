"""Help for a configuration class, taken from the docstrings under its fields or its class's `Attributes:` section."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from dataclasses import MISSING, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

from training.cli.config import config_fields
from training.cli.config_values import is_config, type_name

_ATTRIBUTE = re.compile(r"(\w+)(?: \([^)]*\))?: (.*)")
_TEXT_WIDTH = 94
"""Characters of a line of a description, without its indentation."""


def field_docs(cls: type) -> dict[str, str]:
    """The documentation of each field of a dataclass, on one line; undocumented fields are left out."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if is_dataclass(base):
            docs |= _attributes_section(base) | _texts_under_fields(base)
    return {name: docs[name] for name in config_fields(cls) if name in docs}


def config_help(cls: type) -> str:
    """List every value of a configuration: dotted path, type, default and description."""
    return "\n".join(_lines(cls, "", MISSING))


def _lines(cls: type, prefix: str, instance: object) -> list[str]:
    docs, hints, lines = field_docs(cls), get_type_hints(cls), list[str]()
    for name, field in config_fields(cls).items():
        if instance is not MISSING:
            default = getattr(instance, name)
        elif field.default is not MISSING or field.default_factory is MISSING:
            default = field.default
        else:
            default = field.default_factory()
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


def _texts_under_fields(cls: type) -> dict[str, str]:
    body = _class_body(cls)
    docs: dict[str, str] = {}
    for statement, below in pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            docs[statement.target.id] = " ".join(below.value.value.split())
    return docs


def _class_body(cls: type) -> list[ast.stmt]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):  # a class created at run time has no source
        return []
    return next((node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef)), [])


def _attributes_section(cls: type) -> dict[str, str]:
    _, found, section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    docs: dict[str, str] = {}
    name = ""
    for line in section.splitlines() if found else ():
        if line.strip() and not line.startswith(" "):
            break
        start = _ATTRIBUTE.fullmatch(line.strip()) if re.match(r" {4}\w", line) else None
        if start:
            name, docs[start[1]] = start[1], start[2]
        elif name and line.strip():
            docs[name] += " " + line.strip()
    return docs
