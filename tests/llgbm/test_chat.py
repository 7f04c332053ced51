from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llgbm.base import Base
from llgbm.chat import answer_ids, in_context, prompt_ids, task_messages
from llgbm.errors import ConfigError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda text: "<|" not in text)
pairs = st.tuples(texts, texts)

REAL_TEXTS = [
    "cheese",
    "fromage",
    "42",
    "-1.5",
    "yes",
    "[3, 1, 2]",
    '{"a": 1}',
    "Ein Satz mit Umlauten: größer.",
    "two\nlines",
    "(a) the first",
    "a",
    "   indented",
    "日本語",
    "🙂",
]


@pytest.fixture(scope="module")
def real_tokenizer(real_base_path: Path) -> Any:
    return AutoTokenizer.from_pretrained(real_base_path)


def whole_conversation(tokenizer: Any, messages: list[dict[str, str]], answer: str) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(
        [*messages, {"role": "assistant", "content": answer}], return_dict=False
    )
    return ids


def require_same_as_template(tokenizer: Any, messages: list[dict[str, str]], answer: str) -> None:
    """A row is the template's conversation up to the end of the answer; the template closes it with a line break."""
    row = [*prompt_ids(tokenizer, messages), *answer_ids(tokenizer, answer)]
    whole = whole_conversation(tokenizer, messages, answer)
    assert whole[: len(row)] == row
    assert tokenizer.decode(whole[len(row) :]) == "\n"
    assert tokenizer.decode(row[-1:]) == "<|im_end|>"


@given(given_input=texts, answer=texts, description=st.none() | texts, examples=st.lists(pairs, max_size=2))
def test_a_row_is_what_the_template_says(
    tiny_base: Base, given_input: str, answer: str, description: str | None, examples: list[tuple[str, str]]
) -> None:
    messages = task_messages(given_input, description=description, examples=examples)
    require_same_as_template(tiny_base.tokenizer, messages, answer)


@pytest.mark.real
@pytest.mark.parametrize("answer", REAL_TEXTS)
def test_a_row_is_what_the_real_bases_template_says(real_tokenizer: Any, answer: str) -> None:
    for description in (None, "Translate the word to French."):
        for examples in ([], [("a", "b")]):
            messages = task_messages("cheese", description=description, examples=examples)
            require_same_as_template(real_tokenizer, messages, answer)


@pytest.mark.real
def test_the_real_base_begins_with_its_own_system_message(real_tokenizer: Any) -> None:
    text = real_tokenizer.decode(prompt_ids(real_tokenizer, task_messages("cheese")))
    assert text == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\ncheese<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_system_message_of_ones_own_replaces_the_default(tiny_base: Base) -> None:
    tokenizer = tiny_base.tokenizer
    own = tokenizer.decode(prompt_ids(tokenizer, [{"role": "system", "content": "Be brief."}, *task_messages("a")]))
    assert own.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na")
    assert "Qwen" in tokenizer.decode(prompt_ids(tokenizer, task_messages("a")))


def test_the_description_stands_above_every_input_and_examples_are_earlier_turns() -> None:
    assert task_messages("c", description="Say it in French.", examples=[("a", "A"), ("b", "B")]) == [
        {"role": "user", "content": "Say it in French.\n\na"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "Say it in French.\n\nb"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "Say it in French.\n\nc"},
    ]
    assert task_messages("c") == [{"role": "user", "content": "c"}]


@given(left=texts, right=texts)
def test_prompts_differ_in_the_input_alone(tiny_base: Base, left: str, right: str) -> None:
    tokenizer = tiny_base.tokenizer
    one, other = (tokenizer.decode(prompt_ids(tokenizer, task_messages(text))) for text in (left, right))
    head = one[: one.index("<|im_start|>user\n") + len("<|im_start|>user\n")]
    tail = "<|im_end|>\n<|im_start|>assistant\n"
    assert other.startswith(head)
    assert one.endswith(tail)
    assert other.endswith(tail)


@given(description=texts.filter(bool), given=texts, earlier=st.lists(pairs, max_size=2))
def test_a_described_conversation_begins_like_the_one_of_training(
    description: str, given: str, earlier: list[tuple[str, str]]
) -> None:
    turns = [turn for asked, said in earlier for turn in (_turn("user", asked), _turn("assistant", said))]
    system, first, *others = in_context(
        [_turn("system", "be kind"), *turns, _turn("user", given)], description=description
    )
    assert system == _turn("system", "be kind")
    assert [first] == task_messages(earlier[0][0] if earlier else given, description=description)
    assert others == [*turns, _turn("user", given)][1:]


def test_a_conversation_in_which_nobody_asks_cannot_be_described() -> None:
    with pytest.raises(ConfigError, match="and there is none"):
        in_context([_turn("system", "be kind")], description="Say it in French.")


@given(description=texts.filter(bool), given=texts, examples=st.lists(pairs, max_size=2), earlier=pairs)
def test_a_description_that_came_later_stands_where_it_came_with_its_examples(
    description: str, given: str, examples: list[tuple[str, str]], earlier: tuple[str, str]
) -> None:
    before = [_turn("user", earlier[0]), _turn("assistant", earlier[1])]
    found = in_context([*before, _turn("user", given)], description=description, examples=examples, start=2)
    assert found == [*before, *task_messages(given, description=description, examples=examples)]
    assert in_context([*before, _turn("user", given)], start=2) == [*before, _turn("user", given)]


def test_the_answer_goes_on_from_the_last_message(tiny_base: Base) -> None:
    tokenizer = tiny_base.tokenizer
    asked = task_messages("cheese")
    head = tokenizer.decode(prompt_ids(tokenizer, asked))
    for begun in ("from", "from ", ""):
        text = tokenizer.decode(prompt_ids(tokenizer, [*asked, _turn("assistant", begun)], continue_final_message=True))
        assert text == head + begun
    without = tokenizer.decode(prompt_ids(tokenizer, asked, add_generation_prompt=False))
    assert head.removeprefix(without) == "<|im_start|>assistant\n"


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
