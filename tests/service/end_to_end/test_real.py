"""The service as it is shipped: the real base, the real encoder, the shipped generator."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from service.models.loading import load_models
from tests.service.support.harness import make_settings, running

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


async def test_the_main_path(tmp_path: Path, real_base_path: Path, real_encoder_path: Path) -> None:
    settings = make_settings(tmp_path, base=str(real_base_path), text_encoder=str(real_encoder_path))
    async with running(settings, load_models, seconds=600) as (_, client):
        client.timeout = 600
        made = (await client.post("/generate-adapter", json={"prompt": "Translate the English word to French."})).json()
        assert (made["rank"], made["alpha"], made["num_parameters"]) == (8, 16.0, 4_399_104)
        assert made["nearest_tasks"][0]["similarity"] > 0.5
        base = (await client.get("/readyz")).json()["base"]

        async def ask(model: str, word: str) -> tuple[str, int]:
            body = {
                "model": model,
                "messages": [{"role": "user", "content": word}],
                "max_tokens": 6,
                "temperature": 0,
            }
            answer = (await client.post("/v1/chat/completions", json=body)).json()
            return answer["choices"][0]["message"]["content"], answer["usage"]["completion_tokens"]

        questions = [(model, word) for model in (made["id"], base) for word in ("cheese", "a house by the sea")]
        alone = [await ask(*question) for question in questions]
        together = await asyncio.gather(*(ask(*question) for question in questions))
        assert together == alone
        assert all(text for text, _ in alone)
        body = {"adapter_id": made["id"], "query": "cheese", "max_tokens": 6, "compare_base": True}
        answer = (await client.post("/chat", json=body)).json()
        assert answer["modules_hooked"] == 168
        assert answer["base_answer"] == alone[2][0]
