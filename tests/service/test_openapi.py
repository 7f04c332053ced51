from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from service.app import create_app
from service.openapi import DOCUMENT, main, with_fields
from service.routes.openapi_document import MODULES, text
from service.settings import TABLE_DOCUMENT
from tests.service.support.harness import make_settings


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    return create_app(make_settings(tmp_path)).openapi()


def test_the_committed_document_is_current(document: dict[str, Any]) -> None:
    assert DOCUMENT.read_text("utf-8") == text(document), "run: python -m service.openapi --write"


def test_the_committed_table_of_fields_is_current() -> None:
    document = TABLE_DOCUMENT.read_text("utf-8")
    assert with_fields(document) == document, "run: python -m service.openapi --write"


def test_the_document_can_be_printed(document: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert json.loads(capsys.readouterr().out) == document


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        here = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return here.union(*map(references, node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for reference in references(document):
        node = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_every_link_leads_to_an_operation_that_takes_what_it_gives(document: dict[str, Any]) -> None:
    operations = {o["operationId"]: o for methods in document["paths"].values() for o in methods.values()}
    count = 0
    for source in operations.values():
        for response in source["responses"].values():
            for link in response.get("links", {}).values():
                taken = {parameter["name"] for parameter in operations[link["operationId"]]["parameters"]}
                assert link["parameters"].keys() <= taken
                count += 1
    assert count > 20


def test_every_operation_has_a_summary_a_description_and_the_common_errors(document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["summary"], path
            assert operation["description"], path
            if path not in ("/livez", "/readyz"):
                assert {"401", "413", "422", "429", "500", "503"} <= set(operation["responses"]), path


def test_the_examples_are_valid(document: dict[str, Any]) -> None:
    for name, schema in document["components"]["schemas"].items():
        model = next((getattr(module, name) for module in MODULES if hasattr(module, name)), None)
        assert model is not None, name
        assert schema["examples"], name
        for example in schema["examples"]:
            TypeAdapter(model).validate_python(example)
