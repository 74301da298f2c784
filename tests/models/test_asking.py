"""Replies are read strictly, asked for again with the reason, and never guessed; work in parallel keeps its order."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping

import pytest
from pydantic import JsonValue

from steersman.errors import EndpointError
from steersman.models.asking import Messages, ask_json, fields_of, in_parallel

CHAT = [{"role": "user", "content": "a number, please"}]


def _number(value: JsonValue) -> int:
    found = fields_of(value, "number")["number"]
    if type(found) is not int:
        raise ValueError(f"the number is {found!r}")
    return found


class Scripted:
    """Says one thing after the other."""

    def __init__(self, *replies: str) -> None:
        self.replies = list(replies)
        self.heard: list[list[Mapping[str, str]]] = []

    def __call__(self, messages: Messages) -> str:
        self.heard.append(list(messages))
        return self.replies.pop(0)


def test_a_right_reply_is_parsed_at_once() -> None:
    ask = Scripted(' {"number": 4}\n')
    assert ask_json(ask, CHAT, _number) == 4
    assert ask.heard == [CHAT]


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("four", "not JSON"),
        ('Here it is:\n```json\n{"number": 4}\n```', "not JSON"),
        ('{"number": 4} I think', "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"number": NaN}', "NaN is not a number"),
        ('{"number": 1, "number": 2}', "same field twice"),
        ('{"number": "4"}', "the number is '4'"),
        ('{"nummer": 4}', "expected"),
        ('{"number": 4, "why": "x"}', "expected"),
        ("[4]", "expected"),
    ],
)
def test_a_wrong_reply_is_shown_again_with_the_reason(reply: str, why: str) -> None:
    ask = Scripted(reply, '{"number": 4}')
    assert ask_json(ask, CHAT, _number) == 4
    first, said, told = ask.heard[1]
    assert first == CHAT[0]
    assert said == {"role": "assistant", "content": reply[:4000]}
    assert told["role"] == "user"
    assert why in told["content"]


def test_what_stays_wrong_is_an_error_with_the_last_reason() -> None:
    ask = Scripted("one", "two", '{"number": 1.5}')
    with pytest.raises(EndpointError, match=r"no usable answer in 3 tries: the number is 1\.5") as caught:
        ask_json(ask, CHAT, _number)
    assert "\n" not in str(caught.value)
    assert len(ask.heard[2]) == 3  # The last mistake alone.


def test_no_retries_is_one_question() -> None:
    ask = Scripted("one")
    with pytest.raises(EndpointError, match="in 1 tries"):
        ask_json(ask, CHAT, _number, retries=0)


def test_fields_come_in_their_order() -> None:
    assert fields_of({"a": 1, "b": 2}, "a", "b") == {"a": 1, "b": 2}
    with pytest.raises(ValueError, match=r'"a": \.\.\., "b": \.\.\.'):
        fields_of(json.loads('{"b": 2, "a": 1}'), "a", "b")


def test_parallel_work_keeps_its_order_and_its_bound() -> None:
    lock, now, most = threading.Lock(), [0], [0]

    def work(number: int) -> int:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02 if number % 2 else 0.005)
        with lock:
            now[0] -= 1
        return number * number

    assert in_parallel(work, range(15), 3) == [number * number for number in range(15)]
    assert most[0] == 3
    assert in_parallel(work, [], 3) == []


def test_the_first_error_ends_parallel_work() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == 3:
            raise LookupError("three")
        done.append(number)
        time.sleep(0.01)

    with pytest.raises(LookupError, match="three"):
        in_parallel(work, range(1000), 2)
    assert len(done) < 50


def test_an_interrupt_does_not_wait_for_work_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    release, begun = threading.Event(), []

    def work(number: int) -> None:
        begun.append(number)
        release.wait(10)

    def interrupted(_: threading.Thread) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        in_parallel(work, range(100), 2)
    assert time.monotonic() - began < 5
    monkeypatch.undo()
    release.set()
    time.sleep(0.05)
    assert len(begun) <= 2


@pytest.mark.parametrize("reply", ['```json\n{"number": 4}\n```', ' ```\n{"number": 4}\n```\n'])
def test_a_fence_around_the_whole_reply_is_taken_off(reply: str) -> None:
    assert ask_json(lambda _: reply, [{"role": "user", "content": "?"}], lambda value: value) == {"number": 4}
