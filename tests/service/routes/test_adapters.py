from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from llgbm.adapters.peft_io import content_digest, from_bytes, load_peft
from llgbm.lora import LoRAWeights, combine
from llgbm.prompting import AdapterRequest
from service.adapters import files as adapter_files
from service.adapters.records import CONFIG_FILE, RECORD_FILE, WEIGHTS_FILE
from service.adapters.service import Outcome
from tests.service.support.dummy_decoder import DummyDecoder
from tests.service.support.harness import Serving, services_of, state_of, until

FRENCH = {"prompt": "Translate the English word to French."}
App = tuple[FastAPI, httpx.AsyncClient]


async def make(client: httpx.AsyncClient, prompt: str, **more: object) -> dict[str, Any]:
    answer = await client.post("/generate-adapter", json={"prompt": prompt, **more})
    assert answer.status_code in (200, 201), answer.text
    made: dict[str, Any] = answer.json()
    return made


# making


async def test_an_adapter_that_takes_too_long_is_504_and_made_all_the_same(
    serving: Serving, dummy: DummyDecoder
) -> None:
    async with serving(request_timeout=1.0) as (app, client):
        french = await make(client, FRENCH["prompt"])
        dummy.hold.clear()
        answer = asyncio.ensure_future(client.post("/chat", json={"adapter_id": french["id"], "query": "x"}))
        await asyncio.to_thread(dummy.held.wait)  # the torch thread is now in a step
        two = {"ids": [french["id"], french["id"]], "weights": [0.5, 0.5]}
        asked = [
            client.post("/generate-adapter", json={"prompt": "Undo it."}),
            client.post("/adapters/compose", json=two),
        ]
        for late in await asyncio.gather(*asked):
            assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        dummy.hold.set()
        await answer
        await until(lambda: len(services_of(app).store.files.records()) == 2)
        again = await client.post("/generate-adapter", json={"prompt": "Undo it."})
        assert again.status_code == 200


async def test_the_first_time_is_201_and_the_same_request_again_200(client: httpx.AsyncClient) -> None:
    first = await client.post("/generate-adapter", json=FRENCH)
    again = await client.post("/generate-adapter", json={"prompts": ["  Translate the English  word to French. "]})
    assert (first.status_code, again.status_code) == (201, 200)
    made, existing = first.json(), again.json()
    assert made["id"] == existing["id"]
    assert made["digest"] == existing["digest"]
    assert first.headers["Location"] == f"/adapters/{made['id']}"
    assert made["base"] == "llgbm/tiny-random-qwen2"
    assert (made["rank"], made["alpha"], made["num_parameters"]) == (4, 8.0, 8192)
    assert made["nearest_tasks"][0] == {"task_id": "task_0", "similarity": pytest.approx(1.0, abs=1e-3)}
    assert made["confidence"] == pytest.approx(1.0, abs=1e-3)
    assert made["warning"] is None
    assert made["timings_ms"]["generate"] > 0
    assert existing["timings_ms"]["generate"] == 0


async def test_what_changes_the_task_changes_the_id_and_a_name_does_not(client: httpx.AsyncClient) -> None:
    bodies = [
        FRENCH,
        {"prompt": "Translate the English word to German."},
        {**FRENCH, "scale": 0.5},
        {**FRENCH, "examples": [{"input": "cheese", "output": "fromage"}]},
        {"examples": [{"input": "cheese", "output": "fromage"}]},
    ]
    ids = [(await client.post("/generate-adapter", json=body)).json()["id"] for body in bodies]
    assert len(set(ids)) == len(ids)
    named = await client.post("/generate-adapter", json={**FRENCH, "name": "french"})
    assert named.status_code == 200
    assert named.json()["id"] == ids[0]
    assert named.json()["names"] == ["french"]


