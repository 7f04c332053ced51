"""`llgbm chat`: a conversation with the base and one adapter in this process, streamed to standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import typer

from llgbm.base import INT8_FOLDER, Base, load_base
from llgbm.chat import in_context, prompt_ids
from llgbm.conditioning.context_choice import Context, ContextWanted, texts_in
from llgbm.decoding.decoder import Decoder, DecodeRequest
from llgbm.decoding.sampling import SamplingParams
from llgbm.errors import AdapterMismatchError, ConfigError, ContextLengthError
from llgbm.linears.frozen_linear import Storage, fastest_storage
from llgbm.pretrained.find import default_cache_dir
from llgbm.prompting import AdapterRequest, MadeAdapter
from llgbm_cli.inputs import fetch, load_maker
from service.chat.text_stream import TextStream

Examples = Sequence[tuple[str, str]]


class Conversation:
    """The turns so far, and their answers by the base with one adapter.

    Args:
        base: the frozen model.
        made: the adapter.
        context: the texts that stand in the context.
        description: stands above the first turn, unless the context is "none".
        examples: stand before the first turn, as turns of their own, if the context is "examples".
        params: how each answer is decoded; max_tokens is cut at the room that the context has.

    Attributes:
        adapter_id: None if the base answers, since the best scale of the adapter is 0.
    """

    def __init__(
        self,
        base: Base,
        made: MadeAdapter,
        context: Context,
        *,
        description: str,
        examples: Examples,
        params: SamplingParams,
    ) -> None:
        self.made, self.context_used = made, context
        applied = made.request.scale != 0
        self._weights = made.weights if applied else None
        self.adapter_id = made.id if applied else None
        self._tokenizer, self._decoder, self._params = base.tokenizer, Decoder(base), params
        self._description, self._examples = texts_in(context, description, tuple(examples))
        self._turns: list[dict[str, str]] = []

    def answer(self, text: str) -> Iterator[str]:
        """The pieces of the answer to the next turn. A turn that fails is forgotten.

        Raises:
            ContextLengthError: the conversation leaves no room for an answer.
            AdapterMismatchError: the adapter makes the model's numbers run out of range.
        """
        turns = [*self._turns, {"role": "user", "content": text}]
        messages = in_context(turns, description=self._description, examples=self._examples)
        ids = prompt_ids(self._tokenizer, messages)
        room = self._decoder.max_context - len(ids)
        if room < 1:
            raise ContextLengthError(
                f"the conversation has {len(ids)} tokens and the context holds {self._decoder.max_context}; start anew"
            )
        row = DecodeRequest(ids, self._weights, replace(self._params, max_tokens=min(self._params.max_tokens, room)))
        stream = TextStream(self._text)
        try:
            (step,) = self._decoder.add([row])
            while True:
                if step.finish_reason == "error":
                    raise AdapterMismatchError("the model's numbers ran out of range; try other words for the task")
                if step.finish_reason != "stop" and (piece := stream.push(step.token)):
                    yield piece
                if step.finish_reason is not None:
                    break
                (step,) = self._decoder.step()
        finally:
            self._decoder.remove(row)
        if rest := stream.finish():
            yield rest
        self._turns = [*turns, {"role": "assistant", "content": stream.text}]

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def open_conversation(
    prompt: str,
    examples: Examples,
    *,
    context: ContextWanted,
    params: SamplingParams,
    checkpoint: Path | None,
    base: str | None,
    storage: Storage | Literal["auto"],
    text_encoder: str | None,
) -> Conversation:
    """Fetch missing weights, load the models, and make the adapter.

    Args:
        prompt, examples: the task.
        context: "none", "description", "examples" for both, or "auto" for the best by calibration.
        params: how answers are decoded.
        checkpoint, base, text_encoder: None for the shipped generator and the models that it was trained with.
        storage: of the base; "auto" for the fastest.

    Raises:
        ConfigError: the context is "examples" and there are none, or a text is empty.
        CheckpointError: there is no generator, or it was made for another base.
        PretrainedNotFoundError: no source has the weights.
    """
    if context == "examples" and not examples:  # said before anything is fetched
        raise ConfigError("--context examples needs examples; name a file with --examples")
    request = AdapterRequest((prompt,), tuple(examples))
    maker = load_maker(checkpoint, text_encoder, base)
    manifest = maker.checkpoint.manifest
    base_name = base or manifest.base_id
    fetch(base_name)
    setting = maker.context_setting(request, context)
    (made,) = maker.make([replace(request, scale=setting.scale)])
    kept = fastest_storage() if storage == "auto" else storage
    loaded = load_base(base_name, storage=kept, int8_folder=default_cache_dir() / INT8_FOLDER)
    manifest.require_base(loaded.spec.base_id)
    return Conversation(
        loaded,
        made,
        setting.context,
        description=prompt,
        examples=examples,
        params=params,
    )


def converse(conversation: Conversation, *, once: bool, as_json: bool) -> None:
    """Answer the turns of standard input on standard output: each line, or the whole of it if `once`.

    Raises:
        ConfigError: `once`, and standard input is empty.
        ContextLengthError, AdapterMismatchError: as `Conversation.answer`.
    """
    if conversation.made.warning and not as_json:
        typer.echo(f"warning: {conversation.made.warning}", err=True)
    if once:
        text = sys.stdin.read().strip()
        if not text:
            raise ConfigError("there is nothing on standard input to answer")
        _say(conversation, text, as_json=as_json)
        return
    for line in _lines():
        _say(conversation, line, as_json=as_json)


def _lines() -> Iterator[str]:
    """The turns, without empty ones; on a terminal each is asked for."""
    asked = sys.stdin.isatty()
    while True:
        if asked:
            typer.echo("> ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _say(conversation: Conversation, text: str, *, as_json: bool) -> None:
    pieces = conversation.answer(text)
    if not as_json:
        for piece in pieces:
            typer.echo(piece, nl=False)
        typer.echo()
        return
    made = conversation.made
    report = {
        "adapter_id": conversation.adapter_id,
        "answer": "".join(pieces),
        "context_used": conversation.context_used,
        "scale": made.request.scale,
        "warning": made.warning,
    }
    typer.echo(json.dumps(report, ensure_ascii=False))
