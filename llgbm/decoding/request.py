"""DecodeRequest and Step: the rows that a decoder is given, and the tokens that it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from llgbm.decoding.json_grammar import JsonGrammar
from llgbm.decoding.sampling import SamplingParams
from llgbm.errors import LLGBMError
from llgbm.lora import LoRAWeights

FinishReason = Literal["stop", "length", "error"]


@dataclass(eq=False)
class DecodeRequest:
    """One request to the decoder.

    Attributes:
        prompt: token ids, at least one.
        adapter: None for the plain base.
        params: how to decode it.
        grammar: the required form of the answer; None for any text.
        output: the tokens so far, without the token that stopped it.
        finish_reason: None while it can go on; "error" if the model's numbers were not finite any more, or if the
            grammar had too many open possibilities: then `problem` has the grammar's words.
        known_tokens: tokens of the prompt that were taken over from another row and not read again; None before the
            prompt is read, and if the engine does not say.
    """

    prompt: Sequence[int]
    adapter: LoRAWeights | None = None
    params: SamplingParams = field(default_factory=SamplingParams)
    grammar: JsonGrammar | None = None
    output: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    problem: str | None = None
    known_tokens: int | None = None


class Step(NamedTuple):
    """One token of one row.

    Attributes:
        row: the request given to `Decoder.start` or `Decoder.add`.
        token: its new token; the stop token with finish reason "stop", -1 with "error".
        logprob: of the token, if `params.logprobs` is set.
        top_logprobs: (token, log probability) of the likeliest tokens, best first.
        finish_reason: not None in the last step of a row; the row has then left the decoder.
    """

    row: DecodeRequest
    token: int
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...]
    finish_reason: FinishReason | None


class PrefillError(LLGBMError):
    """A pass over prompts failed.

    Attributes:
        rows: those of the pass. They have left the decoder.
        steps: of the passes before it in the same call.
        cause: the error of the pass.
    """

    def __init__(self, rows: Sequence[DecodeRequest], steps: Sequence[Step], cause: Exception) -> None:
        super().__init__(f"a prompt could not be read: {type(cause).__name__}: {cause}")
        self.rows, self.steps, self.cause = rows, steps, cause
