"""Adapters from elsewhere, loaded as vLLM does."""

from __future__ import annotations

from pathlib import Path

import httpx

from llgbm.adapters.peft_io import save_peft
from llgbm.config import LoRASpec, model_spec
from llgbm.lora import LoRAWeights
from service.adapters.records import WEIGHTS_FILE
from service.models.loading import LoadModels
from service.settings import Settings
from tests.fixtures import random_lora
from tests.service.support.harness import running


def foreign(folder: Path, weights: LoRAWeights | None = None) -> Path:
    spec = LoRASpec.for_model(model_spec("tiny"), rank=3, alpha=6.0, targets=("q_proj", "v_proj"))
    save_peft(weights or random_lora(spec, 7), folder, base_id="someone/else")
    return folder


async def test_an_adapter_from_elsewhere_is_loaded_used_and_unloaded(
    settings: Settings, load_dummy: LoadModels, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    folder = foreign(root / "sql")
    async with running(settings.model_copy(update={"adapter_roots": (root,)}), load_dummy) as (_, client):
        body = {"lora_name": "sql", "lora_path": str(folder)}
        loaded = await client.post("/v1/load_lora_adapter", json=body)
        assert loaded.status_code == 200
        assert loaded.text == "Success: LoRA adapter 'sql' added successfully."
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
    settings: Settings, load_dummy: LoadModels, tmp_path: Path, client: httpx.AsyncClient
) -> None:
    outside = foreign(tmp_path / "outside")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(outside)
    off = await client.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": str(outside)})
    assert off.status_code == 403
    assert "LLGBM_ADAPTER_ROOTS" in off.json()["error"]["message"]
    async with running(settings.model_copy(update={"adapter_roots": (root,)}), load_dummy) as (_, other):
        for path in (outside, root / "link", root / ".." / "outside", "relative", "a\0b", "x" * 4000):
            body = {"lora_name": "x", "lora_path": str(path)}
            assert (await other.post("/v1/load_lora_adapter", json=body)).status_code == 403, path
        body = {"lora_name": "x", "lora_path": str(root / "none")}
        assert (await other.post("/v1/load_lora_adapter", json=body)).status_code == 404


async def test_what_is_no_adapter_for_this_base_is_422_and_nothing_is_written(
    settings: Settings, load_dummy: LoadModels, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    torn = foreign(root / "torn") / WEIGHTS_FILE
    torn.write_bytes(torn.read_bytes()[:-10])
    wide = LoRASpec.for_model(model_spec("tiny"), rank=65, alpha=8.0)
    foreign(root / "wide", random_lora(wide, 1))
    foreign(root / "other", random_lora(LoRASpec.for_model(model_spec("qwen2.5-0.5b"), layers=[0]), 1))
    (root / "empty").mkdir()
    async with running(settings.model_copy(update={"adapter_roots": (root,)}), load_dummy) as (_, client):
        for name in ("torn", "wide", "other", "empty"):
            body = {"lora_name": name, "lora_path": str(root / name)}
            answer = await client.post("/v1/load_lora_adapter", json=body)
            assert answer.status_code == 422, (name, answer.text)
            assert str(root) not in answer.text
        assert (await client.get("/adapters")).json()["data"] == []
    assert list(settings.store_dir.iterdir()) == []
