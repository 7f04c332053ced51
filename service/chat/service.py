"""Answers conversations: chat template, tokens, decoding engine, text. Knows the errors of HTTP but not its requests.

The `start` methods of `ChatService` do all checks (unknown model, too long a prompt, no room) and return a
`Generation`, whose pieces come as they are decoded. The caller closes it, which frees its rows and its adapter.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jinja2 import TemplateError

from llgbm.chat import in_context, prompt_ids
from llgbm.conditioning.context_choice import Context, ContextWanted, texts_in
from llgbm.decoding.decoder import DecodeRequest
from llgbm.decoding.json_grammar import JsonGrammar
from llgbm.decoding.sampling import SamplingParams
from llgbm.errors import ConfigError, SchemaError
from llgbm.pretrained.byte_level import token_bytes
from service.adapters.catalogue import AdapterCatalogue
from service.adapters.errors import UnknownAdapterError
from service.adapters.service import AdapterService
from service.adapters.store import AdapterReference
from service.chat.generation import Generation
from service.chat.task import TaskTexts, with_marked_examples, with_system_message
from service.chat.text_stream import TextStream
from service.engine.interface import DecodingEngine
from service.errors import ApiError
from service.models.loading import Models
from service.settings import Settings

PROMPT_PREFIX = "prompt:"
AUTO_MODEL = "auto"


@dataclass(frozen=True)
class JsonWanted:
    """The answer must be JSON.

    Attributes:
        schema: of the answer; None for any object.
        place: path of the schema in the request, for errors.
    """

    schema: Mapping[str, Any] | None
    place: str


@dataclass(frozen=True)
class ChatOptions:
    """A conversation and how to answer it.

    Attributes:
        messages: as a chat template reads them.
        add_generation_prompt, continue_final_message: as `llgbm.chat.prompt_ids` has them.
        max_tokens: None for the service's default, -1 for the rest of the context.
        sampling: how tokens are chosen; its `max_tokens` is replaced, and without a seed it gets a random one.
        stop: strings that end the answer.
        choices: number of answers to the same prompt.
        compare_base: answer with the plain base too.
        json: the form of a JSON answer; None for text.
        examples: (input, output) pairs of a task, which make its adapter and may be in the context.
        context: the texts of the task in the context, in addition to the messages; None for auto.
    """

    messages: Sequence[Mapping[str, Any]]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    max_tokens: int | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    choices: int = 1
    compare_base: bool = False
    json: JsonWanted | None = None
    examples: tuple[tuple[str, str], ...] = ()
    context: ContextWanted | None = None


@dataclass(frozen=True)
class Answerer:
    """The adapter that answers, and its context.

    Attributes:
        adapter: None for the base.
        context: the texts of the task in the context, in addition to the messages.
        scale: factor on the adapter's effect; 0 if the base answers in place of an adapter, None for a request without
            an adapter.
        warning: of the adapter; None if there is none.
    """

    adapter: AdapterReference | None
    context: Context = "none"
    scale: float | None = None
    warning: str | None = None


class ChatService:
    """Starts the answers to conversations."""

    def __init__(
        self,
        settings: Settings,
        models: Models,
        engine: DecodingEngine,
        adapters: AdapterService,
        catalogue: AdapterCatalogue,
    ) -> None:
        self._settings, self._models, self._engine = settings, models, engine
        self._adapters, self._catalogue = adapters, catalogue
        self._refer = adapters.lease if engine.needs_tensors else adapters.refer
        self._tokenizer = models.base.tokenizer
        self._tokenising = threading.Lock()  # a tokenizer changes its own settings during a call

    async def start(self, model: str, options: ChatOptions, adapter: str | None = None) -> Generation:
        """Answer with `model`: the base, an adapter, or the adapter of a task.

        Args:
            model: the base's id, an adapter's id or name, `prompt:` and a description, or `auto`: then the system
                message is the description, and the base answers if there is none.
            options: the conversation and how to answer it.
            adapter: id or name of an adapter; `model` is then the base, or the same adapter.

        Raises:
            ApiError: 404 unknown model or adapter; 400 too long a prompt, an impossible option, or a conversation that
                the chat template refuses; 413 too large a prompt; 422 the text for a context is missing; 429 no room;
                502 and 503 from a remote engine.
        """
        if adapter is None or adapter == model:
            task = self._task_of(model, options)
            if task is not None:
                place = "messages" if model == AUTO_MODEL else "model"
                return await self._start_task(task, options, place)
            _require_no_task(model, options)
            return await self._start(lambda: self._find(model), options)
        _require_no_task(model, options)
        if model != self._models.base.spec.base_id:
            raise ApiError(
                400,
                f"with adapter_id the model must be the base ({self._models.base.spec.base_id}), not {model!r}; name "
                "the adapter in one of the two fields",
                param="adapter_id",
            )
        try:
            return await self._start(lambda: self._find_named(adapter), options)
        except UnknownAdapterError as error:
            raise ApiError(404, error.message, code=error.code, param="adapter_id") from error

    async def start_adapted(self, adapter: str, options: ChatOptions) -> Generation:
        """Answer with the adapter of this id or name. Raises ApiError as `start`."""
        return await self._start(lambda: self._find_named(adapter), options)

    async def start_described(self, prompt: str | None, options: ChatOptions) -> Generation:
        """Answer with the adapter of a task: its description, and the examples of the options.

        Raises:
            ApiError: as `start`.
        """
        return await self._start_task(TaskTexts(prompt, options.examples, tuple(options.messages)), options, "prompt")

    def _task_of(self, model: str, options: ChatOptions) -> TaskTexts | None:
        """The task in `model` and the messages; None for the base or an existing adapter."""
        prompted = model.startswith(PROMPT_PREFIX)
        if not prompted and model != AUTO_MODEL:
            return None
        description = model.removeprefix(PROMPT_PREFIX) if prompted else None
        task = with_marked_examples(TaskTexts(description, options.examples, tuple(options.messages)))
        if not prompted:
            task = with_system_message(task)
            if task.description is None and not task.examples:
                if options.context in (None, "auto", "none"):
                    return None
                raise ApiError(
                    422,
                    f"context {options.context!r} needs a task, and the messages have no system message and no "
                    "examples; give them, or choose context auto",
                    param="context",
                )
        return task

    async def _start_task(self, task: TaskTexts, options: ChatOptions, place: str) -> Generation:
        """Answer with the adapter of a task, in the wanted context; `auto` is the best one by calibration.

        Args:
            place: field of the request that has the description.
        """
        descriptions = () if task.description is None else (task.description,)
        request = self._adapters.request(descriptions, task.examples, param=place)
        setting = await self._adapters.context_setting(request, options.context or "auto")
        try:
            description, examples = texts_in(setting.context, task.description, task.examples)
            messages = in_context(task.messages, description=description, examples=examples, start=task.start)
        except ConfigError as error:
            raise ApiError(422, str(error), param="messages") from error

        async def find() -> Answerer:
            if setting.scale == 0:
                return Answerer(None, setting.context, 0.0, await self._adapters.warning(request))
            record = (await self._adapters.get_or_make(replace(request, scale=setting.scale))).record
            return Answerer(await self._refer(record.id), setting.context, setting.scale, record.warning)

        try:
            return await self._start(find, replace(options, messages=messages))
        except ContextFullError as error:
            if setting.context != "examples":
                raise
            raise ApiError(
                422,
                f"the conversation with {len(task.examples)} examples has {error.tokens} tokens, and the context holds "
                f"{error.limit}; give fewer or shorter examples, or choose a context without them",
                param="examples",
            ) from error

    async def _start(self, find: Callable[[], Awaitable[Answerer]], options: ChatOptions) -> Generation:
        if options.choices > self._settings.max_choices:
            raise ApiError(400, f"n must be at most {self._settings.max_choices}", param="n")
        vocabulary = len(self._tokenizer)
        if any(token >= vocabulary for token, _ in options.sampling.logit_bias):
            raise ApiError(400, f"the token ids of logit_bias must be 0 to {vocabulary - 1}", param="logit_bias")
        prompt = await asyncio.to_thread(self._tokenise, options)
        grammar = None if options.json is None else await asyncio.to_thread(_grammar, options.json)
        max_tokens = self._room(len(prompt), options.max_tokens)
        answerer = await find()
        found = answerer.adapter
        try:
            adapters = [found] * options.choices + ([None] if options.compare_base else [])
            seed = secrets.randbits(62) if options.sampling.seed is None else options.sampling.seed
            rows = [
                DecodeRequest(
                    prompt,
                    None if adapter is None else adapter.weights,
                    replace(options.sampling, max_tokens=max_tokens, seed=(seed + i % options.choices) % 2**63),
                    grammar,
                )
                for i, adapter in enumerate(adapters)
            ]
            streams = await self._engine.submit(
                rows, [None if a is None else a.id for a in adapters], timeout=self._settings.request_timeout
            )
        except BaseException:
            if found is not None:
                found.release()
            raise
        texts = [TextStream(self.decode, options.stop) for _ in rows]
        return Generation(
            streams, texts, found, len(prompt), answerer.context, answerer.scale, warning=answerer.warning
        )

    async def _find(self, model: str) -> Answerer:
        if model in (self._models.base.spec.base_id, AUTO_MODEL):
            return Answerer(None)
        try:
            return await self._find_named(model)
        except UnknownAdapterError as error:
            raise ApiError(
                404,
                f"there is no model {model!r}. Use the base ({self._models.base.spec.base_id}), an adapter from "
                "GET /v1/models, 'prompt:' and the description of a task, which makes its adapter, or 'auto' for the "
                "task in the system message",
                code="model_not_found",
                param="model",
            ) from error

    async def _find_named(self, name_or_id: str) -> Answerer:
        record = await self._catalogue.record(name_or_id)
        return Answerer(await self._refer(record.id), scale=record.scale, warning=record.warning)

    def _tokenise(self, options: ChatOptions) -> tuple[int, ...]:
        try:
            json.dumps(options.messages, ensure_ascii=False).encode()
            with self._tokenising:
                return prompt_ids(
                    self._tokenizer,
                    options.messages,
                    add_generation_prompt=options.add_generation_prompt,
                    continue_final_message=options.continue_final_message,
                )
        except UnicodeEncodeError as error:
            raise ApiError(
                400,
                "the messages have half of a character, which is not valid Unicode; send it whole",
                param="messages",
            ) from error
        except (TemplateError, ValueError) as error:  # ValueError: there is no text to continue
            raise ApiError(400, f"the chat template refuses these messages: {error}", param="messages") from error

    def _room(self, prompt: int, wanted: int | None) -> int:
        left = self.max_context - prompt
        if left < 1:
            raise ContextFullError(prompt, self.max_context)
        if wanted is None:
            wanted = self._settings.max_tokens
        return left if wanted < 0 else min(wanted, left)

    @property
    def max_context(self) -> int:
        """Maximum number of tokens of a prompt and its answer together."""
        return min(self._models.max_context, self._engine.max_context or self._models.max_context)

    # tokens as text

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; bytes that are not a character become U+FFFD."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def token_text(self, token: int) -> tuple[str, list[int] | None]:
        """The text and the bytes of a single token, for logprobs."""
        raw = token_bytes(self._tokenizer, token)
        return ("", None) if raw is None else (raw.decode(errors="replace"), list(raw))

    @property
    def fingerprint(self) -> str:
        """Identifies the weights of the base and of the generator."""
        return f"fp_{self._models.base.revision[:8]}_{self._models.generator_digest[:8]}"


class ContextFullError(ApiError):
    """The messages leave no room for an answer."""

    def __init__(self, tokens: int, limit: int) -> None:
        self.tokens, self.limit = tokens, limit
        # clients search for these words, and try again with fewer messages
        super().__init__(
            400,
            f"This model's maximum context length is {limit} tokens, and the messages have {tokens}; shorten them to "
            "leave room for an answer",
            code="context_length_exceeded",
            param="messages",
        )


def _require_no_task(model: str, options: ChatOptions) -> None:
    """Refuse the options of a task for a model that is the base or an adapter."""
    asked = "examples" if options.examples else "context" if options.context not in (None, "none") else None
    if asked is not None and not (model == AUTO_MODEL and asked == "context"):
        raise ApiError(
            400,
            f"{asked} can be used only with the model 'auto', or 'prompt:' and a description; the base or an existing "
            "adapter answers without it",
            param=asked,
        )


def _grammar(wanted: JsonWanted) -> JsonGrammar:
    try:
        return JsonGrammar(wanted.schema)
    except SchemaError as error:
        param = ".".join(filter(None, (wanted.place, error.place)))
        raise ApiError(400, f"the JSON schema cannot be enforced {error}", param=param) from error
