"""The OpenAPI document: FastAPI's, with the events of streams, the API key and links added."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.schemas import (
    adapters,
    chat,
    chat_completion,
    common,
    files,
    fine_tuning,
    messages,
    openai,
    ops,
    response_format,
)

MODULES = (adapters, chat, chat_completion, common, files, fine_tuning, messages, openai, ops, response_format)
"""The modules of the request and response models."""
_ON_AN_ADAPTER = ("show_adapter", "adapter_weights", "adapter_configuration", "adapter_archive", "delete_adapter")


def install(app: FastAPI) -> None:
    """Make `app` serve the complete document."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = complete(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def complete(app: FastAPI) -> dict[str, Any]:
    """The document of an application."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=(
            "Makes a LoRA adapter for a frozen Qwen2.5 from the description of a task. Chat with the adapter here, or "
            "download it in PEFT's format. The routes under /v1 follow OpenAI's protocol, with adapters as models."
        ),
        routes=app.routes,
    )
    schemas = document["components"]["schemas"]
    # FastAPI does not know the events of a stream
    chunk = openai.ChatCompletionChunk.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(chunk.pop("$defs", {}))
    schemas["ChatCompletionChunk"] = chunk
    # FastAPI adds a model for the form of an upload; the schema of the form itself is enough
    form = document["paths"]["/v1/files"]["post"]["requestBody"]["content"]["multipart/form-data"]
    form["schema"] = schemas.pop(form["schema"]["$ref"].rpartition("/")[2])
    for module in MODULES:
        for name, model in vars(module).items():
            if name in schemas and "examples" in (
                extra := getattr(model, "model_config", {}).get("json_schema_extra", {})
            ):
                schemas[name]["examples"] = extra["examples"]  # FastAPI removes the nulls of examples
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    document["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "Needed only if LLGBM_API_KEY_HASHES is set."}
    }
    document["security"] = [{}, {"key": []}]
    _link(document["paths"])
    return document


def _link(paths: dict[str, Any]) -> None:
    """Add the operations that use a value of an answer."""

    def adapter(identity: str) -> dict[str, Any]:
        return {
            operation: {"operationId": operation, "parameters": {"adapter_id": f"$response.body#/{identity}"}}
            for operation in _ON_AN_ADAPTER
        }

    for path in ("/generate-adapter", "/adapters/compose"):
        for status in ("200", "201"):
            paths[path]["post"]["responses"][status]["links"] = adapter("id")
    paths["/adapters/{adapter_id}"]["get"]["responses"]["200"]["links"] = adapter("id")
    paths["/chat"]["post"]["responses"]["200"]["links"] = adapter("adapter_id")
    paths["/adapters"]["get"]["responses"]["200"]["links"] = {
        "next_page": {"operationId": "list_adapters", "parameters": {"after": "$response.body#/next"}}
    }


def text(document: dict[str, Any]) -> str:
    """The text of the document, as in openapi.json."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
