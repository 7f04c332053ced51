"""The files of an adapter: the zip, tensors and configuration, with ETags, ranges and in chunks."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from llgbm.adapters.peft_io import content_digest, load_peft
from service.adapters.records import WEIGHTS_FILE
from service.http import file_response
from tests.service.routes.test_adapters import FRENCH, App, make


async def test_the_zip_is_a_peft_folder(client: httpx.AsyncClient, tmp_path: Path) -> None:
    made = await make(client, "a task")
    data = (await client.get(f"/adapters/{made['id']}/archive")).content
    zipfile.ZipFile(io.BytesIO(data)).extractall(tmp_path)
    weights, base = load_peft(tmp_path / str(made["id"]))
    assert content_digest(weights) == made["digest"]
    assert base == made["base"]
    assert (await client.get(f"/adapters/{made['id']}/archive")).content == data


async def test_files_are_sent_in_chunks_so_that_what_a_client_does_not_read_takes_no_memory(
    dummy_app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, client = dummy_app
    made = await make(client, FRENCH["prompt"])
    sizes: list[int] = []

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        async def note(message: Message) -> None:
            sizes.append(len(message.get("body", b"")))
            await send(message)

        await app(scope, receive, note)

    monkeypatch.setattr(file_response, "CHUNK_BYTES", 1000)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=watched), base_url="http://test") as watching:
        answers = [await watching.get(f"/adapters/{made['id']}/{name}") for name in (WEIGHTS_FILE, "archive")]
        for accept in ("application/octet-stream", "application/zip"):
            answers.append(await watching.post("/generate-adapter", json=FRENCH, headers={"Accept": accept}))
    assert max(sizes) == 1000
    for answer in answers:
        assert len(answer.content) == int(answer.headers["Content-Length"]) > 10_000


async def test_head_of_an_archive_opens_no_file(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"/adapters/{(await make(client, 'a task'))['id']}/archive"
    full = await client.get(path)
    monkeypatch.setattr("anyio.open_file", None)
    head = await client.head(path)
    assert (head.status_code, head.content, head.headers["Content-Length"]) == (200, b"", str(len(full.content)))


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", "archive"])
async def test_files_have_strong_etags_and_304(client: httpx.AsyncClient, file: str) -> None:
    made = await make(client, "a task")
    path = f"/adapters/{made['id']}/{file}"
    full = await client.get(path)
    etag = full.headers["ETag"]
    if file != "archive":
        assert etag == f'"{hashlib.sha256(full.content).hexdigest()}"'
    for given in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        answer = await client.get(path, headers={"If-None-Match": given})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["ETag"] == etag
    assert (await client.get(path, headers={"If-None-Match": '"other"'})).content == full.content
    head = await client.head(path)
    assert (head.status_code, head.headers["ETag"]) == (200, etag)
    assert head.headers["Content-Length"] == full.headers["Content-Length"]


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [("bytes=0-9", 0, 10), ("bytes=10-", 10, None), ("bytes=-7", -7, None), ("bytes=0-99999999", 0, None)],
)
async def test_a_range_is_answered_with_206(
    client: httpx.AsyncClient, header: str, start: int, stop: int | None
) -> None:
    path = f"/adapters/{(await make(client, 'a task'))['id']}/adapter_model.safetensors"
    full = (await client.get(path)).content
    part = await client.get(path, headers={"Range": header})
    assert part.status_code == 206
    assert part.content == full[start:stop]
    begin = start % len(full)
    assert part.headers["Content-Range"] == f"bytes {begin}-{begin + len(part.content) - 1}/{len(full)}"


@pytest.mark.parametrize("header", ["bytes=a-b", "lines=0-1", "bytes=9-3", "bytes=0-1,5-6", "bytes=-", "x" * 500])
async def test_a_range_that_means_nothing_gets_the_whole(client: httpx.AsyncClient, header: str) -> None:
    path = f"/adapters/{(await make(client, 'a task'))['id']}/adapter_model.safetensors"
    answer = await client.get(path, headers={"Range": header})
    assert answer.status_code == 200
    assert int(answer.headers["Content-Length"]) == len(answer.content)


async def test_a_range_beyond_the_end_is_416_and_an_old_if_range_gets_the_whole(client: httpx.AsyncClient) -> None:
    path = f"/adapters/{(await make(client, 'a task'))['id']}/adapter_model.safetensors"
    size = len((await client.get(path)).content)
    beyond = await client.get(path, headers={"Range": f"bytes={size}-"})
    assert beyond.status_code == 416
    assert beyond.headers["Content-Range"] == f"bytes */{size}"
    assert beyond.json()["error"]["code"] == "range_not_satisfiable"
    old = await client.get(path, headers={"Range": "bytes=0-1", "If-Range": '"old"'})
    assert (old.status_code, len(old.content)) == (200, size)
