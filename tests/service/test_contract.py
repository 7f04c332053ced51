"""schemathesis holds the running service to openapi.json: no 5xx, no answer that the document does not allow."""

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
from llgbm.decoding import Row
from llgbm.prompting import AdapterMaker
from service.metrics import Metrics
from service.models import Models, Progress, embedding_cache
from service.openapi import DOCUMENT
from service.settings import Settings
from tests.service.dummy_decoder import DummyDecoder
from tests.service.harness import LiveServer, live, make_settings

OPERATIONS = [
    pytest.param(path, method, id=f"{method.upper()} {path}")
    for path, methods in json.loads(DOCUMENT.read_text("utf-8"))["paths"].items()
    for method in methods
]
# some rules, such as "prompt or adapter_id, not both", are in the descriptions and not in the schema
CONFIG = SchemathesisConfig.from_dict({"checks": {"positive_data_acceptance": {"enabled": False}}})
EXAMPLES = hypothesis_settings(
    max_examples=20, stateful_step_count=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_base: Base, tiny_maker: AdapterMaker) -> Iterator[LiveServer]:
    end = tiny_base.tokenizer.convert_tokens_to_ids("<|im_end|>")

    def script(_: Row) -> list[int]:
        return [65, 66, 67, end]

    def load(settings: Settings, metrics: Metrics, progress: Progress) -> Models:
        return Models(tiny_base, tiny_maker, lambda: DummyDecoder(script), 4096, embedding_cache(settings, metrics))

    folder = tmp_path_factory.mktemp("contract")
    with live(make_settings(folder, adapter_roots=(folder,), max_queue=1000), load) as served:
        yield served


@pytest.fixture(scope="module")
def api(server: LiveServer) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=CONFIG)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_operation_answers_as_its_document_says(
    api: schemathesis.BaseSchema, path: str, method: str, mode: GenerationMode
) -> None:
    operation = api[path][method]
    if mode == GenerationMode.NEGATIVE and not (operation.body or operation.query):
        return  # nothing in it can be wrong

    @EXAMPLES
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case[Any]) -> None:
        case.call_and_validate()

    check()


def test_sequences_of_operations_too(api: schemathesis.BaseSchema) -> None:
    api.as_state_machine().run(settings=EXAMPLES)
