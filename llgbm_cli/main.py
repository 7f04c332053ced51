"""The commands of `llgbm`. Each imports its work when it runs, so that `--help` answers at once.

Exit codes: 0 for success, 1 for a fault of the machine or of this program, 2 for input that is refused, 130 after
Ctrl-C. An error is one sentence on stderr; `llgbm --debug COMMAND` shows its traceback.
"""

from __future__ import annotations

import json
import sys
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from llgbm.conditioning.context_choice import ContextWanted
from llgbm.errors import ConfigError, LLGBMError

EXIT_FAILED, EXIT_REFUSED = 1, 2

app = typer.Typer(
    name="llgbm",
    help="Turns a sentence that describes a task into a LoRA adapter for a frozen Qwen2.5.",
    epilog='Start with: llgbm chat "Translate the English word to French."',
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


Prompt = Annotated[str, typer.Argument(help="The task in plain words.", show_default=False)]
Examples = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help='Examples of the task: .txt with lines "INPUT => OUTPUT", .csv or .tsv with two columns, .json or .jsonl '
        'with {"input": ..., "output": ...}.',
        show_default=False,
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        envvar="LLGBM_CHECKPOINT", metavar="FOLDER", help="The generator; by default the one that comes with LLGBM."
    ),
]
TextEncoder = Annotated[
    str | None,
    typer.Option(envvar="LLGBM_TEXT_ENCODER", metavar="NAME", help="Hub id or folder; by default the generator's own."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    """Take the options that stand before a command; `main` looks for --debug itself."""


@app.command(epilog="Example: llgbm serve --port 8080")
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; LLGBM_HOST, else 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; LLGBM_PORT, else 8000.")] = None,
) -> None:
    """Serve adapters and chat over HTTP, with a playground. Settings come from the variables LLGBM_*."""
    from service.__main__ import serve as run_service

    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    raise typer.Exit(run_service(**given))


@app.command(
    epilog='Examples: llgbm generate "Write the plural of the noun." --out plural; '
    'llgbm generate "Route the ticket." --examples tickets.txt --out router --json'
)
def generate(
    prompt: Prompt,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="PEFT folder to write.", show_default=False)],
    examples: Examples = None,
    scale: Annotated[float, typer.Option(help="Factor on the adapter's effect.")] = 1.0,
    checkpoint: Checkpoint = None,
    text_encoder: TextEncoder = None,
    as_json: AsJson = False,
) -> None:
    """Write an adapter for a task as a PEFT folder, without a server. Of the base only the vocabulary is read."""
    from llgbm.adapters.peft_io import require_replaceable, save_peft
    from llgbm.prompting import AdapterRequest
    from llgbm.refining.example_file import read_pairs
    from llgbm_cli.inputs import load_maker

    request = AdapterRequest((prompt,), read_pairs(examples) if examples else (), scale)
    folder = out.expanduser().resolve()
    require_replaceable(folder)
    maker = load_maker(checkpoint, text_encoder)
    (made,) = maker.make([request])
    save_peft(made.weights, folder, base_id=maker.checkpoint.manifest.base_id)
    if as_json:
        report: dict[str, Any] = {
            "id": made.id,
            "folder": str(out),
            "rank": made.weights.spec.rank,
            "alpha": made.weights.spec.alpha,
            "nearest_tasks": [{"task_id": name, "similarity": round(cosine, 4)} for name, cosine in made.nearest],
            "confidence": made.confidence,
            "scale_in_context": made.scale_in_context,
            "warning": made.warning,
        }
        typer.echo(json.dumps(report, ensure_ascii=False))
        return
    typer.echo(f"{out}: adapter {made.id}" + ("" if made.confidence is None else f", confidence {made.confidence:.2f}"))
    if made.warning:
        typer.echo(f"warning: {made.warning}", err=True)


@app.command(
    epilog='Examples: llgbm chat "Translate the English word to French."; '
    'echo "I was charged twice." | llgbm chat "Classify the ticket: billing, technical or shipping." --once'
)
def chat(
    prompt: Prompt,
    examples: Examples = None,
    once: Annotated[bool, typer.Option("--once", help="Answer the whole of the standard input, and stop.")] = False,
    context: Annotated[
        ContextWanted,
        typer.Option(
            help="What the model reads before your turns: nothing, the description, examples too, or the best by "
            "calibration."
        ),
    ] = "auto",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0 takes the likeliest token.")] = 0.0,
    checkpoint: Checkpoint = None,
    base: Annotated[
        str | None,
        typer.Option(envvar="LLGBM_BASE", metavar="NAME", help="Hub id or folder; by default the generator's own."),
    ] = None,
    storage: Annotated[
        Literal["auto", "int8", "bfloat16", "float32"],
        typer.Option(envvar="LLGBM_BASE_STORAGE", help="How the base's weights are kept."),
    ] = "auto",
    text_encoder: TextEncoder = None,
    as_json: AsJson = False,
) -> None:
    """Chat with the adapter of a task, in this process. A line is a turn; Ctrl-D ends."""
    from llgbm.decoding.sampling import SamplingParams
    from llgbm.refining.example_file import read_pairs
    from llgbm_cli.chat import converse, open_conversation

    conversation = open_conversation(
        prompt,
        read_pairs(examples) if examples else (),
        context=context,
        params=SamplingParams(max_tokens=max_tokens, temperature=temperature),
        checkpoint=checkpoint,
        base=base,
        storage=storage,
        text_encoder=text_encoder,
    )
    converse(conversation, once=once, as_json=as_json)


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
)
def train(context: typer.Context) -> None:
    """Train a generator of your own: all that follows goes to `python -m training`."""
    if find_spec("training") is None:
        raise ConfigError("there is no pipeline here, as in the service's image; train with a clone or a wheel")
    from llgbm.fitting.memory import keep_freed_memory
    from training.cli.command_line import main as run_training
    from training.cli.commands import COMMANDS

    keep_freed_memory()
    raise typer.Exit(run_training(COMMANDS, context.args, program="llgbm train"))


def main() -> None:
    """Run one command and end the process with its exit code."""
    try:
        app(prog_name="llgbm")
    except (LLGBMError, UnicodeDecodeError) as error:
        _end(error, EXIT_REFUSED)
    except OSError as error:
        _end(error, EXIT_FAILED)
    except Exception as error:
        _end(error, EXIT_FAILED, f"unexpected {type(error).__name__}: ")


def _end(error: Exception, code: int, before: str = "") -> None:
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    typer.echo(f"llgbm: {before}{' '.join(str(error).split())}", err=True)
    raise SystemExit(code)
