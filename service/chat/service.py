"""From a conversation to its answer: template, tokens, engine, text. Knows HTTP's errors but not its requests.

`ChatService.start` does everything that can be refused (unknown model, too long, no room) and returns a `Generation`,
whose pieces come as they are made. Whoever gets one closes it: that frees its rows and its reference to the adapter.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError

from llgbm.chat import prompt_ids, with_description
from llgbm.decoding.decoder import DecodeRequest
from llgbm.decoding.sampling import SamplingParams
from llgbm.errors import ConfigError
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
class ChatOptions:
    """What a caller wants: a conversation and how to answer it. None stands for the service's default."""

    messages: Sequence[tuple[str, str]]
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    choices: int = 1
    compare_base: bool = False


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
        self._byte_of = _byte_decoder()

    async def start(self, model: str, options: ChatOptions) -> Generation:
        """Answer with `model`: the base's id, an adapter's id or name, or `prompt:` and a description.

        Raises:
            ApiError: 404 unknown model, 400 too long or a conversation the template refuses, 413 a prompt too
                large, 422 too many answers or no valid Unicode, 429 no room, 502 and 503 from an engine elsewhere.
        """
        return await self._start(lambda: self._find(model), options)

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
            raise ApiError(422, f"n is at most {self._settings.max_choices} here", param="n")
        prompt = await asyncio.to_thread(self._tokenise, options.messages)
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
                        seed=(seed + i % options.choices) % 2**63,
                        logprobs=options.top_logprobs,
                    ),
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

    def _tokenise(self, messages: Sequence[tuple[str, str]]) -> tuple[int, ...]:
        turns = [{"role": "system" if role == "developer" else role, "content": text} for role, text in messages]
        try:
            "".join(text for _, text in messages).encode()
            with self._tokenising:
                return prompt_ids(self._tokenizer, turns)
        except UnicodeEncodeError as error:
            raise ApiError(
                422, "the messages hold half of a character, which is no valid Unicode; send it whole", param="messages"
            ) from error
        except TemplateError as error:
            raise ApiError(400, f"the chat template refuses these messages: {error}", param="messages") from error

    def _room(self, prompt: int, wanted: int | None) -> int:
        limit = self.max_context
        if prompt + (wanted or 1) > limit:
            raise ApiError(
                400,
                f"the prompt has {prompt} tokens and max_tokens is {wanted or self._settings.max_tokens}, but both "
                f"together are at most {limit}; shorten one of them",
                code="context_length_exceeded",
                param="messages",
            )
        return wanted or min(self._settings.max_tokens, limit - prompt)

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
        name = self._tokenizer.convert_ids_to_tokens(token)
        if name is None:
            return "", None
        if all(character in self._byte_of for character in name):
            raw = bytes(self._byte_of[character] for character in name)
        else:  # a special token is itself
            raw = name.encode()
        return raw.decode(errors="replace"), list(raw)

    @property
    def fingerprint(self) -> str:
        """Changes with the base's and the generator's weights."""
        return f"fp_{self._models.base.revision[:8]}_{self._models.generator_digest[:8]}"


def _byte_decoder() -> dict[str, int]:
    """GPT-2's table of printable stand-ins for bytes, the other way round."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table: dict[str, Any] = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}
