"""Adapters from other folders, loaded with vLLM's API."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from llgbm.adapters.peft_io import save_peft
from llgbm.config import LoRASpec, model_spec
from llgbm.lora import LoRAWeights
from service.adapters.records import CONFIG_FILE, WEIGHTS_FILE
from service.models.loading import LoadModels
from service.settings import Settings
from tests.fixtures import random_lora
from tests.service.support.harness import Serving, running, services_of


def foreign(folder: Path, weights: LoRAWeights | None = None, base_id: str = "someone/else") -> Path:
    spec = LoRASpec.for_model(model_spec("tiny"), rank=3, alpha=6.0, targets=("q_proj", "v_proj"))
    save_peft(weights or random_lora(spec, 7), folder, base_id=base_id)
    return folder


async def test_an_adapter_from_elsewhere_is_loaded_used_and_unloaded(serving: Serving, tmp_path: Path) -> None:
    root = tmp_path / "root"
    folder = foreign(root / "sql")
    async with serving(adapter_roots=(root,)) as (_, client):
        body = {"lora_name": "sql", "lora_path": str(folder)}
        loaded = await client.post("/v1/load_lora_adapter", json=body)
        assert loaded.status_code == 200
        assert loaded.text.startswith("Success: LoRA adapter 'sql' added successfully.")
        assert (await client.post("/v1/load_lora_adapter", json=body)).status_code == 400
        detail = (await client.get("/adapters/sql")).json()
        assert (detail["rank"], detail["base"], detail["source"]) == (3, "someone/else", "loaded")
        assert set(detail["norms"]) == {"q_proj", "v_proj"}
        answer = await client.post("/chat", json={"adapter_id": "sql", "query": "x"})
        assert answer.json()["modules_hooked"] == 4
        assert "sql" in [m["id"] for m in (await client.get("/v1/models")).json()["data"]]
        assert (await client.post("/v1/unload_lora_adapter", json={"lora_name": "sql"})).status_code == 200
        assert (await client.get(f"/adapters/{detail['id']}")).status_code == 404
        assert (await client.post("/v1/unload_lora_adapter", json={"lora_name": "sql"})).status_code == 404


async def test_only_folders_under_the_roots_are_read(
    serving: Serving, tmp_path: Path, client: httpx.AsyncClient
) -> None:
    outside = foreign(tmp_path / "outside")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(outside)
    off = await client.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": str(outside)})
    assert off.status_code == 403
    assert "LLGBM_ADAPTER_ROOTS" in off.json()["error"]["message"]
    async with serving(adapter_roots=(root,)) as (_, other):
        for path in (outside, root / "link", root / ".." / "outside", "relative", "a\0b", "x" * 4000):
            body = {"lora_name": "x", "lora_path": str(path)}
            assert (await other.post("/v1/load_lora_adapter", json=body)).status_code == 403, path
        body = {"lora_name": "x", "lora_path": str(root / "none")}
        assert (await other.post("/v1/load_lora_adapter", json=body)).status_code == 404


async def test_what_is_no_adapter_for_this_base_is_422_and_nothing_is_written(
    serving: Serving, settings: Settings, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    torn = foreign(root / "torn") / WEIGHTS_FILE
    torn.write_bytes(torn.read_bytes()[:-10])
    wide = LoRASpec.for_model(model_spec("tiny"), rank=65, alpha=8.0)
    foreign(root / "wide", random_lora(wide, 1))
    foreign(root / "other", random_lora(LoRASpec.for_model(model_spec("qwen2.5-0.5b"), layers=[0]), 1))
    (root / "empty").mkdir()
    async with serving(adapter_roots=(root,)) as (_, client):
        for name in ("torn", "wide", "other", "empty"):
            body = {"lora_name": name, "lora_path": str(root / name)}
            answer = await client.post("/v1/load_lora_adapter", json=body)
            assert answer.status_code == 422, (name, answer.text)
            assert str(root) not in answer.text
        assert (await client.get("/adapters")).json()["data"] == []
    assert list(settings.store_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "named", "mended_by"),
    [
        (b"", "is empty", "hf download"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "git-lfs pointer",
            "git lfs pull",
        ),
    ],
)
async def test_a_file_in_place_of_the_tensors_is_named_with_the_command_that_mends_it(
    serving: Serving, tmp_path: Path, content: bytes, named: str, mended_by: str
) -> None:
    folder = foreign(tmp_path / "sql")
    (folder / WEIGHTS_FILE).write_bytes(content)
    async with serving(adapter_roots=(tmp_path,)) as (_, client):
        answer = await client.post("/v1/load_lora_adapter", json={"lora_name": "sql", "lora_path": str(folder)})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (422, "adapter_invalid")
        assert named in error["message"]
        assert mended_by in error["message"]


async def test_a_download_of_the_hubs_client_and_a_configuration_with_a_byte_order_mark_are_loaded(
    serving: Serving, tmp_path: Path
) -> None:
    edited = foreign(tmp_path / "edited")
    config = edited / CONFIG_FILE
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    model = tmp_path / "models--owner--name"
    snapshot = foreign(model / "snapshots" / ("a" * 40))
    (model / "blobs").mkdir()
    for name, digits in ((CONFIG_FILE, 40), (WEIGHTS_FILE, 64)):
        (snapshot / name).rename(model / "blobs" / ("b" * digits))
        (snapshot / name).symlink_to(Path("../../blobs") / ("b" * digits))
    async with serving(adapter_roots=(tmp_path,)) as (_, client):
        for name, folder in {"edited": edited, "snapshot": snapshot}.items():
            answer = await client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(folder)})
            assert answer.status_code == 200, answer.text
            assert (await client.post("/chat", json={"adapter_id": name, "query": "x"})).status_code == 200


@pytest.mark.parametrize("named", ["someone/else", "llgbm/tiny-random-qwen2-it"])
async def test_one_that_names_another_base_is_served_with_a_warning(
    serving: Serving, tmp_path: Path, named: str
) -> None:
    folder = foreign(tmp_path / "sql", base_id=named)
    async with serving(adapter_roots=(tmp_path,), log_level="warning") as (app, client):
        with capture_logs() as logs:
            body = {"lora_name": "sql", "lora_path": str(folder)}
            loaded = await client.post("/v1/load_lora_adapter", json=body)
            warning = (await client.get("/adapters/sql")).json()["warning"]
            assert f"made for {named}," in warning
            assert loaded.text == f"Success: LoRA adapter 'sql' added successfully. Warning: {warning}."
            services_of(app).store.forget((await client.get("/adapters/sql")).json()["id"])
            assert (await client.post("/chat", json={"adapter_id": "sql", "query": "x"})).status_code == 200
    told = [entry["reason"] for entry in logs if entry["event"] == "adapter_of_another_base"]
    assert told == [warning] * 2  # once when it was loaded, and once when it was read from the store


async def test_one_that_names_another_base_is_refused_if_the_operator_says_so(
    settings: Settings, load_dummy: LoadModels, tmp_path: Path
) -> None:
    folder = foreign(tmp_path / "sql")
    body = {"lora_name": "sql", "lora_path": str(folder)}
    strict = settings.model_copy(update={"adapter_roots": (tmp_path,), "strict_base": True})
    async with running(strict, load_dummy) as (_, client):
        refused = await client.post("/v1/load_lora_adapter", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "other_base")
        assert "LLGBM_STRICT_BASE" in refused.json()["error"]["message"]
        assert (await client.get("/adapters")).json()["data"] == []
    async with running(strict.model_copy(update={"strict_base": False}), load_dummy) as (_, client):
        assert (await client.post("/v1/load_lora_adapter", json=body)).status_code == 200
    async with running(strict, load_dummy) as (_, client):  # it is already in the store
        answer = await client.post("/chat", json={"adapter_id": "sql", "query": "x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "adapter_mismatch")


@pytest.mark.parametrize("named", ["/models/Tiny-Random-Qwen2/", "another-owner/tiny-random-qwen2"])
async def test_the_same_base_under_another_owner_or_path_is_no_other(
    serving: Serving, tmp_path: Path, named: str
) -> None:
    folder = foreign(tmp_path / "sql", base_id=named)
    async with serving(adapter_roots=(tmp_path,), strict_base=True) as (_, client):
        loaded = await client.post("/v1/load_lora_adapter", json={"lora_name": "sql", "lora_path": str(folder)})
        assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'sql' added successfully.")
