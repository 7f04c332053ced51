"""The command line of the pipeline: parsing options, running a command, and showing errors.

    COMMAND [--config FILE]... [NAME=VALUE]... [--show-config] [--debug] [--help]

A command's module is imported only when the command is used.
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

from llgbm.errors import ConfigError, LLGBMError
from training.cli.config import load_config, to_yaml
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

    def load(self, commands: Sequence[Command], files: Sequence[Path] = (), overrides: Sequence[str] = ()) -> Any:
        """The configuration from files and overrides; a file may have sections of the other `commands`.

        Raises:
            ConfigError: see `load_config`.
        """
        sections = {command.name: command.config_class for command in commands}
        return load_config(self.config_class(), files, overrides, section=self.name, other_sections=sections)


@dataclass
class Arguments:
    """Parsed arguments that follow the command's name."""

    files: list[Path] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    show_config: bool = False
    debug: bool = False
    help: bool = False


def main(commands: Sequence[Command], words: Sequence[str], *, program: str) -> int:
    """Run one command.

    Args:
        commands: the table.
        words: the arguments of the command line, without the program's name.
        program: the program's name in the help.

    Returns:
        The exit code: 0 for success, 2 for an `LLGBMError` (one line on stderr), 1 for any other error (with its
        traceback), 130 after Ctrl-C.
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
    """Parse the arguments that follow the command's name.

    Raises:
        ConfigError: an option lacks its value, or an argument is not an option.
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
        elif name == "--config":
            if not equals and not rest:
                raise ConfigError("--config needs a file after it")
            arguments.files.append(Path(value if equals else rest.pop(0)))
        elif word.startswith("-"):
            written = name.lstrip("-").replace("-", "_") or "NAME"
            raise ConfigError(f"{word}: unknown option; a value is written {written}={value or 'VALUE'}, see --help")
        elif equals:
            arguments.overrides.append(word)
        else:
            raise ConfigError(f"{word!r}: expected NAME=VALUE or --config FILE, see --help")
    return arguments


def _run(commands: Sequence[Command], words: Sequence[str], program: str) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview(commands, program))
        return EXIT_OK
    command = find(commands, words[0])
    arguments = parse_words(words[1:])
    if arguments.help:
        print(f"{program} {command.name}: {command.summary}\n\nvalues:\n{config_help(command.config_class())}")
        return EXIT_OK
    config = command.load(commands, arguments.files, arguments.overrides)
    if arguments.show_config:
        print(to_yaml(config), end="")
    else:
        command.run_function()(config)
    return EXIT_OK


def find(commands: Sequence[Command], name: str) -> Command:
    """The command of this name.

    Raises:
        ConfigError: there is none; the message names similar ones.
    """
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
            "  NAME=VALUE         one value, such as steps=100, optimiser.lr=1e-3 or 'tasks=[a, b]'",
            "  --show-config      print all values as YAML and stop",
            "  --debug            show the traceback of an error",
            "  --help             list the values of a command",
            *(f"\nexample: {program} {command.name} --help" for command in commands[:1]),
        ]
    )


def _imported(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)
