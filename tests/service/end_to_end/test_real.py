"""The service with its shipped models: the real base, the real encoder and the shipped generator."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from service.models.loading import load_models
from tests.service.support.harness import make_settings, running

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


@pytest.mark.parametrize(("storage", "noise"), [("auto", 0.5), ("float32", 1e-3)])
async def test_the_main_path(
    tmp_path: Path, real_base_path: Path, real_encoder_path: Path, storage: str, noise: float
) -> None:
    """`noise`: largest change of a log-probability when other requests join the batch.

    In int8 the last bit of the adapter's product may move an activation to the next of 127 levels, so two tokens that
    are nearly equally likely may change places. In float32 an answer does not change.
    """
    settings = make_settings(
        tmp_path, base=str(real_base_path), text_encoder=str(real_encoder_path), base_storage=storage
    )
    async with running(settings, load_models, seconds=600) as (_, client):
        client.timeout = 600
        made = (await client.post("/generate-adapter", json={"prompt": "Translate the English word to French."})).json()
        assert (made["rank"], made["alpha"], made["num_parameters"]) == (8, 16.0, 4_399_104)
        assert made["nearest_tasks"][0]["similarity"] > 0.5
        base = (await client.get("/readyz")).json()["base"]

        async def ask(model: str, word: str) -> tuple[str, dict[str, float]]:
            """The answer, and the log-probabilities of the likeliest first tokens."""
            body = {
                "model": model,
                "messages": [{"role": "user", "content": word}],
                "max_tokens": 6,
                "temperature": 0,
                "logprobs": True,
                "top_logprobs": 2,
            }
            choice = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]
            first = choice["logprobs"]["content"][0]["top_logprobs"]
            return choice["message"]["content"], {token["token"]: token["logprob"] for token in first}

        questions = [(model, word) for model in (made["id"], base) for word in ("cheese", "a house by the sea")]
        alone = [await ask(*question) for question in questions]
        together = await asyncio.gather(*(ask(*question) for question in questions))
        for (text, first), (joined_text, joined_first) in zip(alone, together, strict=True):
            assert text
            assert joined_first == pytest.approx(first, abs=noise)
            if storage == "float32":
                assert joined_text == text
        body = {"adapter_id": made["id"], "query": "cheese", "max_tokens": 6, "compare_base": True}
        answer = (await client.post("/chat", json=body)).json()
        assert answer["modules_hooked"] == 168
        assert answer["base_answer"] == alone[2][0]  # the same question to the base, again alone
