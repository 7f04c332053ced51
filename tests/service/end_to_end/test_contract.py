"""schemathesis compares the running service with openapi.json: no 5xx, and only documented responses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from schemathesis.config import SchemathesisConfig
from schemathesis.generation import GenerationMode

from llgbm.base import Base
from llgbm.decoding.decoder import DecodeRequest
from llgbm.prompting import AdapterMaker
from service.documents import OPENAPI
from service.models.loading import Models, Progress, embedding_cache
from service.observability.metrics import Metrics
from service.settings import Settings
from tests.service.support.dummy_decoder import DummyDecoder
from tests.service.support.harness import LiveServer, live, make_settings, services_of

PATHS = json.loads(OPENAPI.read_text("utf-8"))["paths"]
OPERATIONS = [(path, method) for path, methods in PATHS.items() for method in methods]
WITH_INPUT = [
    (path, method)
    for path, method in OPERATIONS
    if {"requestBody", "parameters"} & PATHS[path][method].keys() and "{" not in path  # any text may be an id
]
# some rules, such as "prompt or adapter_id, not both", are only in the descriptions, not in the schema
CONFIG = SchemathesisConfig.from_dict(
    {
        # An adapter that is made again has its old id, which the check for deleted resources reports as an error.
        # The test of sequences looks into the store instead.
        "checks": {"positive_data_acceptance": {"enabled": False}, "use_after_free": {"enabled": False}},
        # only the document's links, no guessed ones
        "phases": {"stateful": {"inference": {"algorithms": []}}},
    }
)
EXAMPLES = hypothesis_settings(
    max_examples=20, stateful_step_count=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_base: Base, tiny_maker: AdapterMaker) -> Iterator[LiveServer]:
    end = tiny_base.tokenizer.convert_tokens_to_ids("<|im_end|>")

    def script(_: DecodeRequest) -> list[int]:
        return [65, 66, 67, end]

    def load(settings: Settings, metrics: Metrics, progress: Progress) -> Models:
        return Models(tiny_base, tiny_maker, lambda: DummyDecoder(script), 4096, embedding_cache(settings, metrics))

    folder = tmp_path_factory.mktemp("contract")
    with live(make_settings(folder, adapter_roots=(folder,), max_queue=1000, refine_queue=0), load) as served:
        yield served


@pytest.fixture(scope="module")
def api(server: LiveServer) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=CONFIG)


def validate(operation: Any, mode: GenerationMode, **call: Any) -> set[int]:
    """Call an operation with many requests; returns the statuses of the responses."""
    statuses = set()

    @EXAMPLES
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case[Any]) -> None:
        statuses.add(case.call_and_validate(**call).status_code)

    check()
    return statuses


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_valid_requests_are_answered_as_the_document_says(api: schemathesis.BaseSchema, path: str, method: str) -> None:
    validate(api[path][method], GenerationMode.POSITIVE)


@pytest.mark.parametrize(("path", "method"), WITH_INPUT)
def test_invalid_requests_are_refused_as_the_document_says(
    api: schemathesis.BaseSchema, path: str, method: str
) -> None:
    assert max(validate(api[path][method], GenerationMode.NEGATIVE)) in range(400, 500)


@pytest.mark.parametrize("accept", ["application/zip", "application/octet-stream"])
def test_files_in_place_of_json_are_in_the_document_too(api: schemathesis.BaseSchema, accept: str) -> None:
    generate = api["/generate-adapter"]["post"]
    assert validate(generate, GenerationMode.POSITIVE, headers={"Accept": accept}) & {200, 201}


def test_sequences_of_operations_follow_the_links(api: schemathesis.BaseSchema, server: LiveServer) -> None:
    """Make, show, download and delete in any order; deleted adapters are not found."""
    workflow: Any = api.as_state_machine()
    seen: set[tuple[str, int]] = set()
    store = services_of(server.app).store

    class Recorded(workflow):  # type: ignore[misc]
        def setup(self) -> None:
            super().setup()
            for record in store.files.records():  # so that each sequence starts with an empty store
                store.delete(record.id)

        def after_call(self, response: Any, case: schemathesis.Case[Any]) -> None:
            super().after_call(response, case)
            seen.add((case.operation.label, response.status_code))
            identity = (case.path_parameters or {}).get("adapter_id", "")
            if case.operation.method.lower() == "get" and identity.startswith("lora-"):
                assert (response.status_code == 404) == (not store.files.exists(identity))

    Recorded.run(settings=hypothesis_settings(EXAMPLES, max_examples=200))
    adapter = "/adapters/{adapter_id}"
    files = {f"GET {adapter}/{name}" for name in ("adapter_model.safetensors", "adapter_config.json", "archive")}
    found = {label for label, status in seen if status in (200, 201)}
    gone = {label for label, status in seen if status == 404}
    assert found >= {"POST /generate-adapter", f"GET {adapter}", f"DELETE {adapter}", "GET /adapters"} | files
    assert f"GET {adapter}" in gone
