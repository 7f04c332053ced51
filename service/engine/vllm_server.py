"""One vLLM server over HTTP: what it serves, which adapters it is given, and its completions as tokens.

Prompts go as token ids and answers come back as token ids (`return_token_ids`), so the chat template, the text, stop
strings and log probabilities are made in one place for every engine. Needs vLLM 0.11 or newer.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import httpx
import structlog

from llgbm.decoding.decoder import DecodeRequest, FinishReason, Step
from service.engine.interface import EngineError, QueueFullError, RefusedError, UpstreamError

_log = structlog.get_logger("service.vllm")
_CONNECT_SECONDS, _CHECK_SECONDS, _LOAD_SECONDS = 5.0, 5.0, 120.0
_DOWN = frozenset({502, 503})  # the server's own "not now", or that of a proxy before it
_REFUSED = frozenset({400, 413, 422})
_NO_TOKEN = -1


class ServerDownError(UpstreamError):
    """The server cannot be reached, or serves nothing at the moment."""


class UnknownModelError(UpstreamError):
    """The server does not know the model that it was asked for."""


@dataclass(frozen=True)
class Served:
    """What a server says it serves: the base under its name there, its context in tokens, and adapters by name."""

    base: str
    max_context: int | None
    adapters: tuple[str, ...]


class VLLMServer:
    """A client of one server. Used in one event loop; `close` when done."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self.url = url
        self._client = httpx.AsyncClient(
            base_url=url,
            trust_env=False,  # prompts and the key go to the server itself, not through the proxy for the internet
            headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
            # an answer takes as long as it takes: whoever waits for it has a deadline of its own
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def is_healthy(self) -> bool:
        """Whether it answers and its engine lives."""
        try:
            return (await self._client.get("/health", timeout=_CHECK_SECONDS)).status_code == 200
        except httpx.HTTPError:
            return False

    async def served(self) -> Served:
        """What it serves now. Raises UpstreamError."""
        response = await self._request("GET", "/v1/models", timeout=_CHECK_SECONDS)
        self._require_success(response)
        try:
            cards = response.json()["data"]
            base = next(card for card in cards if not card.get("parent"))
            adapters = tuple(card["id"] for card in cards if card.get("parent"))
            return Served(base["id"], base.get("max_model_len"), adapters)
        except (ValueError, LookupError, TypeError, StopIteration) as error:
            raise UpstreamError("a vLLM server lists no base model under /v1/models") from error

    async def load(self, name: str, path: str) -> None:
        """Give it an adapter; one that it has already is no error.

        Args:
            name: what to ask for as `model`.
            path: the adapter's folder as the server sees it.

        Raises:
            UpstreamError: it cannot load it.
        """
        body = {"lora_name": name, "lora_path": path}
        response = await self._request("POST", "/v1/load_lora_adapter", json=body, timeout=_LOAD_SECONDS)
        message = _message(response)
        if response.status_code == 200 or "already been loaded" in message:
            return
        if response.status_code == 404 and message == "Not Found":
            message = "it takes no adapters at run time; start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
        if response.status_code in _DOWN:
            raise ServerDownError("a vLLM server is not serving")
        _log.error("adapter_not_loaded", server=self.url, adapter_id=name, path=path, error=message)
        raise UpstreamError(f"a vLLM server could not load {name}: {message.replace(path, name)}")

    async def unload(self, name: str) -> None:
        """Take an adapter away; rows that use it are finished. One that it does not have is no error."""
        response = await self._request(
            "POST", "/v1/unload_lora_adapter", json={"lora_name": name}, timeout=_LOAD_SECONDS
        )
        if response.status_code != 404:
            self._require_success(response)

    @asynccontextmanager
    async def complete(self, model: str, row: DecodeRequest) -> AsyncIterator[AsyncIterator[Step]]:
        """Decode a row with `model`; inside the block the server has taken it. Leaving the block ends it there.

        Raises:
            UnknownModelError, ServerDownError, RefusedError, QueueFullError, UpstreamError: also from the iterator.
        """
        try:
            async with self._client.stream("POST", "/v1/completions", json=_body(model, row)) as response:
                if response.status_code != 200:
                    await response.aread()
                    if response.status_code == 404:
                        raise UnknownModelError(f"a vLLM server does not know {model}")
                    self._require_success(response)
                yield self._steps(response, row)
        except httpx.TransportError as error:
            raise ServerDownError("a vLLM server cannot be reached") from error

    async def _steps(self, response: httpx.Response, row: DecodeRequest) -> AsyncIterator[Step]:
        # read to the end, past [DONE]: only then can the connection be used again
        async for line in _lines(response):
            data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
            if not data or data == b"[DONE]":
                continue
            try:
                event = json.loads(data)
                steps = [] if "error" in event else [s for choice in event["choices"] for s in _choice(choice, row)]
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise UpstreamError("a vLLM server sent an event that is not understood") from error
            if "error" in event:
                raise self._failure(event["error"])
            for step in steps:
                yield step

    def _failure(self, error: Any) -> EngineError:
        """What an event with an error means; vLLM finds some faults of a request only when its stream has begun."""
        if isinstance(error, dict) and error.get("code") in _REFUSED:
            return RefusedError(str(error.get("message"))[:500])
        _log.error("vllm_failed", server=self.url, error=str(error))
        return UpstreamError("a vLLM server failed in the middle of an answer; the log says more")

    async def _request(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            return await self._client.request(method, path, **more)
        except httpx.TransportError as error:
            raise ServerDownError("a vLLM server cannot be reached") from error

    def _require_success(self, response: httpx.Response) -> None:
        status = response.status_code
        if status == 200:
            return
        message = _message(response)
        if status in _REFUSED:
            raise RefusedError(message)
        if status == 429:
            raise QueueFullError("the vLLM servers have no room", _seconds(response.headers))
        _log.error("vllm_failed", server=self.url, status=status, error=message)
        if status in _DOWN:
            raise ServerDownError("a vLLM server is not serving")
        hint = "; it takes another key than LLGBM_VLLM_API_KEY" if status in (401, 403) else "; the log says more"
        raise UpstreamError(f"a vLLM server answered with status {status}{hint}")


def _body(model: str, row: DecodeRequest) -> dict[str, Any]:
    """The request for one row. What vLLM would else take from the base's generation config is said."""
    params = row.params
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(row.prompt),
        "max_tokens": params.max_tokens,
        # vLLM knows no top_p of 0
        "temperature": params.temperature if params.top_p > 0 else 0.0,
        "top_p": params.top_p or 1.0,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "stream": True,
        "return_token_ids": True,
    }
    if params.seed is not None:
        body["seed"] = params.seed
    if params.stop_token_ids is not None:
        body |= {"stop_token_ids": list(params.stop_token_ids), "ignore_eos": True}
    if params.logit_bias:
        body["logit_bias"] = {str(token): value for token, value in params.logit_bias}
    if row.grammar is not None and row.grammar.schema is None:
        body["response_format"] = {"type": "json_object"}
    elif row.grammar is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": row.grammar.schema},
        }
    if params.logprobs is not None:
        body |= {"logprobs": params.logprobs, "return_tokens_as_token_ids": True}
    return body


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """The lines of a body. httpx's own also end at characters that vLLM leaves as they are in JSON, such as U+2028."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
    yield rest


def _choice(choice: Mapping[str, Any], row: DecodeRequest) -> Iterator[Step]:
    """The steps of one event; it may bring several tokens."""
    tokens, reason = list(choice.get("token_ids") or ()), choice.get("finish_reason")
    if reason not in (None, "stop", "length"):  # vLLM was told to abort it
        raise UpstreamError(f"a vLLM server ended the answer early: {reason}")
    if reason == "stop" and not tokens:
        tokens = [_NO_TOKEN]
    logprobs = choice.get("logprobs")
    for index, token in enumerate(tokens):
        own: float | None = None
        top: tuple[tuple[int, float], ...] = ()
        if row.params.logprobs is not None and logprobs is not None:
            own = logprobs["token_logprobs"][index]
            top = _best(logprobs["top_logprobs"][index] or {}, row.params.logprobs)
        last = index + 1 == len(tokens)
        yield Step(row, token, own, top, cast("FinishReason | None", reason if last else None))


def _best(named: Mapping[str, float], count: int) -> tuple[tuple[int, float], ...]:
    """The likeliest tokens; vLLM adds the chosen one where it is not among them."""
    pairs = [(int(name.removeprefix("token_id:")), value) for name, value in named.items()]
    return tuple(sorted(pairs, key=lambda pair: -pair[1])[:count])


def _message(response: httpx.Response) -> str:
    """What the server says is wrong, in any of its forms."""
    try:
        body = response.json()
    except ValueError:
        return response.text[:500]
    body = body.get("error", body) if isinstance(body, dict) else {}
    found = body.get("message") or body.get("detail") if isinstance(body, dict) else body
    return str(found)[:500]


def _seconds(headers: Mapping[str, str]) -> float:
    try:
        return max(1.0, float(headers.get("retry-after", "1")))
    except ValueError:
        return 1.0
