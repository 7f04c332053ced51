"""JSON by construction: which tokens may come next, for answers that must be JSON or fit a JSON schema.

llguidance keeps a parser for each row and says which tokens of the vocabulary it would take; the decoder forbids all
others. An answer that is not cut off is then valid, whatever the model's weights are. Keywords of JSON schema that
cannot be enforced are refused, never ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from torch import Tensor

from llgbm.errors import SchemaError
from llgbm.pretrained.byte_level import token_bytes

MAX_SCHEMA_CHARS = 65_536
"""Larger schemas would hold up the other rows of a batch while they are compiled."""
_OPTIONS: Any = {
    "lenient": False,
    # no more white space than deep indentation needs: small models like to go on with it for ever
    "whitespace_pattern": r"[ \n\t]{1,40}",
}
_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS_OF_SCHEMAS = ("anyOf", "allOf", "oneOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties", "not")


class JsonGrammar:
    """The required form of an answer: any JSON object, or one that fits a JSON schema.

    Args:
        schema: a JSON schema; None for any object.

    Raises:
        SchemaError: it is no valid schema, has a keyword that cannot be enforced, or is too large.
    """

    def __init__(self, schema: Mapping[str, Any] | None = None) -> None:
        self.schema = schema
        whole: Mapping[str, Any] = {"type": "object"} if schema is None else schema
        try:
            size = len(json.dumps(whole))
        except RecursionError:
            raise SchemaError("", "it is nested too deeply") from None
        if size > MAX_SCHEMA_CHARS:
            raise SchemaError("", f"it has {size} characters as JSON, and {MAX_SCHEMA_CHARS} are the most")
        problem = _problem(whole)
        if problem:
            raise SchemaError(*_innermost(whole, problem))
        self.text = _compiled(whole)


class TokenTable:
    """The tokens of a vocabulary as llguidance wants them. Making one takes about a second for 152,000 tokens.

    Args:
        tokenizer: a byte-level tokenizer.
        size: tokens of the vocabulary.
        stop_token_ids: those that end an answer.
    """

    def __init__(self, tokenizer: Any, size: int, stop_token_ids: Sequence[int]) -> None:
        self.size = size
        self._table = LLTokenizer(
            TokenizerWrapper(_Tokens(tokenizer, size, stop_token_ids[0])),
            n_vocab=size,
            eos_token=list(stop_token_ids),
        )

    def start(self, grammar: JsonGrammar) -> Constraint:
        """The constraint of an answer that begins."""
        return Constraint(LLMatcher(self._table, grammar.text, log_level=0), self.size)


@lru_cache(maxsize=2)
def token_table(tokenizer: Any, size: int, stop_token_ids: tuple[int, ...]) -> TokenTable:
    """The table of a tokenizer, made once."""
    return TokenTable(tokenizer, size, stop_token_ids)


class Constraint:
    """Follows one answer and says which tokens may come next."""

    def __init__(self, matcher: LLMatcher, size: int) -> None:
        self._matcher, self._size = matcher, size

    @property
    def problem(self) -> str | None:
        """Why nothing more can be said about this answer, such as a schema with too many open possibilities."""
        return self._matcher.get_error() if self._matcher.is_error() else None

    def apply(self, logits: Tensor) -> Tensor:
        """Logits (vocabulary,) float32 with minus infinity for each token that may not come next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, count=self._size, bitorder="little")
        return logits.masked_fill(torch.from_numpy(allowed) == 0, float("-inf"))

    def take(self, token: int) -> None:
        """Go on after this token, which `apply` allowed."""
        self._matcher.consume_token(token)


class _Tokens:
    """A tokenizer as `llguidance.TokenizerWrapper` reads it."""

    def __init__(self, tokenizer: Any, size: int, stop_token_id: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = stop_token_id, None
        self.special_token_ids = sorted(tokenizer.added_tokens_decoder)
        self.tokens = [token_bytes(tokenizer, token) or b"" for token in range(size)]

    def __call__(self, text: bytes | str) -> list[int]:
        text = text if isinstance(text, str) else text.decode(errors="replace")
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def _compiled(schema: Mapping[str, Any]) -> str:
    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_OPTIONS)


def _problem(schema: Mapping[str, Any]) -> str:
    """What is wrong with a schema; empty if nothing is."""
    try:
        return LLMatcher.validate_grammar(_compiled(schema))
    except ValueError as error:
        return str(error)


def _innermost(root: Mapping[str, Any], problem: str) -> tuple[str, str]:
    """(place, problem) of the innermost schema that is at fault, the place as a path from the root."""
    shared = {name: root[name] for name in ("$defs", "definitions") if name in root}
    place: tuple[str, ...] = ()
    found = root
    while True:
        for step, inner in _parts(found):
            if inside := _problem({**shared, **inner}):
                place, found, problem = (*place, *step), inner, inside
                break
        else:
            return ".".join(place), problem.splitlines()[-1]


def _parts(schema: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The schemas right inside a schema, and the steps that lead to each."""
    found: list[tuple[tuple[str, ...], Any]] = [((keyword,), schema.get(keyword)) for keyword in _SCHEMAS]
    for keyword in _OF_SCHEMAS:
        inner = schema.get(keyword)
        found += [((keyword, name), part) for name, part in inner.items()] if isinstance(inner, dict) else []
    for keyword in _LISTS_OF_SCHEMAS:
        inner = schema.get(keyword)
        found += [((keyword, str(i)), part) for i, part in enumerate(inner)] if isinstance(inner, list) else []
    return ((steps, part) for steps, part in found if isinstance(part, dict))
