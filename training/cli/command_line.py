"""The command line of the pipeline: a table of commands, their options, and how errors are shown.

    COMMAND [--config FILE]... [NAME=VALUE]... [--set NAME=VALUE]... [--some-name VALUE...]
            [--show-config] [--debug] [--help]

`--some-name a b` is `some_name=[a, b]`, and `--lora-rank 8` also finds a nested `lora.rank`. A flag without a
value means true. A command's module is imported only when the command is used.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from llgbm.errors import ConfigError, LLGBMError
from training.cli.config import config_paths, load_config, to_yaml
from training.cli.config_help import config_help

EXIT_OK, EXIT_FAILED, EXIT_REFUSED, EXIT_INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Command:
    """One entry of the table.

    Attributes:
        name: what the user types.
        summary: one line for the help.
        config: `module:Class`, a frozen dataclass.
        run: `module:function`, called with an instance of it.
    """

    name: str
    summary: str
    config: str
    run: str

    def config_class(self) -> type[Any]:
        """The configuration's class, imported now."""
        return _imported(self.config)  # type: ignore[no-any-return]

    def run_function(self) -> Callable[[Any], None]:
        """The function that does the work, imported now."""
        return _imported(self.run)  # type: ignore[no-any-return]


@dataclass
class Arguments:
    """What the words after the command's name say."""

    files: list[Path] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    flags: list[tuple[str, list[str]]] = field(default_factory=list)
    show_config: bool = False
    debug: bool = False
    help: bool = False


def main(commands: Sequence[Command], words: Sequence[str], *, program: str) -> int:
    """Run one command.

    Args:
        commands: the table.
        words: the words of the command line, without the program's name.
        program: how the program is called, for the help.

    Returns:
        The exit code: 0 for success, 2 for what an `LLGBMError` explains (one line on stderr), 1 for any
        other error (with its traceback), 130 after Ctrl-C.
    """
    debug = "--debug" in words
    try:
        return _run(commands, words, program)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except LLGBMError as error:
        if debug:
            traceback.print_exc()
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_REFUSED
    except Exception:
        traceback.print_exc()
        return EXIT_FAILED


def parse_words(words: Sequence[str]) -> Arguments:
    """Sort the words after the command's name.

    Raises:
        ConfigError: an option without its value, or a word that is no option.
    """
    arguments = Arguments()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word in ("-h", "--help"):
            arguments.help = True
        elif word in ("--debug", "--show-config"):
            setattr(arguments, word.strip("-").replace("-", "_"), True)
        elif name in ("--config", "--set"):
            if not equals:
                if not rest:
                    raise ConfigError(f"{name} needs {'a file' if name == '--config' else 'NAME=VALUE'} after it")
                value = rest.pop(0)
            if name == "--config":
                arguments.files.append(Path(value))
            else:
                arguments.overrides.append(value)
        elif word.startswith("--") and name != "--":
            values = [value] if equals else []
            while not equals and rest and _is_value(rest[0]):
                values.append(rest.pop(0))
            arguments.flags.append((name[2:], values))
        elif equals:
            arguments.overrides.append(word)
        else:
            raise ConfigError(f"{word!r}: expected NAME=VALUE or an option that starts with --")
    return arguments


def flag_override(name: str, values: Sequence[str], paths: Sequence[str]) -> str:
    """The override that a flag stands for.

    Args:
        name: the flag without its dashes at the front.
        values: the words after it.
        paths: the dotted paths that the configuration has.

    Raises:
        ConfigError: no path is written like that, or several are.
    """
    found = [path for path in paths if path == name.replace("-", "_")]
    found = found or [path for path in paths if _flat(path) == _flat(name)]
    if len(found) > 1:
        raise ConfigError(f"--{name} could mean {' or '.join(found)}; write NAME=VALUE instead")
    if not found:
        flags = {"--" + path.replace("_", "-"): path for path in paths}
        close = get_close_matches(f"--{name}", flags, n=3)
        raise ConfigError(
            f"--{name}: unknown option; " + (f"did you mean {' or '.join(close)}?" if close else "see --help")
        )
    if len(values) < 2:
        return f"{found[0]}={values[0] if values else 'true'}"
    return f"{found[0]}=[{', '.join(map(_quoted, values))}]"


def _run(commands: Sequence[Command], words: Sequence[str], program: str) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview(commands, program))
        return EXIT_OK
    command = _find(commands, words[0])
    arguments = parse_words(words[1:])
    config_class = command.config_class()
    if arguments.help:
        print(f"{program} {command.name}: {command.summary}\n\nvalues:\n{config_help(config_class)}")
        return EXIT_OK
    paths = config_paths(config_class)
    overrides = arguments.overrides + [flag_override(name, values, paths) for name, values in arguments.flags]
    config = load_config(
        config_class,
        arguments.files,
        overrides,
        section=command.name,
        other_sections={other.name: other.config_class for other in commands if other is not command},
    )
    if arguments.show_config:
        print(to_yaml(config), end="")
    else:
        command.run_function()(config)
    return EXIT_OK


def _find(commands: Sequence[Command], name: str) -> Command:
    known = {command.name: command for command in commands}
    if name not in known:
        close = get_close_matches(name, known, n=2)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"
        raise ConfigError(f"no command {name!r}; {hint}")
    return known[name]


def _overview(commands: Sequence[Command], program: str) -> str:
    width = max((len(command.name) for command in commands), default=0)
    lines = [f"  {command.name:<{width}}  {command.summary}" for command in commands]
    return "\n".join(
        [
            f"usage: {program} COMMAND [--config FILE] [NAME=VALUE ...]",
            "",
            "commands:",
            *lines,
            "",
            "options of every command:",
            "  --config FILE      values from a YAML file; may be given several times, the later one wins",
            "  NAME=VALUE         one value, such as steps=100 or optimiser.lr=1e-3; also --set NAME=VALUE",
            "  --name VALUE ...   the same with the name as a flag; several values make a list",
            "  --show-config      print all values as YAML and stop",
            "  --debug            show the traceback of an error",
            "  --help             the values that a command has",
        ]
    )


def _imported(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def _is_value(word: str) -> bool:
    if word.startswith("-"):
        return word[1:2].isdigit() or word[1:2] == "."
    return not word.partition("=")[0].replace(".", "_").isidentifier() or "=" not in word


def _flat(path: str) -> str:
    return path.replace("-", "_").replace(".", "_")


def _quoted(value: str) -> str:
    """As a YAML scalar that is a text where it must be, and can still be a number."""
    plain = value and all(c.isalnum() or c in "_+-." for c in value)
    return value if plain else yaml.safe_dump(value, default_style='"', width=10**9).strip()