async def test_many_who_ask_at_once_are_one_piece_of_work(dummy_app: App) -> None:
    app, client = dummy_app
    answers = await asyncio.gather(*(client.post("/generate-adapter", json=FRENCH) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    count = state_of(app).metrics.registry.get_sample_value(
        "llgbm_adapter_generation_seconds_count", {"stage": "generate"}
    )
    assert count == 1


async def test_work_goes_on_when_who_asked_first_hangs_up(dummy_app: App) -> None:
    app, client = dummy_app
    first = asyncio.ensure_future(client.post("/generate-adapter", json=FRENCH))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(client.post("/generate-adapter", json=FRENCH))
    while not services_of(app).adapters._making:
        await asyncio.sleep(0)
    first.cancel()
    assert (await second).status_code in (200, 201)


@pytest.mark.parametrize(
    ("accept", "kind"), [("application/zip", "zip"), ("application/octet-stream, */*;q=0.1", "tensors")]
)
async def test_accept_brings_the_files_at_once(client: httpx.AsyncClient, accept: str, kind: str) -> None:
    for status in (201, 200):
        answer = await client.post("/generate-adapter", json=FRENCH, headers={"Accept": accept})
        assert answer.status_code == status
        identity = answer.headers["X-Adapter-Id"]
        path = "archive" if kind == "zip" else WEIGHTS_FILE
        file = await client.get(f"/adapters/{identity}/{path}")
        assert answer.content == file.content
        assert answer.headers["ETag"] == file.headers["ETag"]


@pytest.mark.parametrize("accept", ["application/zip", "application/octet-stream"])
async def test_an_adapter_that_is_deleted_before_its_files_are_sent_is_404(
    dummy_app: App, accept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, client = dummy_app
    services = services_of(app)
    get_or_make = services.adapters.get_or_make

    async def make_and_lose(request: AdapterRequest) -> Outcome:
        outcome = await get_or_make(request)
        services.store.delete(outcome.record.id)
        return outcome

    monkeypatch.setattr(services.adapters, "get_or_make", make_and_lose)
    answer = await client.post("/generate-adapter", json=FRENCH, headers={"Accept": accept})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "adapter_not_found")


async def test_a_far_request_carries_a_warning(client: httpx.AsyncClient, dummy_app: App) -> None:
    maker = services_of(dummy_app[0]).models.maker
    curve = maker.checkpoint.manifest.confidence
    far = await make(client, "zzz qqq")
    nearest = far["nearest_tasks"][0]["similarity"]
    assert far["confidence"] == pytest.approx(max(0.0, nearest), abs=1e-3)
    assert (far["warning"] is not None) == (far["confidence"] < curve["threshold"])


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": ""},
        {"prompt": " \n "},
        {"prompt": "\u001c"},
        {"prompt": "\ud800"},
        {"prompt": 3},
        {"prompt": "a", "prompts": ["b"]},
        {"prompts": []},
        {"prompts": ["a", ""]},
        {"examples": [{"input": "a"}]},
        {"examples": [{"input": "a", "output": " "}]},
        {"prompt": "a", "scale": 5},
        {"prompt": "a", "name": "../x"},
        {"prompt": "a", "name": "lora-" + "0" * 24},
        {"prompt": "a", "unknown": 1},
        [],
        "text",
    ],
)
async def test_a_wrong_request_is_422_in_the_envelope(client: httpx.AsyncClient, body: object) -> None:
    answer = await client.post(
        "/generate-adapter", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422, answer.text
    envelope = answer.json()
    assert set(envelope) == {"error", "request_id"}
    assert set(envelope["error"]) == {"message", "type", "code", "param"}
    assert envelope["request_id"] == answer.headers["X-Request-ID"]


async def test_a_prompt_that_is_too_long_is_413(serving: Serving) -> None:
    async with serving(max_prompt_chars=30) as (_, client):
        assert (await client.post("/generate-adapter", json={"prompt": "x" * 30})).status_code == 201
        body: dict[str, object] = {"prompt": "x" * 31}
        for param in ("prompt", "examples"):
            answer = await client.post("/generate-adapter", json=body)
            assert (answer.status_code, answer.json()["error"]["param"]) == (413, param)
            assert "have 31 characters, at most 30 are read" in answer.json()["error"]["message"]
            body = {"prompt": "x" * 20, "examples": [{"input": "a" * 6, "output": "b" * 5}]}


async def test_a_name_that_is_taken_is_409_before_anything_is_made(client: httpx.AsyncClient) -> None:
    await make(client, "one task", name="mine")
    taken = await client.post("/generate-adapter", json={"prompt": "another task", "name": "mine"})
    assert taken.status_code == 409
    assert taken.json()["error"]["code"] == "name_taken"
    assert len((await client.get("/adapters")).json()["data"]) == 1


# showing


async def test_the_detail_has_the_norms_of_the_tensors(client: httpx.AsyncClient) -> None:
    made = await make(client, "a task", name="mine")
    detail = (await client.get("/adapters/mine")).json()
    config = (await client.get("/adapters/mine/adapter_config.json")).json()
    weights = from_bytes((await client.get("/adapters/mine/adapter_model.safetensors")).content, config)
    assert content_digest(weights) == made["digest"] == detail["digest"]
    for name, norm in weights.product_norms().items():
        layer, target = int(name.split(".")[2]), name.rpartition(".")[2]
        assert detail["norms"][target][layer] == pytest.approx(norm, rel=1e-4)
    assert set(detail) - set(made) == {"norms"}


async def test_pages_show_every_adapter_once(client: httpx.AsyncClient) -> None:
    made = [(await make(client, f"task {i}"))["id"] for i in range(5)]
    seen: list[str] = []
    after: str | None = None
    while True:
        parameters = {"limit": 2} | ({"after": after} if after else {})
        page = (await client.get("/adapters", params=parameters)).json()
        seen += [adapter["id"] for adapter in page["data"]]
        after = page["next"]
        assert page["has_more"] == (after is not None)
        if after is None:
            break
    assert seen == made[::-1]
    assert (await client.get("/adapters", params={"after": "lora-" + "0" * 24})).status_code == 404
    assert (await client.get("/adapters", params={"limit": 0})).status_code == 422


async def test_pages_of_models_show_every_adapter_once(client: httpx.AsyncClient) -> None:
    made = [(await make(client, f"task {i}"))["id"] for i in range(5)]
    pages: list[dict[str, Any]] = []
    after: str | None = None
    while not pages or pages[-1]["has_more"]:
        page = (await client.get("/v1/models", params={"limit": 2} | ({"after": after} if after else {}))).json()
        after = page["last_id"]
        pages.append(page)
    assert [[model["id"] for model in page["data"]] for page in pages[1:]] == [made[2:0:-1], made[:1]]
    assert [model["id"] for model in pages[0]["data"]][-2:] == made[:2:-1]
    assert (await client.get("/v1/models", params={"after": "lora-" + "0" * 24})).status_code == 404


async def test_an_unknown_adapter_is_404_and_says_what_to_do(client: httpx.AsyncClient) -> None:
    for path in ("", "/adapter_model.safetensors", "/adapter_config.json", "/archive"):
        for which in ("lora-" + "0" * 24, "nobody", "..%2f..", "%00"):
            answer = await client.get(f"/adapters/{which}{path}")
            assert answer.status_code == 404, (which, path)
    assert "GET /adapters" in (await client.get("/adapters/nobody")).json()["error"]["message"]


# deleting


async def test_delete_takes_the_adapter_and_its_names(client: httpx.AsyncClient) -> None:
    made = await make(client, "a task", name="mine")
    assert (await client.delete("/adapters/mine")).json() == {"id": made["id"], "object": "adapter", "deleted": True}
    assert (await client.get(f"/adapters/{made['id']}")).status_code == 404
    assert (await client.delete("/adapters/mine")).status_code == 404
    assert (await client.post("/generate-adapter", json={"prompt": "a task"})).status_code == 201


# combining


async def test_composing_adds_the_effects_up(client: httpx.AsyncClient, dummy_app: App) -> None:
    parts = [await make(client, prompt) for prompt in ("one task", "another task")]
    body = {"ids": [part["id"] for part in parts], "weights": [1.0, -0.5], "name": "both"}
    first = await client.post("/adapters/compose", json=body)
    again = await client.post("/adapters/compose", json=body)
    assert (first.status_code, again.status_code) == (201, 200)
    made = first.json()
    assert made["id"] == again.json()["id"]
    assert (made["rank"], made["source"], made["names"]) == (8, "composed", ["both"])
    files = services_of(dummy_app[0]).store.files
    expected = combine([files.read(str(part["id"])) for part in parts], [1.0, -0.5])
    assert content_digest(files.read(made["id"])) == content_digest(expected)


async def test_what_cannot_be_composed_is_refused(client: httpx.AsyncClient) -> None:
    one = (await make(client, "one task"))["id"]
    refused = {
        404: {"ids": [one, "nobody"], "weights": [1, 1]},
        422: {"ids": [one], "weights": [1, 1]},
    }
    for status, body in refused.items():
        assert (await client.post("/adapters/compose", json=body)).status_code == status
    too_many = {"ids": [one] * 8, "weights": [1] * 8}
    assert (await client.post("/adapters/compose", json=too_many)).status_code == 201  # rank 32
    both = (await client.post("/adapters/compose", json=too_many)).json()["id"]
    over = await client.post("/adapters/compose", json={"ids": [both] * 3, "weights": [1] * 3})
    assert over.status_code == 422
    assert "LLGBM_MAX_RANK" in over.json()["error"]["message"]


# damage


async def test_a_damaged_adapter_that_cannot_be_made_again_is_an_error(dummy_app: App) -> None:
    app, client = dummy_app
    made = await make(client, "a task")
    files = services_of(app).store.files
    record = files.path(str(made["id"])) / RECORD_FILE
    record.write_text(record.read_text().replace('"generated"', '"loaded"'))
    path = files.path(str(made["id"])) / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-8])
    services_of(app).store.forget(str(made["id"]))
    files._records.clear()
    answer = await client.post("/chat", json={"adapter_id": made["id"], "query": "x"})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "adapter_damaged"


