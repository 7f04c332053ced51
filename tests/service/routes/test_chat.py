from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import httpx
import pytest
from fastapi import FastAPI

from llgbm.conditioning.context_choice import ContextChoice
from llgbm.prompting import AdapterMaker
from service.models.loading import LoadModels, Models, Progress
from service.observability.metrics import Metrics
from service.settings import Settings
from tests.service.support.dummy_decoder import DummyDecoder
from tests.service.support.harness import CHEESE, Serving, running, services_of, until

App = tuple[FastAPI, httpx.AsyncClient]
FRENCH = "Translate the English word to French."


async def test_a_prompt_makes_the_adapter_and_answers_with_it(client: httpx.AsyncClient, dummy: DummyDecoder) -> None:
    body = {"prompt": FRENCH, "query": "cheese", "compare_base": True, "context": "none"}
    answer = await client.post("/chat", json=body)
    body = answer.json()
    assert answer.status_code == 200
    assert (body["answer"], body["base_answer"]) == ("adapted answer", "plain answer")
    assert body["modules_hooked"] == 14
    assert body["finish_reason"] == "stop"
    usage = body["usage"]
    assert usage["completion_tokens"] == sum(len(text) + 1 for text in ("adapted answer", "plain answer"))
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    made = await client.post("/generate-adapter", json={"prompt": FRENCH})
    assert (made.status_code, made.json()["id"]) == (200, body["adapter_id"])
    assert dummy.sizes[0] == 2  # both answers in one batch


async def test_by_id_by_name_and_by_messages_it_is_the_same(client: httpx.AsyncClient, dummy: DummyDecoder) -> None:
    made = (await client.post("/generate-adapter", json={"prompt": FRENCH, "name": "french"})).json()
    for adapter in (made["id"], "french"):
        for question in ({"query": "cheese"}, {"messages": CHEESE}):
            answer = (await client.post("/chat", json={"adapter_id": adapter, **question})).json()
            assert (answer["adapter_id"], answer["answer"]) == (made["id"], "adapted answer")
            assert "base_answer" not in answer or answer["base_answer"] is None
    assert len({tuple(row.prompt) for row in dummy.added}) == 1


async def test_the_prompt_has_the_chat_template_with_its_system_message(dummy_app: App, dummy: DummyDecoder) -> None:
    app, client = dummy_app
    await client.post("/chat", json={"prompt": FRENCH, "query": "cheese", "context": "none"})
    text = services_of(app).models.base.tokenizer.decode(dummy.added[-1].prompt)
    assert text.startswith("<|im_start|>system\nYou are Qwen")
    assert text.endswith("<|im_start|>user\ncheese<|im_end|>\n<|im_start|>assistant\n")


FAR = "Name the planet that is nearest to the sun."
SHOWN = [{"input": "Which planet is red?", "output": "Mars"}, {"input": "Which one has rings?", "output": "Saturn"}]


def prompts(app: FastAPI, dummy: DummyDecoder) -> set[str]:
    """The texts of the last two rows."""
    return {services_of(app).models.base.tokenizer.decode(row.prompt) for row in dummy.added[-2:]}


@pytest.mark.parametrize(("prompt", "scale"), [(FRENCH, 1.0), (FAR, 0.5)])
async def test_by_default_the_description_stands_above_the_question_and_the_adapter_has_its_scale_there(
    dummy_app: App, dummy: DummyDecoder, prompt: str, scale: float
) -> None:
    app, client = dummy_app
    found = []
    for more in ({}, {"context": "auto"}, {"context": "description"}):
        body = {"prompt": prompt, "query": "cheese", "compare_base": True, **more}
        found.append((await client.post("/chat", json=body)).json())
        (text,) = prompts(app, dummy)  # the base gets the task too
        assert f"<|im_start|>user\n{prompt}\n\ncheese<|im_end|>" in text
    made = (await client.post("/generate-adapter", json={"prompt": prompt, "scale": scale})).json()
    assert made["auto"] == {"context_used": "description", "scale": scale}
    assert made["scale_in_context"] == scale
    for answer in found:
        assert (answer["adapter_id"], answer["context_used"], answer["scale"]) == (made["id"], "description", scale)


