"""`auto`, `prompt:` and examples with OpenAI's client, against the service with the tiny base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI, UnprocessableEntityError
from openai.types.chat import ChatCompletion

from tests.service.clients.conftest import BASE
from tests.service.support.harness import LiveServer

DESK = "You are the help desk of an airline. Answer with the name of the desk."
POEM = "You are a poet. Answer in rhymes."
ASKED = {"role": "user", "content": "My suitcase did not arrive."}
EXAMPLES = [{"input": "I want my money back.", "output": "refunds"}, {"input": "A seat, please.", "output": "booking"}]


@pytest.fixture
def openai(server: LiveServer) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def marked(role: str) -> list[dict[str, str]]:
    """The examples as named turns, as in OpenAI's guides."""
    return [
        {"role": role or side, "name": f"example_{side}", "content": example[key]}
        for example in EXAMPLES
        for side, key in (("user", "input"), ("assistant", "output"))
    ]


def complete(client: OpenAI, messages: Sequence[Any], model: str = "auto", **more: Any) -> ChatCompletion:
    answer: ChatCompletion = client.chat.completions.create(
        model=model, messages=list(messages), temperature=0, max_tokens=8, **more
    )
    return answer


def extra(answer: ChatCompletion) -> dict[str, Any]:
    found = answer.model_extra or {}
    return {name: found[name] for name in ("adapter_id", "context_used", "scale")}


def counts(answer: ChatCompletion) -> tuple[int, int]:
    """Tokens of the prompt and of the answer."""
    assert answer.usage is not None
    return answer.usage.prompt_tokens, answer.usage.completion_tokens


def made(client: httpx.Client, prompt: str, **more: Any) -> dict[str, Any]:
    answer: dict[str, Any] = client.post("/generate-adapter", json={"prompt": prompt, **more}).json()
    return answer


def test_the_system_message_is_the_prompt_and_the_adapter_can_be_pinned(openai: OpenAI, client: httpx.Client) -> None:
    answer = complete(openai, [system(DESK), ASKED])
    told = made(client, DESK)["auto"]
    adapter = made(client, DESK, scale=told["scale"])
    assert extra(answer) == {"adapter_id": adapter["id"], **told}
    same = complete(openai, [ASKED], f"prompt:{DESK}")
    assert (extra(same), same.choices[0].message.content) == (extra(answer), answer.choices[0].message.content)
    assert counts(same) == counts(answer)  # the system message is in front of the question
    pinned = complete(openai, [{**ASKED, "content": f"{DESK}\n\n{ASKED['content']}"}], adapter["id"])
    assert pinned.choices[0].message.content == answer.choices[0].message.content
    assert client.get(adapter["links"]["archive"]).status_code == 200


def test_a_stream_is_the_same_answer_and_names_the_adapter(openai: OpenAI) -> None:
    messages: list[Any] = [system(DESK), ASKED]
    whole = complete(openai, messages)
    stream = openai.chat.completions.create(model="auto", messages=messages, temperature=0, max_tokens=8, stream=True)
    chunks = list(stream)
    assert "".join(c.delta.content or "" for k in chunks for c in k.choices) == whole.choices[0].message.content
    for chunk in chunks:
        found = chunk.model_extra or {}
        assert {name: found[name] for name in ("adapter_id", "context_used", "scale")} == extra(whole)


@pytest.mark.parametrize("messages", [[ASKED], [system("  "), ASKED]])
def test_without_a_system_message_it_is_the_plain_base(openai: OpenAI, messages: list[Any]) -> None:
    answer, base = complete(openai, messages), complete(openai, messages, BASE)
    assert extra(answer) == extra(base) == {"adapter_id": None, "context_used": "none", "scale": None}
    assert answer.choices[0].message.content == base.choices[0].message.content
    assert counts(answer) == counts(base)


def test_of_the_next_turn_only_what_is_new_is_read(openai: OpenAI, client: httpx.Client) -> None:
    first = complete(openai, [system(DESK), ASKED])
    said = {"role": "assistant", "content": first.choices[0].message.content}
    second = complete(openai, [system(DESK), ASKED, said, {"role": "user", "content": "And now?"}])
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    known = second.usage.prompt_tokens_details.cached_tokens
    assert known is not None
    assert first.usage.prompt_tokens - 8 < known < second.usage.prompt_tokens
    metrics = client.get("/metrics").text
    counted = next(line for line in metrics.splitlines() if line.startswith("llgbm_known_prompt_tokens_total"))
    assert float(counted.split()[1]) >= known


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_that_changes_in_the_middle_changes_the_adapter(openai: OpenAI, role: str) -> None:
    first = complete(openai, [system(DESK), ASKED])
    said = {"role": "assistant", "content": first.choices[0].message.content}
    again = {"role": "user", "content": "And now?"}
    kept = complete(openai, [system(DESK), ASKED, said, again])
    assert extra(kept) == extra(first)  # a continued conversation keeps its adapter
    swapped = complete(openai, [system(POEM), ASKED, said, again])
    changed = complete(openai, [system(DESK), ASKED, said, {"role": role, "content": POEM}, again])
    poet = complete(openai, [system(POEM), again])
    assert extra(changed) == extra(swapped) == extra(poet) != extra(first)
    by_hand = complete(openai, [ASKED, said, {**again, "content": f"{POEM}\n\n{again['content']}"}], BASE)
    assert changed.usage is not None
    assert by_hand.usage is not None
    # DESK is left out; POEM is the description from its place on
    assert changed.usage.prompt_tokens == by_hand.usage.prompt_tokens


