"""A small server with vLLM's protocol over real sockets, which decodes with this project's decoder.

Its answers, errors and order of checks are those of vLLM 0.32; `end_to_end/test_vllm_real.py` tests the real one. It
has /health, /v1/models, /v1/completions with token ids, and adapters at run time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from llgbm.adapters.peft_io import load_peft
from llgbm.decoding.decoder import DecodeRequest, Step
from llgbm.decoding.json_grammar import JsonGrammar
from llgbm.decoding.sampling import SamplingParams
from llgbm.errors import LLGBMError
from service.engine.interface import DecoderLike, EngineLimits, TokenStream
from service.engine.torch_engine import Engine
from service.observability.metrics import Metrics
from tests.service.support.harness import free_port, wait_until

Decode = Callable[[Sequence[int]], str]


class FakeVLLM:
    """One server, which can be started and stopped repeatedly. Every start forgets all adapters, like a new process.

    Attributes:
        loads, unloads: names of loaded and unloaded adapters, in order.
        asked: models of the requested completions.
        running, aborted: number of active completions, and of those closed by the client.
        together: tokens per event; several if vLLM is faster than the connection.
        resolver: folder where unknown models are searched.
        api_key: the required key; None for none.
        refuse: status and message for the next completion.
        decode: token ids of an event -> its text. Like all of vLLM's JSON, it is sent without escapes.
        break_after: tokens after which the connection of an answer breaks.
        fail_after, fail_code: tokens after which an answer ends with an error event, and the code in it.
        load_gate: adapters are loaded only while it is set.
    """

    def __init__(
        self, base: str, new_decoder: Callable[[], DecoderLike], decode: Decode, *, max_model_len: int = 4096
    ) -> None:
        self.base, self._new_decoder, self.decode, self._max_model_len = base, new_decoder, decode, max_model_len
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.asked: list[str] = []
        self.running = self.aborted = 0
        self.together = 1
        self.resolver: Path | None = None
        self.api_key: str | None = None
        self.refuse: tuple[int, str] | None = None
        self.break_after: int | None = None
        self.fail_after: int | None = None
        self.fail_code = 500
        self.load_gate = threading.Event()
        self.load_gate.set()
        self.adapters: dict[str, Any] = {}
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> FakeVLLM:
        self.adapters.clear()
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        server = self._server = uvicorn.Server(
            uvicorn.Config(self._app(), log_config=None, timeout_graceful_shutdown=0)
        )
        self._thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
        self._thread.start()
        wait_until(lambda: server.started)
        return self

    def stop(self) -> None:
        """Stop immediately and close all connections."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(30)
            assert not self._thread.is_alive()
        self._server = self._thread = None

    def _app(self) -> Starlette:
        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            engine = app.state.engine = Engine(EngineLimits(32, 10_000, 200, 8), Metrics())
            engine.start()
            engine.attach(self._new_decoder)
            yield
            await engine.stop()

        routes = [
            Route("/health", self._health),
            Route("/v1/models", self._guarded(self._models)),
            Route("/v1/load_lora_adapter", self._guarded(self._load), methods=["POST"]),
            Route("/v1/unload_lora_adapter", self._guarded(self._unload), methods=["POST"]),
            Route("/v1/completions", self._guarded(self._complete), methods=["POST"]),
        ]
        return Starlette(routes=routes, lifespan=lifespan)

    def _guarded(self, handle: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def guarded(request: Request) -> Response:
            if self.api_key is not None and request.headers.get("authorization") != f"Bearer {self.api_key}":
                return JSONResponse({"error": "Unauthorized"}, 401)
            answer: Response = await handle(request)
            return answer

        return guarded

    async def _health(self, _: Request) -> Response:
        return Response(status_code=200)

    async def _models(self, _: Request) -> Response:
        base = {"id": self.base, "object": "model", "root": "/models/base", "parent": None}
        cards: list[dict[str, Any]] = [{**base, "max_model_len": self._max_model_len}]
        cards += [{"id": name, "object": "model", "root": "/", "parent": self.base} for name in self.adapters]
        return JSONResponse({"object": "list", "data": cards})

    async def _load(self, request: Request) -> Response:
        body = await request.json()
        name, path = body["lora_name"], Path(body["lora_path"])
        if name in self.adapters:
            return _error(400, f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in "
                          "place, set 'load_inplace' to True.", "InvalidUserInput")  # fmt: skip
        await asyncio.to_thread(self.load_gate.wait, 20)
        problem = self._take(name, path)
        return problem or PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    def _take(self, name: str, path: Path) -> Response | None:
        if not path.is_dir():
            return _error(404, f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError")
        try:
            self.adapters[name] = load_peft(path)[0]
        except LLGBMError as error:
            return _error(500, str(error), "InternalServerError")
        self.loads.append(name)
        return None

    async def _unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        if self.adapters.pop(name, None) is None:
            return _error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        self.unloads.append(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        model = body["model"]
        self.asked.append(model)
        if self.refuse is not None:
            (status, message), self.refuse = self.refuse, None
            return _error(status, message, "BadRequestError")
        if model not in (self.base, *self.adapters) and self.resolver is not None:
            self._take(model, self.resolver / model)
        if model not in (self.base, *self.adapters):
            return _error(404, f"The model `{model}` does not exist.", "NotFoundError")
        params = SamplingParams(
            max_tokens=body["max_tokens"],
            temperature=body["temperature"],
            top_p=body["top_p"],
            top_k=body["top_k"],
            min_p=body["min_p"],
            repetition_penalty=body["repetition_penalty"],
            presence_penalty=body["presence_penalty"],
            frequency_penalty=body["frequency_penalty"],
            logit_bias=tuple((int(token), value) for token, value in body.get("logit_bias", {}).items()),
            seed=body.get("seed"),
            stop_token_ids=tuple(body["stop_token_ids"]) if "stop_token_ids" in body else None,
            logprobs=body.get("logprobs"),
        )
        grammar = None
        if (form := body.get("response_format")) is not None:
            grammar = JsonGrammar(form["json_schema"]["schema"] if form["type"] == "json_schema" else None)
        row = DecodeRequest(tuple(body["prompt"]), self.adapters.get(model), params, grammar)
        (stream,) = await request.app.state.engine.submit([row], [model], timeout=60)
        return StreamingResponse(self._events(stream, with_logprobs=params.logprobs is not None), 200)

    async def _events(self, stream: TokenStream, *, with_logprobs: bool) -> AsyncIterator[str]:
        self.running += 1
        made, complete = 0, False
        waiting: list[Step] = []
        try:
            async for step in stream:
                if made == self.fail_after:
                    error = {"message": "EngineCore died", "type": "SomeError", "param": None, "code": self.fail_code}
                    yield _data({"error": error})
                    break
                if made == self.break_after:
                    raise ConnectionResetError
                waiting.append(step)
                made += 1
                complete = step.finish_reason is not None
                if len(waiting) == self.together or complete:
                    choice = _choice(waiting, self.decode, with_logprobs)
                    yield _data({"id": "cmpl-1", "object": "text_completion", "choices": [choice]})
                    waiting = []
            yield "data: [DONE]\n\n"
        finally:
            self.running -= 1
            self.aborted += not complete
            stream.cancel()


def _choice(steps: list[Step], decode: Decode, with_logprobs: bool) -> dict[str, Any]:
    logprobs = None
    if with_logprobs:
        logprobs = {
            "tokens": [f"token_id:{step.token}" for step in steps],
            "token_logprobs": [step.logprob for step in steps],
            # the chosen token is first, regardless of its rank
            "top_logprobs": [
                {f"token_id:{token}": value for token, value in [(s.token, s.logprob), *s.top_logprobs]} for s in steps
            ],
        }
    tokens, reason = [step.token for step in steps], steps[-1].finish_reason
    choice = {"index": 0, "text": decode(tokens), "logprobs": logprobs, "finish_reason": reason}
    return {**choice, "stop_reason": None, "token_ids": tokens}


def _data(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


def _error(status: int, message: str, kind: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)


@contextlib.contextmanager
def fake_vllm(base: str, new_decoder: Callable[[], DecoderLike], decode: Decode):  # type: ignore[no-untyped-def]
    """A server that runs until the block ends."""
    server = FakeVLLM(base, new_decoder, decode)
    try:
        yield server.start()
    finally:
        server.load_gate.set()
        server.stop()