async def test_examples_make_the_adapter_and_stand_in_the_context(dummy_app: App, dummy: DummyDecoder) -> None:
    app, client = dummy_app
    body = {"prompt": FAR, "query": "Which one is ours?", "examples": SHOWN, "compare_base": True}
    answer = (await client.post("/chat", json=body)).json()
    (text,) = prompts(app, dummy)
    for example in SHOWN:
        turns = f"user\n{FAR}\n\n{example['input']}<|im_end|>\n<|im_start|>assistant\n{example['output']}<|im_end|>"
        assert turns in text
    made = (await client.post("/generate-adapter", json={"prompt": FAR, "examples": SHOWN})).json()
    assert (answer["adapter_id"], answer["context_used"], answer["scale"]) == (made["id"], "examples", 1.0)
    assert made["auto"] == {"context_used": "examples", "scale": 1.0}

    for context, inside in (("none", (False, False)), ("description", (True, False)), ("examples", (True, True))):
        other = (await client.post("/chat", json=body | {"context": context})).json()
        (text,) = prompts(app, dummy)
        assert (FAR in text, "Saturn" in text) == inside
        assert (other["context_used"], other["adapter_id"] is None) == (context, False)

    alone = (await client.post("/chat", json={"query": "x", "examples": SHOWN})).json()
    made = (await client.post("/generate-adapter", json={"examples": SHOWN})).json()
    assert (alone["adapter_id"], alone["context_used"]) == (made["id"], "examples")


async def test_at_scale_0_the_base_answers_and_it_is_said(
    settings: Settings, load_dummy: LoadModels, dummy: DummyDecoder
) -> None:
    def load(settings: Settings, metrics: Metrics, progress: Progress) -> Models:
        models = load_dummy(settings, metrics, progress)
        checkpoint = models.maker.checkpoint
        manifest = replace(
            checkpoint.manifest,
            context_choice=ContextChoice.of_scales(0.9, far=0.0, near=1.0),
            confidence={"similarity": [0.0, 1.0], "confidence": [0.0, 1.0], "threshold": 1.0},
        )
        maker = AdapterMaker(replace(checkpoint, manifest=manifest), checkpoint.text_encoder())
        return replace(models, maker=maker)

    async with running(settings, load) as (app, client):
        answer = (await client.post("/chat", json={"prompt": FAR, "query": "cheese"})).json()
        assert (answer["answer"], answer["adapter_id"], answer["modules_hooked"]) == ("plain answer", None, 0)
        assert (answer["context_used"], answer["scale"]) == ("description", 0.0)
        assert services_of(app).store.files.records() == []
        made = (await client.post("/generate-adapter", json={"prompt": FAR})).json()
        assert answer["warning"] == made["warning"]
        assert "few right answers are to be expected" in answer["warning"]
        for body in ({"prompt": FAR, "context": "none"}, {"adapter_id": made["id"]}):
            other = (await client.post("/chat", json={**body, "query": "cheese"})).json()
            assert (other["adapter_id"], other["warning"]) == (made["id"], made["warning"])


async def test_an_adapter_by_id_answers_as_it_is_and_tells_its_scale(client: httpx.AsyncClient) -> None:
    made = (await client.post("/generate-adapter", json={"prompt": FRENCH, "scale": 0.5})).json()
    for more in ({}, {"context": "none"}):
        answer = (await client.post("/chat", json={"adapter_id": made["id"], "query": "x", **more})).json()
        assert (answer["adapter_id"], answer["context_used"], answer["scale"]) == (made["id"], "none", 0.5)


async def test_bad_contexts_and_examples_are_refused_with_the_numbers(client: httpx.AsyncClient) -> None:
    async def refused(status: int, **body: object) -> tuple[str, str]:
        answer = await client.post("/chat", json={"prompt": "a", "query": "x", **body})
        assert answer.status_code == status, answer.text
        return answer.json()["error"]["param"], answer.json()["error"]["message"]

    param, text = await refused(422, context="all")
    assert (param, text) == ("context", "context: Input should be 'none', 'description', 'examples' or 'auto'")
    param, text = await refused(422, examples=SHOWN * 9)
    assert (param, "16" in text, "18" in text) == ("examples", True, True)
    param, text = await refused(422, prompt="a b " * 300, examples=SHOWN * 8)
    assert (param, "16 examples" in text, "4096" in text) == ("examples", True, True)
    assert await refused(422, context="examples") == (
        "context",
        "context 'examples' needs examples, and the request has none; give it, or choose context auto",
    )


