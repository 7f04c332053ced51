from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from service import documents
from service.app import create_app
from service.documents import OPENAPI, OPERATIONS, settings_table, with_tables
from service.routes.openapi_document import MODULES, text
from service.settings import Settings
from tests.service.support.harness import make_settings

COMMAND = "python -m service.documents"


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    return create_app(make_settings(tmp_path)).openapi()


def test_the_committed_document_is_current(document: dict[str, Any]) -> None:
    assert OPENAPI.read_text("utf-8") == text(document), f"run: {COMMAND}"


def test_the_committed_tables_are_current() -> None:
    document = OPERATIONS.read_text("utf-8")
    assert with_tables(document) == document, f"run: {COMMAND}"
    with pytest.raises(ValueError, match="must hold the lines"):
        with_tables("no marks")


def test_the_command_writes_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, path in (("OPENAPI", OPENAPI), ("OPERATIONS", OPERATIONS)):
        monkeypatch.setattr(documents, name, tmp_path / path.name)
    emptied = re.sub(
        r"(: start -->\n).*?(<!-- [\w ]+: end -->)", r"\1\2", OPERATIONS.read_text("utf-8"), flags=re.DOTALL
    )
    (tmp_path / "OPERATIONS.md").write_text(emptied, "utf-8")
    documents.main()
    for path in (OPENAPI, OPERATIONS):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_every_setting_is_described_and_in_the_table() -> None:
    rows = re.findall(r"^\| `LLGBM_(\w+)` \| (.+?) \| (.+) \|$", settings_table(), re.MULTILINE)
    assert [name.lower() for name, _, _ in rows] == list(Settings.model_fields)
    assert all(default and len(text) > 15 for _, default, text in rows)


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
