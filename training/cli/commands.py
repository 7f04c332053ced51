"""The table of commands. It names modules as text, so that one is imported only when its command is used."""

from __future__ import annotations

from training.cli.command_line import Command


def _command(name: str, summary: str, module: str = "") -> Command:
    return Command(name, summary, f"training.{module or name}:Config", f"training.{module or name}:run")


COMMANDS = (
    _command("tasks", "list task files, or make them", "tasks.list_tasks"),
    _command("teachers", "train one LoRA for each task", "phases.teachers"),
    _command("deltas", "measure what adapters do to the base's hidden states", "phases.deltas"),
    _command("fit", "train a generator on tasks; this is what is shipped", "recipe.fit"),
    _command("cores", "train, for each task, the best adapter within a generator's reach", "recipe.cores"),
    _command("amortise", "teach a generator those adapters, without a pass through the base", "recipe.amortise"),
    _command("match", "fit a generator to teachers by weights, deltas or both", "phases.match"),
    _command("ablate", "compare kinds of loss over seeds, and what guided fits save", "phases.ablate"),
    _command("compose", "add deltas and adapters, and see what they do", "phases.compose"),
    _command(
        "calibrate", "give a generator its confidence, near and far from what it was trained on", "recipe.calibrate"
    ),
    _command("evaluate", "fill the quality table", "quality.evaluate"),
    _command("scale", "check gradients, memory and cost on every base, and data-parallel fits", "phases.scale"),
    _command("export", "write an adapter from a prompt, or a generator from a state", "recipe.export"),
    _command("report", "write one page with all figures of a working directory", "report.report"),
    _command("tables", "put the numbers of results into Markdown documents", "quality.tables"),
    _command("pipeline", "run all commands that a plan has a section for", "phases.pipeline"),
    _command("tiny", "run everything on a tiny random base, without a download", "phases.tiny"),
)