async def test_sampling_is_passed_on(client: httpx.AsyncClient, dummy: DummyDecoder) -> None:
    body = {"prompt": FRENCH, "query": "x", "max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "seed": 7}
    answer = (await client.post("/chat", json=body)).json()
    params = dummy.added[-1].params
    assert (params.max_tokens, params.temperature, params.top_p, params.seed) == (3, 0.5, 0.9, 7)
    assert (answer["answer"], answer["finish_reason"]) == ("ada", "length")
    await client.post("/chat", json={"prompt": FRENCH, "query": "x"})
    assert dummy.added[-1].params.temperature == 0


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, {"adapter_id": "nobody", "query": "x"}),
        (404, {"adapter_id": "llgbm/tiny-random-qwen2", "query": "x"}),
        (422, {"query": "x"}),
        (422, {"prompt": "a", "adapter_id": "b", "query": "x"}),
        (422, {"prompt": "a"}),
        (422, {"adapter_id": "a", "query": "x", "context": "description"}),
        (422, {"adapter_id": "a", "query": "x", "examples": SHOWN}),
        (422, {"prompt": "a", "messages": [{"role": "system", "content": "x"}], "context": "description"}),
        (422, {"prompt": "a", "query": "x", "messages": CHEESE}),
        (422, {"prompt": "a", "messages": []}),
        (422, {"prompt": "a", "messages": [{"role": "robot", "content": "x"}]}),
        (422, {"prompt": "a", "query": "x", "temperature": -1}),
        (422, {"prompt": "a", "query": "x", "temperature": "NaN"}),
        (422, {"prompt": "a", "query": "x", "top_p": -0.1}),
        (422, {"prompt": "a", "query": "x", "seed": 2**63}),
        (422, {"prompt": "a", "query": "x", "max_tokens": 0}),
        (400, {"prompt": "a", "query": "x" * 5000}),
        (413, {"prompt": "a" * 5000, "query": "x"}),
    ],
)
async def test_wrong_requests(client: httpx.AsyncClient, dummy: DummyDecoder, status: int, body: object) -> None:
    answer = await client.post("/chat", json=body)
    assert answer.status_code == status, answer.text
    assert dummy.added == []


@pytest.mark.parametrize("content", ["\ud83d", "cheese \udc00", [{"type": "text", "text": "\ud83d"}]])
@pytest.mark.parametrize(
    ("path", "who"), [("/v1/chat/completions", {"model": f"prompt:{FRENCH}"}), ("/chat", {"prompt": FRENCH})]
)
async def test_half_a_character_in_a_message_is_400_before_anything_is_made(
    dummy_app: App, path: str, who: dict[str, str], content: object
) -> None:
    app, client = dummy_app
    body = json.dumps({**who, "messages": [{"role": "user", "content": content}]})
    answer = await client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")
    assert services_of(app).store.files.records() == []


async def test_the_deadline_is_504_and_frees_everything(serving: Serving, dummy: DummyDecoder) -> None:
    dummy.step_seconds = 0.6
    async with serving(request_timeout=1.0) as (app, client):
        answer = await client.post("/chat", json={"prompt": FRENCH, "query": "x"})
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "deadline_exceeded"
        assert dummy.rows == []
        assert set(services_of(app).store.resident.values()) == {0}


async def test_past_the_queue_is_429_with_retry_after(serving: Serving, dummy: DummyDecoder) -> None:
    async with serving(max_batch=1, max_queue=1) as (app, client):
        await client.post("/generate-adapter", json={"prompt": FRENCH, "name": "french"})
        dummy.hold.clear()
        body = {"adapter_id": "french", "query": "x"}
        first = asyncio.ensure_future(client.post("/chat", json=body))
        await until(lambda: len(dummy.rows) == 1)
        second = asyncio.ensure_future(client.post("/chat", json=body))
        await until(lambda: services_of(app).engine.rows == 2)
        refused = await client.post("/chat", json=body)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "queue_full"
        assert int(refused.headers["Retry-After"]) >= 1
        dummy.hold.set()
        assert [(await task).status_code for task in (first, second)] == [200, 200]
        assert set(services_of(app).store.resident.values()) == {0}


async def test_an_adapter_that_is_too_large_is_said_to_be(client: httpx.AsyncClient, dummy: DummyDecoder) -> None:
    dummy._script = lambda row: [65, -1]
    answer = await client.post("/chat", json={"prompt": FRENCH, "query": "x"})
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "adapter_unstable"


async def test_a_failing_decoder_is_500_without_insides(dummy_app: App, dummy: DummyDecoder) -> None:
    app, client = dummy_app
    dummy.fail_step = RuntimeError("secret inside")
    answer = await client.post("/chat", json={"prompt": FRENCH, "query": "x"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert set(services_of(app).store.resident.values()) == {0}
    assert (await client.post("/chat", json={"prompt": FRENCH, "query": "x"})).status_code == 200
