"""The table of commands. Modules are named as text, so that each is imported only when its command is used."""

from __future__ import annotations

from training.cli.command_line import Command


def _command(name: str, summary: str, module: str = "") -> Command:
    return Command(name, summary, f"training.{module or name}:Config", f"training.{module or name}:run")


COMMANDS = (
    _command("tasks", "list or write task files", "tasks.list_tasks"),
    _command("teachers", "train one LoRA for each task", "phases.teachers"),
    _command("deltas", "measure how adapters change the base's hidden states", "phases.deltas"),
    _command("encoder", "tune the text encoder on the wordings of tasks", "recipe.encoder"),
    _command("words", "fit the scorer of the words that answers are likely to have", "recipe.answer_words"),
    _command("fit", "train a generator on tasks; this makes the shipped generator", "recipe.fit"),
    _command("match", "fit a generator to teachers by weights, deltas or both", "phases.match"),
    _command("ablate", "compare losses over seeds, and the cost of guided fits", "phases.ablate"),
    _command("compose", "measure sums of deltas and of adapters", "phases.compose"),
    _command(
        "calibrate", "calibrate a generator's confidence, near to and far from its training data", "recipe.calibrate"
    ),
    _command("evaluate", "fill the quality table", "quality.evaluate"),
    _command("refined", "measure refining on held-out families and kinds, from several starts", "quality.refined"),
    _command("scale", "check gradients, memory and cost on every base, and data-parallel fits", "phases.scale"),
    _command("export", "write a generator from a training state", "recipe.export"),
    _command("refine", "train an adapter on your own examples, from a prompt's adapter on", "recipe.refine"),
    _command("report", "write one page with all figures of a working directory", "report.report"),
    _command("tables", "update the result tables in Markdown documents", "quality.tables"),
    _command("pipeline", "run every command that has a section in a plan", "phases.pipeline"),
    _command("tiny", "run everything on a tiny random base, without a download", "phases.tiny"),
)
