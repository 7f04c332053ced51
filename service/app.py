"""The application: its parts, its start and its stop. The main path of the service.

    request -> RequestContext (id, log, metrics) -> AccessMiddleware (key, rate, size) -> JsonBodies -> a route
      /generate-adapter   AdapterService.get_or_make -> Engine.run(AdapterMaker.make) -> AdapterFiles.write
      /chat, /v1/...      ChatService.start -> AdapterStore.acquire -> DecodingEngine.submit -> tokens -> text

`DecodingEngine` is the Engine of this process, or VLLMEngine, which sends rows to vLLM servers.

The process listens immediately and loads the models in the background; /readyz answers 503 until they are loaded. To
stop, it drains: /readyz answers 503, new requests are refused, and running answers may finish until a deadline. Answers
that are still running then end with an error that their clients see.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import structlog
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from llgbm.errors import LLGBMError
from service import routes
from service.adapters.catalogue import AdapterCatalogue
from service.adapters.generation_lock import GenerationLock
from service.adapters.index import AdapterIndex, index_path
from service.adapters.service import AdapterService
from service.adapters.shared_files import open_files
from service.adapters.store import AdapterStore
from service.chat.service import ChatService
from service.engine.interface import DecodingEngine, EngineError, EngineLimits, StoppedError
from service.engine.torch_engine import Engine
from service.engine.worker_threads import worker_threads
from service.environment import service_links
from service.http import errors
from service.http.forwarded import ForwardedMiddleware
from service.http.json_body import JsonBodies
from service.http.request_context import RequestContext
from service.http.security import AccessMiddleware, rate_limiter
from service.jobs.service import JobService
from service.models.loading import LoadModels, load_models
from service.observability.logs import configure_logging
from service.observability.metrics import Metrics
from service.observability.tracing import tracing
from service.routes import openapi_document
from service.setting_values import without_password
from service.settings import Settings, unknown_variables
from service.state import Services, State

_log = structlog.get_logger("service")
_LOADING_PATIENCE = 1.0
"""Seconds that a shutdown waits for models that are being loaded."""


def create_app(settings: Settings | None = None, *, load: LoadModels = load_models) -> FastAPI:
    """The application. `load` loads the models; tests replace it by a faster function."""
    settings = settings or Settings()
    configure_logging(settings)
    if links := service_links(os.environ):
        _log.info("kubernetes_service_links_left_aside", names=links)
    for name in unknown_variables(os.environ):
        _log.warning("unknown_setting", name=name)
    metrics = Metrics()
    state = State(settings, metrics)
    limiter = rate_limiter(settings)
    lock = GenerationLock.from_settings(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(worker_threads())
        engine = Engine(
            EngineLimits(settings.max_batch, settings.batch_tokens, settings.max_queue, settings.max_jobs),
            metrics,
            on_death=lambda: loop.call_soon_threadsafe(_fail, state, "the engine has stopped"),
        )
        engine.start()
        loading = asyncio.create_task(_load(state, engine, lock, load))
        try:
            yield
        finally:
            await drain(state, seconds=settings.drain_seconds)
            loading.cancel()
            if state.services is not None:
                await state.services.decoding.stop()
            # models may take minutes to load, and nothing is lost if that is interrupted
            await engine.stop(patience=_LOADING_PATIENCE if state.services is None else None)
            await asyncio.gather(loading, return_exceptions=True)
            if state.services is not None:
                state.services.models.cache.close()
                await asyncio.to_thread(state.services.jobs.close)
                await asyncio.to_thread(state.services.catalogue.close)
            await lock.close()
            if limiter is not None:
                await limiter.close()

    app = FastAPI(
        title="LLGBM",
        summary="Makes a LoRA adapter from a sentence that describes a task, and serves it",
        version=version("llgbm"),
        lifespan=lifespan,
        telemetry=tracing(settings.otel),
        # the interactive documentation would load scripts from other machines
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # ForwardedMiddleware takes the slashes off
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.llgbm = state
    errors.install(app)
    openapi_document.install(app)
    for router in routes.ROUTERS:
        app.include_router(router)
    app.add_middleware(JsonBodies)
    # The last one added is the outermost. CORS is outside of all others, so that every response has its headers.
    app.add_middleware(AccessMiddleware, settings=settings, limiter=limiter, metrics=metrics)
    app.add_middleware(RequestContext, metrics=metrics, counter=state)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            allow_private_network=True,  # an allowed page on the internet may call a service in a local network
            expose_headers=["ETag", "Location", "Retry-After", "X-Adapter-Id", "X-Request-ID"],
        )
    app.add_middleware(ForwardedMiddleware, root_path=settings.root_path, trusted=settings.trusted_proxies)
    return app


async def _load(state: State, engine: Engine, lock: GenerationLock, load: LoadModels) -> None:
    """Load the models in the torch thread and open the routes; /readyz and the log report failures."""
    start = time.perf_counter()
    try:
        services = await _loaded(state, engine, lock, load)
    except StoppedError:
        return
    except (LLGBMError, EngineError, OSError) as error:
        _log.error("loading_failed", error=str(error))
        _fail(state, str(error))
        return
    except Exception as error:
        _log.exception("loading_failed")
        _fail(state, f"{type(error).__name__}; the log says more")
        return
    state.services = services
    _log.info(
        "ready",
        seconds=round(time.perf_counter() - start, 1),
        base=services.models.base.spec.base_id,
        base_revision=services.models.base.revision,
        base_storage=services.models.base_storage,
        generator=services.models.generator_digest[:12],
        store=without_password(state.settings.store_url or str(state.settings.store_dir)),
        keys=len(state.settings.api_key_hashes),  # 0: everyone who reaches the port has full access
    )


async def _loaded(state: State, engine: Engine, lock: GenerationLock, load: LoadModels) -> Services:
    settings, metrics = state.settings, state.metrics

    def progress(text: str) -> None:
        state.progress = text

    models = await engine.run(lambda: load(settings, metrics, progress))
    files = await asyncio.to_thread(open_files, settings.store_dir, settings.store_url, settings.copy_bytes)
    path = index_path(settings.cache_dir, settings.store_url or str(settings.store_dir.resolve()))
    index = await asyncio.to_thread(AdapterIndex, files, path)
    await asyncio.to_thread(index.catch_up, 0.0)  # starts a scan, so that the index is ready for the first list
    store = AdapterStore(
        files, models.base.spec, max_bytes=settings.adapter_memory, metrics=metrics, strict_base=settings.strict_base
    )
    catalogue = AdapterCatalogue(store, index, models.base.spec.base_id, metrics)
    adapters = AdapterService(settings, models, engine, store, catalogue, lock, metrics)
    decoding: DecodingEngine = engine
    if settings.engine == "vllm":
        from service.engine.vllm_engine import VLLMEngine  # here, because nothing else needs its HTTP client

        decoding = VLLMEngine(settings, metrics, adapters.verify)
        await decoding.start()
    elif models.new_decoder is not None:
        engine.attach(models.new_decoder)
    chat = ChatService(settings, models, decoding, adapters, catalogue)
    jobs = JobService(settings, models, adapters, catalogue, metrics)
    return Services(models, engine, decoding, store, catalogue, adapters, chat, jobs, started=int(time.time()))


def _fail(state: State, reason: str) -> None:
    state.failure = reason
    state.on_failure()


async def drain(state: State, *, seconds: float) -> None:
    """Refuse new requests, wait up to `seconds` for active ones, then end them with an error. May be called twice."""
    state.draining = True
    deadline = time.monotonic() + seconds
    while state.active and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    if state.active and state.services is not None:
        _log.warning("drain_deadline", requests=state.active)
        end_answers(state)
        grace = time.monotonic() + 2
        while state.active and time.monotonic() < grace:
            await asyncio.sleep(0.05)


def end_answers(state: State) -> None:
    """End all running answers with an error that their clients see, and all requests that wait for jobs."""
    if state.services is not None:
        state.services.decoding.end_rows(StoppedError("the service is shutting down and the answer was not complete"))
        state.services.jobs.end_waiting()
