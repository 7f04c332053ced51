"""`python -m training COMMAND`: the offline pipeline; `training.cli.commands` has the table of commands."""

from __future__ import annotations

import sys

from llgbm.fitting.memory import keep_freed_memory
from training.cli.command_line import main
from training.cli.commands import COMMANDS

if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main(COMMANDS, sys.argv[1:], program="python -m training"))
