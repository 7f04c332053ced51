from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import torch

from llgbm.base import Base
from llgbm.config import lora_spec
from llgbm.decoding.decoder import Decoder, DecodeRequest, Step
from llgbm.decoding.json_grammar import MAX_SCHEMA_CHARS, JsonGrammar, token_table
from llgbm.decoding.sampling import SamplingParams
from llgbm.errors import ConfigError, SchemaError
from tests.fixtures import random_lora
from tests.llgbm.decoding.decoder_runs import run

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}
LIST = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 2, "maxItems": 4}
YES = {"const": "yes"}


def text_of(base: Base, row: DecodeRequest) -> str:
    text: str = base.tokenizer.decode(row.output)
    return text


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("adapted", [False, True])
def test_answers_of_a_random_model_are_valid_by_their_own_schemas_in_one_batch(
    tiny_base: Base, temperature: float, adapted: bool
) -> None:
    adapter = random_lora(lora_spec("tiny"), 1) if adapted else None
    schemas: list[Any] = [PERSON, LIST, YES, PERSON]
    rows = [
        DecodeRequest(
            [5, 6, 7 + i],
            adapter,
            SamplingParams(max_tokens=2000, temperature=temperature, seed=i),
            JsonGrammar(schema),
        )
        for i, schema in enumerate(schemas)
    ]
    free = DecodeRequest([5, 6, 7], adapter, SamplingParams(max_tokens=20, stop_token_ids=()))
    run(Decoder(tiny_base), [*rows, free])
    for row, schema in zip(rows, schemas, strict=True):
        assert row.finish_reason == "stop"
        jsonschema.validate(json.loads(text_of(tiny_base, row)), schema)
    alone = DecodeRequest([5, 6, 7], adapter, SamplingParams(max_tokens=20, stop_token_ids=()))
    run(Decoder(tiny_base), [alone])
    assert free.output == alone.output  # a row without a grammar is what it was


def test_a_cut_answer_is_the_beginning_of_json_and_says_length(tiny_base: Base) -> None:
    row = DecodeRequest([5, 6], None, SamplingParams(max_tokens=5), JsonGrammar(PERSON))
    run(Decoder(tiny_base), [row])
    assert row.finish_reason == "length"
    assert text_of(tiny_base, row).startswith("{")


def test_log_probabilities_are_those_of_the_model_not_of_the_grammar(tiny_base: Base) -> None:
    params = SamplingParams(max_tokens=1, logprobs=2)
    (free,), (held,) = (
        run(Decoder(tiny_base), [DecodeRequest([5, 6], None, params, g)]) for g in (None, JsonGrammar(YES))
    )
    assert held.token != free.token
    assert held.top_logprobs == free.top_logprobs
    assert (held.logprob or 0) < (free.logprob or 0)


def test_white_space_ends(tiny_base: Base) -> None:
    """A model that likes nothing but blanks cannot go on with them."""
    (blank,) = tiny_base.tokenizer(" ", add_special_tokens=False)["input_ids"]
    params = SamplingParams(max_tokens=200, logit_bias=((blank, 1e4),))
    row = DecodeRequest([5, 6], None, params, JsonGrammar({"type": "object", "additionalProperties": False}))
    run(Decoder(tiny_base), [row])
    assert row.finish_reason == "stop"
    assert json.loads(text_of(tiny_base, row)) == {}


@pytest.mark.parametrize(
    ("schema", "place", "words"),
    [
        ({"type": "strin"}, "", "Invalid type"),
        ({"type": "object", "properties": {"a": {"if": {}}}}, "properties.a", "Unimplemented keys"),
        ({"anyOf": [{}, {"type": "array", "items": {"not": {}}}]}, "anyOf.1.items", "Unimplemented keys"),
        ({"$defs": {"a": {"uniqueItems": True}}, "$ref": "#/$defs/a"}, "$defs.a", "uniqueItems"),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, "properties.a", "does not exist"),
        ({"$ref": "http://other.example/schema"}, "", "not present"),
        ({"type": "string", "pattern": "(?=x)"}, "", "look-around"),
        ({"type": "string", "minLength": 3, "maxLength": 1}, "", "greater than"),
        ({"properties": 5}, "", "must be an object"),
        ({"x-guidance": {"lenient": True}, "contains": {}}, "", "Unimplemented keys"),
        ({"type": "object", "properties": {"a": {"enum": []}}, "required": ["a"]}, "properties.a", "Unsatisfiable"),
        ({"anyOf": [True, {"not": {}}]}, "anyOf.1", "Unimplemented keys"),
        ({"enum": ["x" * MAX_SCHEMA_CHARS]}, "", "characters"),
    ],
)
def test_a_schema_that_cannot_be_held_to_is_refused_by_its_place(schema: Any, place: str, words: str) -> None:
    with pytest.raises(SchemaError, match=words) as caught:
        JsonGrammar(schema)
    assert caught.value.place == place


def test_a_schema_without_end_is_refused() -> None:
    deep: Any = {"type": "string"}
    for _ in range(900):
        deep = {"type": "array", "items": deep}
    with pytest.raises(SchemaError):
        JsonGrammar(deep)
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(SchemaError, match="nested too deeply"):
        JsonGrammar({"enum": deep})


def test_a_grammar_and_stop_tokens_of_the_callers_do_not_go_together(tiny_base: Base) -> None:
    row = DecodeRequest([5], None, SamplingParams(stop_token_ids=(1,)), JsonGrammar())
    with pytest.raises(ConfigError, match="stop_token_ids"):
        Decoder(tiny_base).require_valid(row)
    with pytest.raises(ConfigError, match="logit_bias"):
        Decoder(tiny_base).require_valid(DecodeRequest([5], None, SamplingParams(logit_bias=((10**6, 1.0),))))


def test_a_grammar_that_gives_up_ends_its_own_row_with_its_words(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = token_table(tiny_base.tokenizer, len(tiny_base.tokenizer), tuple(sorted(Decoder(tiny_base).stop_token_ids)))
    real = table.start

    def spent(grammar: JsonGrammar) -> Any:
        constraint = real(grammar)
        constraint.take(0)  # a token that the grammar does not take is how any of its errors shows
        return constraint

    monkeypatch.setattr(table, "start", spent)
    bad, good = (
        DecodeRequest([5], None, SamplingParams(max_tokens=3), JsonGrammar(YES)),
        DecodeRequest([5], None, SamplingParams(max_tokens=3)),
    )
    steps: list[Step] = run(Decoder(tiny_base), [bad, good])
    assert bad.finish_reason == "error"
    assert bad.problem
    assert good.finish_reason == "length"
    assert len(steps) == 4


@pytest.mark.real
def test_the_real_vocabulary_is_held_to_a_schema(real_base: Base) -> None:
    prompt = real_base.tokenizer("A cat called Tom who is 3:", add_special_tokens=False)["input_ids"]
    row = DecodeRequest(prompt, None, SamplingParams(max_tokens=120), JsonGrammar(PERSON))
    run(Decoder(real_base), [row])
    answer = json.loads(text_of(real_base, row))
    jsonschema.validate(answer, PERSON)
    assert torch.tensor(row.output).max() < len(real_base.tokenizer)
