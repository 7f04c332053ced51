"""Routes of adapters: make, list, show, download, compose, delete; and vLLM's load and unload."""

from __future__ import annotations

import time
from typing import Annotated

import anyio
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from llgbm.prompting import AdapterRequest
from service.adapters.errors import UnknownAdapterError
from service.adapters.records import CONFIG_FILE, WEIGHTS_FILE, AdapterRecord
from service.chat.task import MAX_EXAMPLES
from service.errors import ApiError
from service.http.file_response import Part, PartsResponse, etag_of, head_only, not_modified, send_file
from service.http.forwarded import RootPath
from service.http.sse import while_connected
from service.routes import adapter_views as views
from service.routes import job_views
from service.routes.adapter_archive import archive_bytes, archive_parts, archive_sha256
from service.schemas.adapters import (
    AdapterDetail,
    AdapterPage,
    ComposeRequest,
    Deleted,
    GenerateAdapterRequest,
    GeneratedAdapter,
    LoadAdapterRequest,
    UnloadAdapterRequest,
)
from service.schemas.common import errors
from service.schemas.fine_tuning import FineTuningJob
from service.state import Ready, Services

router = APIRouter(tags=["adapters"])

_ZIP, _BYTES = "application/zip", "application/octet-stream"
_FILES: dict[int | str, dict[str, object]] = {
    200: {"description": "The adapter", "content": {_ZIP: {}, _BYTES: {}}},
    201: {"description": "The adapter, which is new", "model": GeneratedAdapter, "content": {_ZIP: {}, _BYTES: {}}},
}
_TEXT: dict[int | str, dict[str, object]] = {
    200: {"description": "The message that vLLM gives", "content": {"text/plain": {"schema": {"type": "string"}}}}
}
_BINARY: dict[int | str, dict[str, object]] = {
    200: {"description": "The file", "content": {_BYTES: {"schema": {"type": "string", "format": "binary"}}}},
    206: {"description": "A part of the file", "content": {_BYTES: {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "The client has this file"},
}


@router.post(
    "/generate-adapter",
    response_model=GeneratedAdapter | FineTuningJob,
    responses={
        **_FILES,
        202: {
            "description": "With `refine`: the job in which the adapter learns from the examples",
            "model": FineTuningJob,
        },
        **errors(400, 409, 504, 507),
    },
    summary="Make the adapter of a task",
)
async def generate_adapter(
    body: GenerateAdapterRequest, request: Request, services: Ready, prefix: RootPath
) -> Response:
    """Make an adapter from a description, examples, or both.

    The id is a hash of the request and the generator, so the same request gives the same adapter. The status is 201 for
    a new adapter and 200 for an existing one. The answer is JSON, unless `Accept` asks for a file: `application/zip`
    gives the PEFT folder, `application/octet-stream` the safetensors file.

    With `refine` the answer is a fine-tuning job: 202 while it runs, 200 if it ended within `wait_s`.
    """
    start = time.perf_counter()
    if body.refine:
        return await _refine(body, request, services, prefix)
    if len(body.pairs) > MAX_EXAMPLES:
        problem = (
            f"an adapter is made of at most {MAX_EXAMPLES} examples, not {len(body.pairs)}; refine learns from more"
        )
        raise ApiError(422, problem, param="examples")
    wanted = services.adapters.request(body.descriptions, body.pairs, body.scale)
    await services.catalogue.require_free(body.name, services.models.maker.id_of(wanted))
    outcome = await while_connected(request, services.adapters.get_or_make(wanted))
    if body.name is not None:
        await services.catalogue.name(body.name, outcome.record.id)
    status = 201 if outcome.made else 200
    headers = {"Location": f"{prefix}/adapters/{outcome.record.id}", "X-Adapter-Id": outcome.record.id}
    accept = request.headers.get("accept", "")
    if _ZIP in accept:
        return await _archive(services, outcome.record, status, headers)
    if _BYTES in accept:
        return await _tensors(services, outcome.record, status, headers)
    names = (await services.catalogue.names_of([outcome.record.id])).get(outcome.record.id, [])
    auto = await services.adapters.context_setting(wanted)
    view = views.generated(outcome.record, names, prefix, outcome.seconds, time.perf_counter() - start, auto)
    return JSONResponse(view.model_dump(mode="json"), status, headers)


async def _refine(body: GenerateAdapterRequest, request: Request, services: Services, prefix: str) -> Response:
    """Start from the adapter of the description alone, so that only the job's file holds the examples."""
    await services.catalogue.require_free(body.name, None)
    start: str | AdapterRequest = services.models.base.spec.base_id
    if body.descriptions:
        start = services.adapters.request(body.descriptions, scale=body.scale)
    job = await services.jobs.create_from_pairs(start, body.pairs, name=body.name)
    if body.wait_s:
        job = await while_connected(request, services.jobs.wait(job.id, body.wait_s))
    headers = {"Location": f"{prefix}/v1/fine_tuning/jobs/{job.id}"}
    if job.adapter is not None:
        headers["X-Adapter-Id"] = job.adapter
    return JSONResponse(job_views.job(job).model_dump(mode="json"), 200 if job.ended else 202, headers)


@router.get("/adapters", response_model=AdapterPage, responses=errors(404), summary="List adapters, the newest first")
async def list_adapters(
    services: Ready,
    prefix: RootPath,
    limit: Annotated[int, Query(ge=1, le=100, description="Adapters on a page.")] = 20,
    after: Annotated[str | None, Query(max_length=64, description="`next` of the previous page.")] = None,
) -> AdapterPage:
    """One page of the adapters in the store, without their norms."""
    records, more = await services.catalogue.page(limit, after)
    names = await services.catalogue.names_of([record.id for record in records])
    return AdapterPage(
        data=[views.adapter(record, names.get(record.id, []), prefix) for record in records],
        has_more=more,
        next=records[-1].id if more else None,
    )


@router.post(
    "/adapters/compose",
    response_model=GeneratedAdapter,
    responses={
        201: {"model": GeneratedAdapter, "description": "The adapter, which is new"},
        **errors(404, 409, 504, 507),
    },
    summary="Add adapters",
)
async def compose(body: ComposeRequest, services: Ready, response: Response, prefix: RootPath) -> GeneratedAdapter:
    """Make the weighted sum of adapters. The sum is exact, so its rank is the sum of their ranks."""
    start = time.perf_counter()
    before = await services.catalogue.composed_as(body.name, body.ids, body.weights)
    await services.catalogue.require_free(body.name, before)
    outcome = await services.adapters.compose(body.ids, body.weights)
    if body.name is not None:
        await services.catalogue.name(body.name, outcome.record.id)
    names = (await services.catalogue.names_of([outcome.record.id])).get(outcome.record.id, [])
    response.status_code = 201 if outcome.made else 200
    response.headers["Location"] = f"{prefix}/adapters/{outcome.record.id}"
    return views.generated(outcome.record, names, prefix, outcome.seconds, time.perf_counter() - start)


@router.get("/adapters/{adapter_id}", response_model=AdapterDetail, responses=errors(404), summary="Show an adapter")
async def show_adapter(adapter_id: str, services: Ready, prefix: RootPath) -> AdapterDetail:
    """Show an adapter, with the size of its effect for each module and layer."""
    record = await services.catalogue.record(adapter_id)
    names = await services.catalogue.names_of([record.id], fresh=True)
    return views.detail(record, names.get(record.id, []), prefix)


@router.delete("/adapters/{adapter_id}", response_model=Deleted, responses=errors(404), summary="Delete an adapter")
async def delete_adapter(adapter_id: str, services: Ready) -> Deleted:
    """Delete an adapter and its names. Answers that use it at the moment are completed."""
    return Deleted(id=await services.catalogue.delete(adapter_id))


async def _file(services: Services, request: Request, adapter_id: str, name: str, media_type: str) -> Response:
    record = await services.catalogue.record(adapter_id)
    fact = record.files[name]
    try:
        return await send_file(
            request,
            await services.catalogue.folder(record.id) / name,
            size=fact.bytes,
            sha256=fact.sha256,
            media_type=media_type,
            filename=name,
        )
    except FileNotFoundError:
        raise UnknownAdapterError(adapter_id) from None


@router.get(
    "/adapters/{adapter_id}/adapter_model.safetensors",
    response_class=Response,
    responses={**_BINARY, **errors(404, 416)},
    summary="Download the tensors",
)
async def adapter_weights(adapter_id: str, request: Request, services: Ready) -> Response:
    """The tensors as PEFT writes them, with a strong ETag and byte ranges."""
    return await _file(services, request, adapter_id, WEIGHTS_FILE, _BYTES)


@router.get(
    "/adapters/{adapter_id}/adapter_config.json",
    response_class=Response,
    responses={
        200: {"description": "PEFT's configuration", "content": {"application/json": {"schema": {"type": "object"}}}},
        206: {"description": "A part of the file", "content": {"application/json": {}}},
        304: {"description": "The client has this file"},
        **errors(404, 416),
    },
    summary="Download the configuration",
)
async def adapter_configuration(adapter_id: str, request: Request, services: Ready) -> Response:
    """`adapter_config.json` as PEFT writes it."""
    return await _file(services, request, adapter_id, CONFIG_FILE, "application/json")


@router.get(
    "/adapters/{adapter_id}/archive",
    response_class=Response,
    responses={
        200: {"description": "The zip", "content": {_ZIP: {"schema": {"type": "string", "format": "binary"}}}},
        304: {"description": "The client has this file"},
        **errors(404),
    },
    summary="Download the PEFT folder as a zip",
)
async def adapter_archive(adapter_id: str, request: Request, services: Ready) -> Response:
    """A zip with one folder, for `PeftModel.from_pretrained`."""
    record = await services.catalogue.record(adapter_id)
    unchanged = not_modified(request, etag_of(archive_sha256(record)))
    return unchanged or await _archive(services, record, 200, {}, head=request.method == "HEAD")


async def _tensors(services: Services, record: AdapterRecord, status: int, headers: dict[str, str]) -> Response:
    fact = record.files[WEIGHTS_FILE]
    headers = {**headers, "ETag": etag_of(fact.sha256)}
    try:
        file = await anyio.open_file(await services.catalogue.folder(record.id) / WEIGHTS_FILE, "rb")
    except FileNotFoundError:
        raise UnknownAdapterError(record.id) from None
    return PartsResponse([Part(file, 0, fact.bytes)], status, headers, _BYTES)


async def _archive(
    services: Services, record: AdapterRecord, status: int, headers: dict[str, str], *, head: bool = False
) -> Response:
    headers = {
        **headers,
        "ETag": etag_of(archive_sha256(record)),
        "Content-Disposition": f'attachment; filename="{record.id}.zip"',
    }
    if head:
        return head_only(archive_bytes(record), status, headers, _ZIP)
    try:
        parts = await archive_parts(await services.catalogue.folder(record.id), record)
    except FileNotFoundError:
        raise UnknownAdapterError(record.id) from None
    return PartsResponse(parts, status, headers, _ZIP)


@router.post(
    "/v1/load_lora_adapter",
    response_class=Response,
    responses={**_TEXT, **errors(400, 403, 404, 504, 507)},
    summary="Load a PEFT folder, as vLLM does",
)
async def load_lora_adapter(body: LoadAdapterRequest, services: Ready) -> Response:
    """Check the PEFT folder `lora_path`, copy it into the store and give the adapter the name `lora_name`.

    The answer has a warning if the folder names another base than the service's.
    """
    await services.catalogue.require_free(body.lora_name, None, taken_status=400)
    outcome = await services.adapters.load(body.lora_path)
    await services.catalogue.name(body.lora_name, outcome.record.id, taken_status=400)
    warning = "" if outcome.record.warning is None else f" Warning: {outcome.record.warning}."
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.{warning}")


@router.post(
    "/v1/unload_lora_adapter",
    response_class=Response,
    responses={**_TEXT, **errors(400, 404)},
    summary="Unload an adapter, as vLLM does",
)
async def unload_lora_adapter(body: UnloadAdapterRequest, services: Ready) -> Response:
    """Remove the name. A loaded adapter without another name is deleted."""
    await services.catalogue.unload(body.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")
