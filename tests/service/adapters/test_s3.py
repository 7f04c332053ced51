"""The store in a bucket over the S3 protocol: uploads, two replicas, an outage, and an interrupted upload."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import httpx
import pytest

from llgbm.adapters.peft_io import content_digest
from llgbm.config import lora_spec
from service.adapters.errors import AdapterDamagedError, NameTakenError, StoreUnavailableError
from service.adapters.index import AdapterIndex
from service.adapters.records import RECORD_FILE, WEIGHTS_FILE
from service.adapters.shared_files import SharedFiles
from service.models.loading import LoadModels
from tests.fixtures import random_lora
from tests.service.adapters.conftest import Pair
from tests.service.support.harness import make_settings, running, services_of
from tests.service.support.records import identity, record
from tests.service.support.s3_server import S3Server

WEIGHTS = random_lora(lora_spec("tiny"), 1)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    server = S3Server()
    with mock.patch.dict(os.environ, server.environment):
        yield server
    server.stop()


@pytest.fixture
def url(s3: S3Server) -> str:
    import s3fs

    bucket = uuid.uuid4().hex
    s3fs.S3FileSystem().mkdir(bucket)
    return f"s3://{bucket}/adapters"


@pytest.fixture(autouse=True)
def gate_is_open(s3: S3Server) -> Iterator[None]:
    yield
    s3.gate.open, s3.gate.cut_after = True, None


def test_what_one_machine_writes_another_reads_names_lists_and_deletes(
    pair: Pair, tmp_path: Path, no_delay: None
) -> None:
    one, two = pair
    stored, made = one.write(WEIGHTS, record(WEIGHTS))
    assert made
    assert two.write(WEIGHTS, record(WEIGHTS, created=9)) == (stored, False)
    assert content_digest(two.read(stored.id)) == content_digest(WEIGHTS)
    one.name("french", stored.id)
    assert two.resolve("french") == stored.id
    two.write(WEIGHTS, record(WEIGHTS, 2))
    with pytest.raises(NameTakenError):
        two.name("french", identity(2))
    index = AdapterIndex(two, tmp_path / "index.sqlite")
    index.catch_up(60)
    assert index.ids(5, None) == [(identity(1), 1.0), (identity(2), 1.0)]
    assert index.names_of([identity(1)]) == {identity(1): ["french"]}
    index.close()
    assert two.delete(stored.id, ["french"])
    assert one.record(stored.id) is None
    assert one.resolve("french") is None


def test_many_machines_that_write_one_adapter_leave_one(tmp_path: Path, url: str) -> None:
    machines = [SharedFiles(tmp_path / str(number), url) for number in range(4)]

    async def write() -> list[bool]:
        written = [
            asyncio.to_thread(files.write, WEIGHTS, record(WEIGHTS, created=n)) for n, files in enumerate(machines)
        ]
        return sorted(made for _, made in await asyncio.gather(*written))

    assert asyncio.run(write()) == [False, False, False, True]
    records = [files.record(identity(1)) for files in machines]
    assert records[0] is not None
    assert records == records[:1] * 4


def test_an_upload_that_is_cut_leaves_no_adapter_and_can_be_done_again(pair: Pair, s3: S3Server) -> None:
    one, two = pair
    s3.gate.cut_after = 20_000  # in the middle of the tensors
    with pytest.raises(StoreUnavailableError):
        one.write(WEIGHTS, record(WEIGHTS))
    s3.gate.cut_after = None
    for files in (one, two):
        assert not files.exists(identity(1))
        assert list(files.folder.iterdir()) == []
    assert list(two.read_records(two.identities())) == []
    assert two.write(WEIGHTS, record(WEIGHTS))[1]
    assert content_digest(one.read(identity(1))) == content_digest(WEIGHTS)


@pytest.mark.parametrize("name", [RECORD_FILE, WEIGHTS_FILE])
def test_a_half_written_object_is_no_adapter_or_is_refused(pair: Pair, name: str) -> None:
    one, two = pair
    stored, _ = one.write(WEIGHTS, record(WEIGHTS))
    path = one._at(stored.id, name)
    content = one._fs.cat_file(path)
    one._fs.pipe_file(path, content[: len(content) // 2])
    if name == RECORD_FILE:
        assert two.record(stored.id) is None
        again, made = two.write(WEIGHTS, record(WEIGHTS))
        assert (made, two.record(again.id)) == (True, again)
    else:
        with pytest.raises(AdapterDamagedError):
            two.read(stored.id)
        assert list(two.folder.iterdir()) == []


async def test_two_replicas_share_a_bucket_and_an_outage_is_503_until_it_ends(
    tmp_path: Path, url: str, s3: S3Server, load_dummy: LoadModels, no_delay: None
) -> None:
    settings = [make_settings(tmp_path / name, store_url=url) for name in ("one", "two")]

    async def ask(client: httpx.AsyncClient) -> int:
        return (await client.post("/chat", json={"adapter_id": "mine", "query": "x"})).status_code

    async with running(settings[0], load_dummy) as (_, one), running(settings[1], load_dummy) as (app, two):
        made = await one.post("/generate-adapter", json={"prompt": "a task", "name": "mine"})
        assert made.status_code == 201
        assert [await ask(one), await ask(two)] == [200, 200]
        async with asyncio.timeout(60):  # a scan finds it, but the last scan was a moment ago
            while [each["names"] for each in (await two.get("/adapters")).json()["data"]] != [["mine"]]:
                await asyncio.sleep(0.1)

        s3.gate.open = False
        for client in (one, two):
            assert await ask(client) == 503
            away = await client.post("/generate-adapter", json={"prompt": "another task"})
            assert (away.status_code, away.json()["error"]["code"]) == (503, "store_unavailable")
        base = {"model": services_of(app).models.base.spec.base_id, "messages": [{"role": "user", "content": "x"}]}
        assert (await two.post("/v1/chat/completions", json=base)).status_code == 200
        s3.gate.open = True

        assert [await ask(one), await ask(two)] == [200, 200]
        assert (await two.post("/generate-adapter", json={"prompt": "another task"})).status_code == 201
        assert (await two.delete("/adapters/mine")).status_code == 200
        assert await ask(one) == 404