def test_system_messages_that_follow_each_other_are_one(openai: OpenAI) -> None:
    assert extra(complete(openai, [system(DESK), system(POEM), ASKED])) == extra(
        complete(openai, [system(f"{DESK}\n\n{POEM}"), ASKED])
    )


@pytest.mark.parametrize("model", ["auto", f"prompt:{DESK}"])
@pytest.mark.parametrize("form", ["field", "turns", "system turns"])
def test_examples_make_the_adapter_and_stand_in_the_context(
    openai: OpenAI, client: httpx.Client, model: str, form: str
) -> None:
    head = [system(DESK)] if model == "auto" else []
    if form == "field":
        answer = complete(openai, [*head, ASKED], model, extra_body={"examples": EXAMPLES})
    else:
        answer = complete(openai, [*head, *marked("" if form == "turns" else "system"), ASKED], model)
    expected = made(client, DESK, examples=EXAMPLES)
    assert extra(answer) == {"adapter_id": expected["id"], **expected["auto"]}
    assert expected["auto"]["context_used"] == "examples"
    chat = client.post(
        "/chat", json={"prompt": DESK, "examples": EXAMPLES, "query": ASKED["content"], "max_tokens": 8}
    ).json()
    assert answer.usage is not None
    assert chat["usage"]["prompt_tokens"] == answer.usage.prompt_tokens
    assert chat["answer"] == answer.choices[0].message.content


def test_the_context_can_be_chosen(openai: OpenAI) -> None:
    lengths = {}
    for context in ("none", "description", "examples"):
        answer = complete(openai, [system(DESK), ASKED], extra_body={"context": context, "examples": EXAMPLES})
        assert extra(answer)["context_used"] == context
        assert answer.usage is not None
        lengths[context] = answer.usage.prompt_tokens
    assert lengths["none"] < lengths["description"] < lengths["examples"]


def test_the_list_of_models_has_auto(openai: OpenAI, french: str) -> None:
    listed = [model.id for model in openai.models.list()]
    assert listed[:2] == [BASE, "auto"]
    assert french in listed
    assert openai.models.retrieve("auto").id == "auto"


@pytest.mark.parametrize("model", [BASE, "french"])
@pytest.mark.parametrize(("param", "value"), [("examples", EXAMPLES), ("context", "auto"), ("context", "description")])
def test_only_a_task_has_examples_and_a_context(
    openai: OpenAI, french: str, model: str, param: str, value: object
) -> None:
    with pytest.raises(BadRequestError, match=f"{param} can be used only with the model 'auto'") as refused:
        complete(openai, [ASKED], model, extra_body={param: value})
    assert refused.value.param == param
    assert extra(complete(openai, [ASKED], model, extra_body={"context": "none"}))["context_used"] == "none"


def test_bad_contexts_and_examples_are_refused(openai: OpenAI, client: httpx.Client) -> None:
    with pytest.raises(BadRequestError, match="'none', 'description', 'examples' or 'auto'"):
        complete(openai, [system(DESK), ASKED], extra_body={"context": "all"})
    with pytest.raises(BadRequestError, match="at most 16 items"):
        complete(openai, [system(DESK), ASKED], extra_body={"examples": EXAMPLES * 9})
    with pytest.raises(UnprocessableEntityError, match="at most 16 examples, not 18"):
        complete(openai, [system(DESK), *marked("") * 9, ASKED])
    with pytest.raises(UnprocessableEntityError, match="come in pairs"):
        complete(openai, [system(DESK), *marked("")[:-1], ASKED])
    with pytest.raises(UnprocessableEntityError, match="context 'description' needs a description"):
        complete(openai, [ASKED], extra_body={"context": "description", "examples": EXAMPLES})
    for model, blamed in (("auto", "context"), ("prompt: ", "model")):
        with pytest.raises(UnprocessableEntityError) as refused:
            complete(openai, [ASKED], model, extra_body={"context": "description"})
        assert refused.value.param == blamed
    taken = client.post("/generate-adapter", json={"prompt": DESK, "name": "auto"})
    assert (taken.status_code, taken.json()["error"]["param"]) == (422, "name")
