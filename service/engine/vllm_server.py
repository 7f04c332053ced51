"""A client of one vLLM server over HTTP: its models, its adapters, and completions as tokens.

Prompts and answers are token ids (`return_token_ids`), so chat template, text, stop strings and log probabilities have
one implementation for both engines. Needs vLLM 0.11 or newer.
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
_DOWN = frozenset({502, 503})  # the server is not ready, or a proxy before it says so
_REFUSED = frozenset({400, 413, 422})
_NO_TOKEN = -1


class ServerDownError(UpstreamError):
    """The server cannot be reached, or is not ready."""


class UnknownModelError(UpstreamError):
    """The server does not know the requested model."""


@dataclass(frozen=True)
class Served:
    """A server's models: the base's name there, its context in tokens, and the names of its adapters."""

    base: str
    max_context: int | None
    adapters: tuple[str, ...]


class VLLMServer:
    """A client of one server. Used in one event loop; `close` when done."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self.url = url
        self._client = httpx.AsyncClient(
            base_url=url,
            trust_env=False,  # prompts and the key must not go through an internet proxy
            headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
            # no limit for an answer: the engine has a deadline for each row
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def is_healthy(self) -> bool:
        """Whether the server answers and its engine is alive."""
        try:
            return (await self._client.get("/health", timeout=_CHECK_SECONDS)).status_code == 200
        except httpx.HTTPError:
            return False

    async def served(self) -> Served:
        """Its current models. Raises UpstreamError."""
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
        """Load an adapter; not an error if it is already loaded.

        Args:
            name: its name as `model` in requests.
            path: the adapter's folder on the server.

        Raises:
            UpstreamError: the server cannot load it.
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
        """Unload an adapter after the rows that use it; not an error if it is not loaded."""
        response = await self._request(
            "POST", "/v1/unload_lora_adapter", json={"lora_name": name}, timeout=_LOAD_SECONDS
        )
        if response.status_code != 404:
            self._require_success(response)

    @asynccontextmanager
    async def complete(self, model: str, row: DecodeRequest) -> AsyncIterator[AsyncIterator[Step]]:
        """Decode a row with `model`. Inside the block the server has accepted it; leaving the block ends it there.

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
        # read past [DONE] to the end: only then can the connection be reused
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
        """The exception of an error event. vLLM finds some invalid requests only after its stream has started."""
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
    """The request for one row. It sets all values that vLLM would otherwise take from the base's generation config."""
    params = row.params
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(row.prompt),
        "max_tokens": params.max_tokens,
        # vLLM refuses a top_p of 0
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
    """The lines of a body. httpx's own also split at characters that vLLM does not escape in JSON, such as U+2028."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
    yield rest


def _choice(choice: Mapping[str, Any], row: DecodeRequest) -> Iterator[Step]:
    """The steps of one event, which may hold several tokens."""
    tokens, reason = list(choice.get("token_ids") or ()), choice.get("finish_reason")
    if reason not in (None, "stop", "length"):  # aborted in vLLM
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
    """The likeliest tokens; vLLM also lists the chosen one if it is not among them."""
    pairs = [(int(name.removeprefix("token_id:")), value) for name, value in named.items()]
    return tuple(sorted(pairs, key=lambda pair: -pair[1])[:count])


def _message(response: httpx.Response) -> str:
    """The server's error message, from any of its response formats."""
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
