"""`python -m training COMMAND`: the table of commands of the offline pipeline."""

from __future__ import annotations

import sys

from training.command_line import Command, main
from training.memory import keep_freed_memory


def _command(name: str, summary: str, module: str = "") -> Command:
    return Command(name, summary, f"training.{module or name}:Config", f"training.{module or name}:run")


COMMANDS = (
    _command("tasks", "list task files, or make them", "list_tasks"),
    _command("teachers", "train one LoRA for each task"),
    _command("deltas", "measure what adapters do to the base's hidden states"),
    _command("fit", "train a generator on tasks; this is what is shipped"),
    _command("cores", "train, for each task, the best adapter within a generator's reach"),
    _command("amortise", "teach a generator those adapters, without a pass through the base"),
    _command("match", "fit a generator to teachers by weights, deltas or both"),
    _command("ablate", "compare kinds of loss over seeds, and what guided fits save"),
    _command("compose", "add deltas and adapters, and see what they do"),
    _command("calibrate", "give a generator its confidence, near and far from what it was trained on"),
    _command("evaluate", "fill the quality table"),
    _command("scale", "check gradients, memory and cost on every base, and data-parallel fits"),
    _command("export", "write an adapter from a prompt, or a generator from a state"),
    _command("report", "write one page with all figures of a working directory"),
    _command("tables", "put the numbers of results into Markdown documents"),
    _command("pipeline", "run all commands that a plan has a section for"),
    _command("tiny", "run everything on a tiny random base, without a download"),
)

if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main(COMMANDS, sys.argv[1:], program="python -m training"))
