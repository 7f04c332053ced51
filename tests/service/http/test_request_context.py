from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import structlog
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from llgbm.errors import CheckpointError
from service.http.request_id import REQUEST_ID
from service.models.loading import LoadModels
from service.observability.logs import configure_logging
from service.observability.tracing import tracing
from service.setting_values import without_password
from service.settings import Settings
from tests.service.support.dummy_decoder import DummyDecoder
from tests.service.support.harness import Serving, running


class Lines:
    """The log, line by line."""

    def __init__(self, settings: Settings) -> None:
        configure_logging(settings)
        self.stream = io.StringIO()
        for handler in logging.getLogger().handlers:
            if getattr(handler, "llgbm", False):
                handler.setStream(self.stream)  # type: ignore[attr-defined]

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.text.splitlines()]
        return [line for line in lines if line["event"] == name]


@pytest.fixture
def lines(settings: Settings) -> Iterator[Lines]:
    yield Lines(settings.model_copy(update={"log_level": "info"}))
    configure_logging(settings)


async def test_a_request_is_one_json_line_with_its_id_and_without_what_it_said(
    settings: Settings, load_dummy: LoadModels
) -> None:
    loud = settings.model_copy(update={"log_level": "info"})
    async with running(loud, load_dummy) as (_, client):
        lines = Lines(loud)
        body = {"prompt": "private task", "query": "private question"}
        answer = await client.post("/chat", json=body, headers={"X-Request-ID": "my-id-1", "Authorization": "Bearer k"})
        await client.get("/adapters/private-name?x=private")
    first, second = lines.events("request")
    assert (first["method"], first["route"], first["status"], first["level"]) == ("POST", "/chat", 200, "info")
    assert first["request_id"] == answer.headers["X-Request-ID"] == "my-id-1"
    assert first["milliseconds"] > 0
    assert (second["route"], second["status"]) == ("/adapters/{adapter_id}", 404)
    assert "private" not in lines.text
    assert "Bearer" not in lines.text


@pytest.mark.parametrize("given", ["", "has space", "x" * 65, "new\tline", "é", 'quote"'])
async def test_an_id_that_is_not_sane_is_replaced(client: httpx.AsyncClient, given: str) -> None:
    answer = await client.get("/livez", headers={b"X-Request-ID": given.encode()})
    assert answer.headers["X-Request-ID"] != given
    assert len(answer.headers["X-Request-ID"]) == 32


async def test_ids_differ_and_end_with_their_request(client: httpx.AsyncClient) -> None:
    ids = {(await client.get("/livez")).headers["X-Request-ID"] for _ in range(5)}
    assert len(ids) == 5
    assert REQUEST_ID.get() == ""


async def test_a_fault_is_500_with_an_id_that_the_log_has_and_nothing_else(
    dummy_app: tuple[FastAPI, httpx.AsyncClient], lines: Lines
) -> None:
    app, client = dummy_app

    @app.get("/broken")
    async def broken() -> None:
        raise ValueError("private inside")

    answer = await client.get("/broken")
    assert answer.status_code == 500
    assert "private" not in answer.text
    (event,) = lines.events("internal_error")
    assert event["request_id"] == answer.json()["request_id"]
    assert event["exception"].startswith("ValueError\n")
    assert "test_request_context.py" in event["exception"]
    assert "private" not in lines.text


async def test_a_failed_step_logs_no_prompt(
    dummy_app: tuple[FastAPI, httpx.AsyncClient], dummy: DummyDecoder, lines: Lines
) -> None:
    dummy.fail_step = KeyError("private tokens")
    await dummy_app[1].post("/chat", json={"prompt": "private task", "query": "private question"})
    (event,) = lines.events("step_failed")
    assert event["exception"].startswith("KeyError\n")
    assert "private" not in lines.text


def test_our_own_errors_are_quoted_with_their_causes(lines: Lines) -> None:
    try:
        try:
            raise KeyError("private")
        except KeyError as error:
            raise CheckpointError("no generator there") from error
    except CheckpointError:
        structlog.get_logger("service").exception("failed")
        logging.getLogger("uvicorn.error").error("foreign", exc_info=True)
    for name in ("failed", "foreign"):
        (event,) = lines.events(name)
        assert event["exception"].startswith("CheckpointError: no generator there\n")
        assert "\nKeyError\n" in event["exception"]
    assert "private" not in lines.text


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_records_of_the_standard_library_have_the_same_form(settings: Settings, log_format: str) -> None:
    lines = Lines(settings.model_copy(update={"log_level": "info", "log_format": log_format}))
    structlog.get_logger("service").info("ours", number=3)
    logging.getLogger("uvicorn.error").info("Started on %s", "port")
    logging.getLogger("some.library").info("too low")
    logging.getLogger("some.library").warning("careful")
    assert len(lines.text.splitlines()) == 3
    if log_format == "json":
        assert lines.events("ours")[0]["number"] == 3
        assert lines.events("Started on port")[0]["level"] == "info"
    configure_logging(settings)


def test_tracing_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    with pytest.raises(RuntimeError, match=r"pip install -e '\.\[otel\]'"):
        tracing(wanted=True)


@pytest.mark.parametrize("wanted", [True, False])
async def test_requests_are_spans_only_where_tracing_is_asked_for(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    async with serving(otel=wanted) as (_, client):
        await client.get("/livez")
        await client.post("/chat", json={"prompt": "a secret task", "query": "a secret"})
    spans = exporter.get_finished_spans()
    routes = {span.attributes["http.route"] for span in spans if span.attributes}
    assert routes == ({"/livez", "/chat"} if wanted else set())
    assert "secret" not in "".join(span.to_json() for span in spans)


@pytest.mark.parametrize(
    ("address", "logged"),
    [
        ("s3://key:secret@bucket/adapters", "s3://bucket/adapters"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("/var/lib/adapters@home", "/var/lib/adapters@home"),
    ],
)
def test_an_address_is_logged_without_its_password(address: str, logged: str) -> None:
    assert without_password(address) == logged
