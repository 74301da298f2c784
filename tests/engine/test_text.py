"""Tokens become text: nothing lost, no half characters, and never a part of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steersman.engine.text import TextStream


def decoder(vocabulary: Sequence[bytes]) -> Callable[[Sequence[int]], str]:
    """Decode ids as a byte-level tokenizer does."""
    return lambda ids: b"".join(vocabulary[index] for index in ids).decode("utf-8", "replace")


@st.composite
def cut_up(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> list[bytes]:
    """The bytes of a text, cut anywhere, in the middle of characters too."""
    data = draw(texts).encode()
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=12)))
    return [data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True) if start < stop]


def pieces(tokens: Sequence[bytes], stop: Sequence[str] = (), at_once: int = 1) -> tuple[TextStream, list[str]]:
    """Run the tokens through a stream; what was taken after each push, and at the end."""
    stream = TextStream(decoder(tokens), [], stop)
    taken = []
    for start in range(0, len(tokens), at_once):
        stream.push(range(start, min(start + at_once, len(tokens))))
        taken.append(stream.take())
        if stream.is_stopped:
            break
    stream.push([], last=True)
    return stream, [*taken, stream.take(last=True)]


# --- whole text


@settings(deadline=None)
@given(cut_up(st.text(max_size=30)), st.integers(1, 3))
def test_pieces_join_to_the_text(tokens: list[bytes], at_once: int) -> None:
    stream, taken = pieces(tokens, at_once=at_once)
    assert stream.text == "".join(taken) == b"".join(tokens).decode()


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=5), max_size=12))
def test_bytes_that_are_no_text_come_out_as_a_whole_decode_shows_them(tokens: list[bytes]) -> None:
    stream, taken = pieces(tokens)
    assert stream.text == "".join(taken) == b"".join(tokens).decode("utf-8", "replace")


@settings(deadline=None)
@given(cut_up(st.text(st.characters(codec="utf-8", exclude_characters="�"), max_size=30)))
def test_no_piece_holds_half_a_character(tokens: list[bytes]) -> None:
    assert not any("�" in piece for piece in pieces(tokens)[1])


def test_a_character_comes_with_its_last_byte() -> None:
    _, taken = pieces([b"a", b"\xf0", b"\x9f", b"\x8e", b"\x89", b"b"])
    assert taken == ["a", "", "", "", "🎉", "b", ""]


def test_an_unfinished_character_is_shown_when_nothing_more_comes() -> None:
    _, taken = pieces([b"a", b"\xf0", b"\x9f"])
    assert taken == ["a", "", "", "�"]


def test_a_space_survives_a_tokenizer_that_drops_it_at_the_beginning() -> None:
    words = ["Hello", " there", " friend"]
    stream = TextStream(lambda ids: "".join(words[index] for index in ids).removeprefix(" "), [0])
    stream.push([1])
    stream.push([2])
    assert stream.text == " there friend"


def test_a_long_answer_costs_no_more_a_token_than_a_short_one() -> None:
    seen: list[int] = []

    def decode(ids: Sequence[int]) -> str:
        seen.append(len(ids))
        return "x" * len(ids)

    stream = TextStream(decode, list(range(1000)))
    for token in range(200):
        stream.push([token])
        stream.take()
    assert max(seen) < 10


# --- stop strings


@settings(deadline=None)
@given(cut_up(st.text("abc é", max_size=30)), st.lists(st.text("abcé", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_a_stop_string_and_no_part_of_it_was_shown(tokens: list[bytes], stop: list[str]) -> None:
    stream, taken = pieces(tokens, stop)
    whole, shown = b"".join(tokens).decode(), ""
    assert not any(word in stream.text for word in stop)
    assert stream.is_stopped == any(word in whole for word in stop)
    if stream.is_stopped:
        assert whole.startswith(stream.text)
        assert any(whole[len(stream.text) :].startswith(word) for word in stop)
    else:
        assert stream.text == whole
    for piece in taken:
        shown += piece
        assert stream.text.startswith(shown)
    assert shown == stream.text


@pytest.mark.parametrize(
    ("tokens", "stop", "text"),
    [
        (["one ", "EN", "D two"], ["END"], "one "),  # Over two tokens, and in the middle of one.
        (["one END two"], ["END"], "one "),
        (["x", "E", "N", "D"], ["END"], "x"),
        (["a STOP b END"], ["END", "STOP"], "a "),  # Both in one token: the first one counts.
        (["EN", "EN", "D"], ["END"], "EN"),  # A false start within which the true one begins.
        (["aab", "aac"], ["aac"], "aab"),
        (["EN"], ["END"], "EN"),  # Held back, and shown at the end.
        (["END"], ["END"], ""),
        (["é", "à"], ["à"], "é"),
    ],
)
def test_stop_strings(tokens: list[str], stop: list[str], text: str) -> None:
    stream, taken = pieces([token.encode() for token in tokens], stop)
    assert stream.text == "".join(taken) == text


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    _, taken = pieces([b"a", b"E", b"N", b"X"], ["END"])
    assert taken == ["a", "", "", "ENX", ""]


def test_nothing_is_added_after_a_stop_string() -> None:
    stream = TextStream(decoder([b"aEND", b"b"]), [], ["END"])
    stream.push([0])
    stream.push([1])
    assert stream.text == "a"
