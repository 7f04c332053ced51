from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from service.chat.text_stream import TextStream


def decode(ids: Sequence[int]) -> str:
    """One token is one byte, the hardest case for characters of several bytes."""
    return bytes(ids).decode("utf-8", errors="replace")


@given(st.text(max_size=40))
def test_the_pieces_of_valid_text_are_the_text_and_hold_whole_characters_only(text: str) -> None:
    stream = TextStream(decode)
    pieces = [stream.push(byte) for byte in text.encode()]
    assert "".join(pieces) + stream.finish() == text == stream.text
    assert all("�" not in piece or "�" in text for piece in pieces)


@given(st.binary(max_size=60))
def test_the_pieces_of_any_bytes_are_what_decoding_them_at_once_gives(data: bytes) -> None:
    stream = TextStream(decode)
    pieces = [stream.push(byte) for byte in data]
    assert "".join(pieces) + stream.finish() == decode(data)


@given(
    st.text(alphabet="abé", max_size=30),
    st.lists(st.text(alphabet="abé", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_text_ends_before_the_first_stop_string_and_nothing_of_it_gets_out(text: str, stop: list[str]) -> None:
    stream = TextStream(decode, stop)
    out = ""
    for byte in text.encode():
        out += stream.push(byte)
        if stream.stopped:
            break
    out += stream.finish()
    # the first complete stop string ends the text
    ends = [(at + len(s), at) for s in stop if (at := text.find(s)) >= 0]
    assert stream.stopped == bool(ends)
    if ends:
        complete = min(end for end, _ in ends)
        assert out == text[: min(at for end, at in ends if end == complete)]
    else:
        assert out == text


def test_a_run_that_never_forms_a_character_is_given_out_in_the_end() -> None:
    stream = TextStream(decode)
    out = "".join(stream.push(0x80) for _ in range(500))
    assert len(out) >= 499
    assert out + stream.finish() == "�" * 500


def test_nothing_comes_after_a_stop_string() -> None:
    stream = TextStream(decode, ["b"])
    assert [stream.push(byte) for byte in b"abab"] == ["a", "", "", ""]
    assert stream.finish() == ""
