"""JSON answers: any object, or one of a schema, in all forms of responses."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel

from tests.service.clients.conftest import BASE, USER, ask, refusal, text_of
from tests.service.support.harness import LiveServer

CAT: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 30}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
YES: dict[str, Any] = {**CAT, "properties": {"yes": {"const": True}}, "required": ["yes"]}


def of_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", [BASE, "french"])
def test_an_answer_fits_its_schema(client: httpx.Client, french: str, model: str, stream: bool) -> None:
    for more in ({}, {"temperature": 1, "seed": 3}):
        form = of_schema(CAT)
        answer = ask(client, model=model, response_format=form, max_tokens=800, stream=stream, **more)
        if stream:
            lines = answer.text.split("\n\n")
            chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
            choices = [choice for chunk in chunks for choice in chunk["choices"]]
            text = "".join(choice["delta"].get("content", "") for choice in choices)
            assert choices[-1]["finish_reason"] == "stop"
        else:
            text = text_of(answer)
            assert answer.json()["choices"][0]["finish_reason"] == "stop"
        jsonschema.validate(json.loads(text), CAT)


def test_rows_of_different_schemas_and_of_none_share_a_batch(client: httpx.Client, french: str) -> None:
    asked: list[dict[str, Any]] = [
        {"response_format": of_schema(CAT), "max_tokens": 800},
        {"response_format": of_schema(YES), "max_tokens": 800, "model": "french"},
        {"max_tokens": 40},
        {"response_format": of_schema(CAT), "max_tokens": 800, "n": 2, "temperature": 1, "seed": 1},
    ]
    with ThreadPoolExecutor(len(asked)) as pool:
        cat, yes, free, two = pool.map(lambda more: ask(client, **more), asked)
    jsonschema.validate(json.loads(text_of(cat)), CAT)
    assert json.loads(text_of(yes))["yes"] is True
    assert text_of(free) == text_of(ask(client, max_tokens=40))
    for choice in two.json()["choices"]:
        jsonschema.validate(json.loads(choice["message"]["content"]), CAT)


def test_any_object_and_the_form_of_llama_cpp(client: httpx.Client) -> None:
    # a random model would write an endless string, so it may not open one
    answer = ask(client, response_format={"type": "json_object"}, logit_bias={"34": -100}, max_tokens=300)
    assert isinstance(json.loads(text_of(answer)), dict)
    with_schema = ask(client, response_format={"type": "json_object", "schema": CAT}, max_tokens=800)
    jsonschema.validate(json.loads(text_of(with_schema)), CAT)


def test_a_cut_answer_says_length(client: httpx.Client) -> None:
    choice = ask(client, response_format=of_schema(CAT), max_tokens=4).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"].startswith("{")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "strin"}, ""),
        ({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}, ".properties.a"),
        ({"$ref": "http://other.example/x"}, ""),
        ({"enum": ["x" * 70_000]}, ""),
    ],
)
def test_a_schema_that_cannot_be_held_to_is_refused_by_its_place(
    client: httpx.Client, schema: dict[str, Any], place: str, stream: bool
) -> None:
    param, words = refusal(ask(client, response_format=of_schema(schema), stream=stream))
    assert param == f"response_format.json_schema.schema{place}"
    assert place.removeprefix(".") in words


def test_openais_client_parses_what_comes(server: LiveServer) -> None:
    class Cat(BaseModel):
        kind: Literal["cat", "dog"]
        tame: bool

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.parse(
            model=BASE,
            messages=USER,
            response_format=Cat,
            max_tokens=800,
            temperature=0,
        )
    assert isinstance(answer.choices[0].message.parsed, Cat)
