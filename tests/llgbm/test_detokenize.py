from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llgbm.base import Base
from llgbm.detokenize import StreamDecoder, byte_of_character
from llgbm.errors import ConfigError

EMOJI = "\N{FAMILY}\N{ZERO WIDTH JOINER}\N{ROCKET}"
alphabet = st.sampled_from(["a", "b", "ab", "\n", "\N{LATIN SMALL LETTER E WITH ACUTE}", EMOJI, " "])
texts = st.lists(alphabet, max_size=12).map("".join)
stops = st.lists(st.lists(alphabet, min_size=1, max_size=4).map("".join), max_size=3)


def run(base: Base, tokens: Sequence[int], stop: Sequence[str] = ()) -> tuple[list[str], StreamDecoder]:
    decoder = StreamDecoder(base.tokenizer, stop)
    return [*(decoder.push(token) for token in tokens), decoder.finish()], decoder


def whole(base: Base, tokens: Sequence[int]) -> str:
    text: str = base.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def cut(text: str, stop: Sequence[str]) -> tuple[str, str | None]:
    """By definition: the text up to the stop string that is complete first."""
    for end in range(1, len(text) + 1):
        if ends := [s for s in stop if text[:end].endswith(s)]:
            longest = max(ends, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(st.lists(st.integers(0, 258), max_size=40))
@example([0xE2, 0x82, 0xAC, 0xE2, 0x82])
@example([0xF0, 0x9F, 257, 0x98, 0x80])
@example([0xFF, 0xC0, 0x80])
def test_pieces_make_the_text_of_the_tokenizer(tiny_base: Base, tokens: list[int]) -> None:
    pieces, _ = run(tiny_base, tokens)
    assert "".join(pieces) == whole(tiny_base, tokens)


@pytest.mark.real
def test_pieces_make_the_text_of_the_real_tokenizer(real_base: Base) -> None:
    @given(st.lists(st.integers(0, len(real_base.tokenizer) - 1), max_size=30))
    def law(tokens: list[int]) -> None:
        pieces, _ = run(real_base, tokens)
        assert "".join(pieces) == whole(real_base, tokens)

    law()


@given(texts)
def test_no_piece_holds_a_torn_character(tiny_base: Base, text: str) -> None:
    pieces, _ = run(tiny_base, list(text.encode()))
    assert "".join(pieces) == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert pieces[-1] == ""  # without stop strings nothing whole is held back


@given(texts, stops)
@example("ab", ["ab", "b"])
@example("aab", ["ab"])
@example("abab\n", ["abab a", "b\n"])
def test_text_ends_before_the_first_complete_stop_string(tiny_base: Base, text: str, stop: list[str]) -> None:
    pieces, decoder = run(tiny_base, list(text.encode()), stop)
    expected, stopped = cut(text, stop)
    assert "".join(pieces) == expected
    assert decoder.stopped == stopped


@pytest.mark.real
def test_stop_strings_do_not_depend_on_how_text_is_cut_into_tokens(tiny_base: Base, real_base: Base) -> None:
    @given(texts, stops)
    def law(text: str, stop: list[str]) -> None:
        by_bytes, one = run(tiny_base, list(text.encode()), stop)
        by_words, other = run(real_base, real_base.tokenizer(text).input_ids, stop)
        assert "".join(by_bytes) == "".join(by_words)
        assert one.stopped == other.stopped

    law()


@given(texts, stops)
def test_what_is_sent_is_never_taken_back_nor_held_longer_than_needed(
    tiny_base: Base, text: str, stop: list[str]
) -> None:
    decoder, sent, tokens = StreamDecoder(tiny_base.tokenizer, stop), "", list(text.encode())
    for count, token in enumerate(tokens, start=1):
        sent += decoder.push(token)
        so_far = bytes(tokens[:count]).decode(errors="ignore")
        expected, stopped = cut(so_far, stop)
        if stopped is None:
            starts = [s[:n] for s in stop for n in range(1, len(s))]
            expected = expected[: len(expected) - max((len(s) for s in starts if so_far.endswith(s)), default=0)]
        assert sent == expected


def test_an_example_of_what_is_held(tiny_base: Base) -> None:
    decoder = StreamDecoder(tiny_base.tokenizer, ["\n\n", "END"])
    sent = [decoder.push(byte) for byte in b"a\nbEN\nEND!"]
    assert sent == ["a", "", "\nb", "", "", "EN", "\n", "", "", ""]
    assert decoder.stopped == "END"
    assert decoder.finish() == ""


def test_special_tokens_give_no_text_and_do_not_tear_characters(tiny_base: Base) -> None:
    end = tiny_base.tokenizer.convert_tokens_to_ids("<|im_end|>")
    euro = list("\N{EURO SIGN}".encode())
    pieces, _ = run(tiny_base, [euro[0], end, *euro[1:], end])
    assert pieces == ["", "", "", "\N{EURO SIGN}", "", ""]


def test_nothing_comes_after_a_stop_string(tiny_base: Base) -> None:
    pieces, decoder = run(tiny_base, list(b"one. two. \xe2\x82"), ["."])
    assert "".join(pieces) == "one"
    assert decoder.stopped == "."
    assert decoder.push(ord("x")) == ""


def test_an_empty_stop_string_is_refused(tiny_base: Base) -> None:
    with pytest.raises(ConfigError, match="empty"):
        StreamDecoder(tiny_base.tokenizer, ["a", ""])


def test_every_byte_has_one_stand_in() -> None:
    table = byte_of_character()
    assert list(table.values()) == list(range(256))
    assert all(len(c) == 1 and c.isprintable() and not c.isspace() for c in table)