async def test_an_adapter_that_is_deleted_while_it_is_read_is_404(
    dummy_app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, client = dummy_app
    made = await make(client, "a task")
    store = services_of(app).store
    store.forget(made["id"])

    def read_after_deletion(folder: Path) -> tuple[LoRAWeights, str]:
        store.files.delete(folder.name)
        return load_peft(folder)

    monkeypatch.setattr(adapter_files, "load_peft", read_after_deletion)
    answer = await client.post("/chat", json={"adapter_id": made["id"], "query": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "adapter_not_found")


async def test_a_download_of_what_is_damaged_in_a_shared_store_is_an_error(serving: Serving, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    async with serving(store_url=f"file://{shared}") as (app, client):
        identity = (await make(client, FRENCH["prompt"]))["id"]
        shutil.rmtree(services_of(app).store.files.path(identity))  # the copy on this machine
        (shared / identity / CONFIG_FILE).write_text("{}")
        answers = [await client.get(f"/adapters/{identity}/{name}") for name in (WEIGHTS_FILE, CONFIG_FILE, "archive")]
        for accept in ("application/octet-stream", "application/zip"):
            answers.append(await client.post("/generate-adapter", json=FRENCH, headers={"Accept": accept}))
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "adapter_damaged")
        assert f"DELETE /adapters/{identity}" in answer.json()["error"]["message"]
