"""From a conversation to its answer: template, tokens, engine, text. Knows HTTP's errors but not its requests.

`ChatService.start` does everything that can be refused (unknown model, too long, no room) and returns a `Generation`,
whose pieces come as they are made. Whoever gets one closes it: that frees its rows and its reference to the adapter.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError

from llgbm.chat import prompt_ids, with_description
from llgbm.decoding.decoder import DecodeRequest
from llgbm.decoding.json_grammar import JsonGrammar
from llgbm.decoding.sampling import SamplingParams
from llgbm.errors import ConfigError, SchemaError
from llgbm.pretrained.byte_level import token_bytes
from llgbm.prompting import AdapterRequest
from service.adapters.catalogue import AdapterCatalogue
from service.adapters.errors import UnknownAdapterError
from service.adapters.service import AdapterService
from service.adapters.store import AdapterReference
from service.chat.generation import Generation
from service.chat.text_stream import TextStream
from service.engine.interface import DecodingEngine
from service.errors import ApiError
from service.models.loading import Models
from service.settings import Settings

PROMPT_PREFIX = "prompt:"


@dataclass(frozen=True)
class JsonWanted:
    """The answer is JSON: of this schema, or any object; `place` is where the request has the schema."""

    schema: Mapping[str, Any] | None
    place: str


@dataclass(frozen=True)
class ChatOptions:
    """What a caller wants: a conversation and how to answer it.

    Attributes:
        messages: as a chat template reads them.
        add_generation_prompt, continue_final_message: as `llgbm.chat.prompt_ids` has them.
        max_tokens: None for the service's default, -1 for all that is left of the context.
        temperature, top_p, top_k, min_p, repetition_penalty, presence_penalty, frequency_penalty, logit_bias: as
            `llgbm.sampling.SamplingParams` has them.
        seed: None for a fresh one.
        stop: strings that end the answer.
        top_logprobs: None for no log probabilities.
        choices: answers to the same prompt.
        compare_base: answer with the plain base too.
        json: the answer is JSON.
    """

    messages: Sequence[Mapping[str, Any]]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    choices: int = 1
    compare_base: bool = False
    json: JsonWanted | None = None


class ChatService:
    """Starts generations."""

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
        self._tokenising = threading.Lock()  # a tokenizer may change its settings while it works

    async def start(self, model: str, options: ChatOptions, adapter: str | None = None) -> Generation:
        """Answer with `model`: the base's id, an adapter's id or name, or `prompt:` and a description.

        Args:
            model: as above.
            options: the conversation and how to answer it.
            adapter: id or name of an adapter on the base that `model` names.

        Raises:
            ApiError: 404 unknown model or adapter, 400 too long, an option that cannot be, or a conversation the
                template refuses, 413 a prompt too large, 429 no room, 502 and 503 from an engine elsewhere.
        """
        if adapter is None or adapter == model:
            return await self._start(lambda: self._find(model), options)
        if model != self._models.base.spec.base_id:
            raise ApiError(
                400,
                f"adapter_id goes with the base as model ({self._models.base.spec.base_id}), and model is {model!r}; "
                "name the adapter in one of the two",
                param="adapter_id",
            )
        try:
            return await self._start(lambda: self._find_named(adapter), options)
        except UnknownAdapterError as error:
            raise ApiError(404, error.message, code=error.code, param="adapter_id") from error

    async def start_adapted(self, prompt: str | None, adapter: str | None, options: ChatOptions) -> Generation:
        """Answer with an adapter, never with the plain base alone: that of the task `prompt`, or one by id or name.

        Raises:
            ApiError: as `start`.
        """
        if prompt is not None:
            request = self._adapters.request((prompt,))
            return await self._start(lambda: self._find_for(request), options)
        return await self._start(lambda: self._find_named(adapter or ""), options)

    async def start_described(self, prompt: str, options: ChatOptions) -> Generation:
        """As `start_adapted` with a task's description, which stands above the user's first turn too.

        The adapter has the scale that calibration found best there.

        Raises:
            ApiError: as `start`, and 422 for a conversation without a turn of the user.
        """
        request = self._adapters.request((prompt,))
        try:
            messages = with_description(options.messages, prompt)
        except ConfigError as error:
            raise ApiError(422, str(error), param="messages") from error

        async def find() -> AdapterReference:
            scale = await self._adapters.scale_in_context(request)
            return await self._find_for(replace(request, scale=scale))

        return await self._start(find, replace(options, messages=messages))

    async def _start(self, find: Callable[[], Awaitable[AdapterReference | None]], options: ChatOptions) -> Generation:
        if options.choices > self._settings.max_choices:
            raise ApiError(400, f"n is at most {self._settings.max_choices} here", param="n")
        vocabulary = len(self._tokenizer)
        if any(token >= vocabulary for token, _ in options.logit_bias):
            raise ApiError(400, f"the tokens of logit_bias are 0 to {vocabulary - 1}", param="logit_bias")
        prompt = await asyncio.to_thread(self._tokenise, options)
        grammar = None if options.json is None else await asyncio.to_thread(_grammar, options.json)
        max_tokens = self._room(len(prompt), options.max_tokens)
        found = await find()
        try:
            adapters = [found] * options.choices + ([None] if options.compare_base else [])
            seed = secrets.randbits(62) if options.seed is None else options.seed
            rows = [
                DecodeRequest(
                    prompt,
                    None if adapter is None else adapter.weights,
                    SamplingParams(
                        max_tokens=max_tokens,
                        temperature=options.temperature,
                        top_p=options.top_p,
                        top_k=options.top_k,
                        min_p=options.min_p,
                        repetition_penalty=options.repetition_penalty,
                        presence_penalty=options.presence_penalty,
                        frequency_penalty=options.frequency_penalty,
                        logit_bias=options.logit_bias,
                        seed=(seed + i % options.choices) % 2**63,
                        logprobs=options.top_logprobs,
                    ),
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
        return Generation(streams, texts, found, len(prompt))

    async def _find(self, model: str) -> AdapterReference | None:
        if model == self._models.base.spec.base_id:
            return None
        if model.startswith(PROMPT_PREFIX):
            return await self._find_for(self._adapters.request((model.removeprefix(PROMPT_PREFIX),)))
        try:
            return await self._find_named(model)
        except UnknownAdapterError as error:
            raise ApiError(
                404,
                f"there is no model {model!r}. Use the base ({self._models.base.spec.base_id}), an adapter from "
                "GET /v1/models, or 'prompt:' and the description of a task, which makes its adapter",
                code="model_not_found",
                param="model",
            ) from error

    async def _find_for(self, request: AdapterRequest) -> AdapterReference:
        outcome = await self._adapters.get_or_make(request)
        return await self._refer(outcome.record.id)

    async def _find_named(self, name_or_id: str) -> AdapterReference:
        return await self._refer(await self._catalogue.resolve(name_or_id))

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
                400, "the messages hold half of a character, which is no valid Unicode; send it whole", param="messages"
            ) from error
        except (TemplateError, ValueError) as error:  # the second if there is nothing that could be continued
            raise ApiError(400, f"the chat template refuses these messages: {error}", param="messages") from error

    def _room(self, prompt: int, wanted: int | None) -> int:
        left = self.max_context - prompt
        if left < 1:
            # clients look for these words to try again with less
            raise ApiError(
                400,
                f"This model's maximum context length is {self.max_context} tokens, and the messages have {prompt}; "
                "shorten them so that an answer has room",
                code="context_length_exceeded",
                param="messages",
            )
        if wanted is None:
            wanted = self._settings.max_tokens
        return left if wanted < 0 else min(wanted, left)

    @property
    def max_context(self) -> int:
        """Tokens of a prompt and its answer together."""
        return min(self._models.max_context, self._engine.max_context or self._models.max_context)

    # tokens as text

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; bytes that form no character become U+FFFD."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def token_text(self, token: int) -> tuple[str, list[int] | None]:
        """A single token as text and as bytes, for logprobs."""
        raw = token_bytes(self._tokenizer, token)
        return ("", None) if raw is None else (raw.decode(errors="replace"), list(raw))

    @property
    def fingerprint(self) -> str:
        """Changes with the base's and the generator's weights."""
        return f"fp_{self._models.base.revision[:8]}_{self._models.generator_digest[:8]}"


def _grammar(wanted: JsonWanted) -> JsonGrammar:
    try:
        return JsonGrammar(wanted.schema)
    except SchemaError as error:
        param = ".".join(filter(None, (wanted.place, error.place)))
        raise ApiError(400, f"the JSON schema cannot be held to {error}", param=param) from error
