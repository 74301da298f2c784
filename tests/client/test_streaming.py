"""Events from bytes: the same whatever the pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steersman.client.streaming import EventParser, ServerEvent

_TEXT = (
    "﻿: a comment\n"
    "data: one\n\n"
    "event: told\r\nid: 7\r\ndata: two\r\ndata:  lines\r\n\r\n"
    "data\n\n"
    "retry: 10\rid\rdata:Größe 🏴‍☠️\r\r"
    "event: nothing\n\n"
    "unknown: x\ndata: {}\n\n"
    "data: not ended"
).encode()
_EVENTS = [
    ServerEvent("message", "one", None),
    ServerEvent("told", "two\n lines", "7"),
    ServerEvent("message", "", "7"),
    ServerEvent("message", "Größe 🏴‍☠️", ""),
    ServerEvent("message", "{}", ""),
]


def parsed(*chunks: bytes) -> list[ServerEvent]:
    parser = EventParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def test_a_stream_of_every_kind_of_line() -> None:
    assert parsed(_TEXT) == _EVENTS


@given(st.lists(st.integers(0, len(_TEXT)), max_size=12))
def test_pieces_make_no_difference(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(_TEXT)]
    assert parsed(*(_TEXT[a:b] for a, b in zip(places, places[1:], strict=False))) == _EVENTS


def test_byte_by_byte() -> None:
    assert parsed(*(bytes([byte]) for byte in _TEXT)) == _EVENTS


@given(
    st.lists(st.text().filter(lambda t: "\r" not in t and "\n" not in t), max_size=5),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_what_is_sent_arrives(lines: list[str], end: str) -> None:
    sent = "".join(f"data: {line}{end}" for line in lines) + end
    assert [event.data for event in parsed(sent.encode())] == (["\n".join(lines)] if lines else [])


def test_an_event_comes_out_as_soon_as_it_ends() -> None:
    parser = EventParser()
    assert parser.feed(b"data: 1\r\r") == [ServerEvent("message", "1", None)]  # Whether a LF follows is not waited for.
    assert parser.feed(b"\ndata: 2\n") == []
    assert parser.feed(b"\n") == [ServerEvent("message", "2", None)]


def test_an_id_with_nul_is_ignored_and_bad_utf_8_is_marked() -> None:
    assert parsed(b"id: 1\ndata: a\n\nid: 2\x00\ndata: \xff\n\n") == [
        ServerEvent("message", "a", "1"),
        ServerEvent("message", "�", "1"),
    ]


@pytest.mark.parametrize("piece", [b"x" * (1 << 20), b"data: " + b"x" * (1 << 20) + b"\n"])
def test_a_flood_without_an_end_is_refused(piece: bytes) -> None:
    with pytest.raises(ValueError, match="16 MiB"):
        parsed(*[piece] * 20)
