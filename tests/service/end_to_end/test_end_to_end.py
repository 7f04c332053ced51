"""The main path on the tiny base with the real decoder: the service gives the same answers as PEFT."""

from __future__ import annotations

import asyncio
import io
import zipfile
from pathlib import Path

import httpx
import torch
from fastapi import FastAPI
from peft import PeftModel
from transformers import AutoModelForCausalLM

from llgbm.base import Base
from llgbm.chat import prompt_ids
from tests.service.support.harness import CHEESE, services_of

App = tuple[FastAPI, httpx.AsyncClient]
FRENCH = "Translate the English word to French."
UPPER = "Write the word in upper case."


def greedy_with_peft(model: torch.nn.Module, base: Base, tokens: int) -> str:
    """Greedy decoding without a cache: the whole text is read again for each token."""
    ids = list(prompt_ids(base.tokenizer, CHEESE))
    made: list[int] = []
    with torch.inference_mode():
        while len(made) < tokens:
            made.append(int(model(input_ids=torch.tensor([ids + made])).logits[0, -1].argmax()))
    text: str = base.tokenizer.decode(made, skip_special_tokens=True)
    return text


async def test_the_downloaded_adapter_answers_in_peft_as_it_does_here(
    tiny_app: App, tiny_base: Base, tiny_base_path: Path, tmp_path: Path
) -> None:
    _, client = tiny_app
    made = (await client.post("/generate-adapter", json={"prompt": FRENCH})).json()
    archive = (await client.get(f"/adapters/{made['id']}/archive")).content
    zipfile.ZipFile(io.BytesIO(archive)).extractall(tmp_path)
    body = {"adapter_id": made["id"], "messages": CHEESE, "max_tokens": 5, "compare_base": True}
    answer = (await client.post("/chat", json=body)).json()
    plain = AutoModelForCausalLM.from_pretrained(tiny_base_path)
    assert answer["base_answer"] == greedy_with_peft(plain, tiny_base, 5)
    adapted = PeftModel.from_pretrained(plain, tmp_path / made["id"])
    assert answer["answer"] == greedy_with_peft(adapted, tiny_base, 5)
    assert answer["answer"] != answer["base_answer"]
    assert answer["modules_hooked"] == 7 * tiny_base.spec.num_layers


async def test_rows_of_many_adapters_in_one_batch_answer_as_each_alone(tiny_app: App) -> None:
    app, client = tiny_app
    for prompt, name in ((FRENCH, "french"), (UPPER, "upper")):
        await client.post("/generate-adapter", json={"prompt": prompt, "name": name})
    both = {"ids": ["french", "upper"], "weights": [0.5, 0.5], "name": "rank-8"}
    assert (await client.post("/adapters/compose", json=both)).json()["rank"] == 8
    models = [services_of(app).models.base.spec.base_id, "french", "upper", "rank-8", "prompt:third task"]

    async def ask(model: str, seed: int) -> str:
        body = {"model": model, "messages": CHEESE, "max_tokens": 6 + seed, "seed": seed, "temperature": 0.8}
        answer = (await client.post("/v1/chat/completions", json=body)).json()
        text: str = answer["choices"][0]["message"]["content"]
        return text

    questions = [(model, seed) for model in models for seed in range(3)]
    alone = [await ask(*question) for question in questions]
    together = await asyncio.gather(*(ask(*question) for question in questions))
    assert together == alone
    assert len(set(alone)) > 6


async def test_scale_zero_is_the_base(tiny_app: App) -> None:
    _, client = tiny_app
    made = (await client.post("/generate-adapter", json={"prompt": FRENCH, "scale": 0})).json()
    body = {"adapter_id": made["id"], "messages": CHEESE, "max_tokens": 8, "compare_base": True}
    answer = (await client.post("/chat", json=body)).json()
    assert answer["answer"] == answer["base_answer"]


async def test_an_adapter_with_a_huge_scale_is_refused_not_answered_with_rubbish(tiny_app: App) -> None:
    _, client = tiny_app
    identity = (await client.post("/generate-adapter", json={"prompt": FRENCH, "scale": 4})).json()["id"]
    for _ in range(80):  # composing one adapter with a weight multiplies its effect
        answer = await client.post("/adapters/compose", json={"ids": [identity], "weights": [4]})
        if answer.status_code == 422:
            break
        identity = answer.json()["id"]
        chat = await client.post("/chat", json={"adapter_id": identity, "messages": CHEESE, "max_tokens": 2})
        if chat.status_code == 422:
            assert chat.json()["error"]["code"] == "adapter_unstable"
            break
    else:
        raise AssertionError("no scale was too large")
