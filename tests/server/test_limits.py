"""Rates, time limits and hang-ups: what a caller may take, and what happens to work that nobody waits for."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import StreamingResponse
from tests.server.rig import Served, app_over, asking, error_of, key_for, serving, settings_in

from steersman.errors import Busy
from steersman.models.language_model import LanguageModel
from steersman.server.limits import RateLimiter, TimeLimit, while_connected
from steersman.store.store import Store

SCOPE = {"type": "http", "method": "POST", "path": "/", "headers": [], "state": {}}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# --- rates


@given(
    per_minute=st.floats(1, 6000),
    burst=st.integers(1, 20),
    pauses=st.lists(st.floats(0, 30), min_size=1, max_size=60),
)
def test_no_more_is_let_through_than_the_burst_and_the_rate_allow(
    per_minute: float, burst: int, pauses: list[float]
) -> None:
    clock = Clock()
    limiter = RateLimiter(per_minute, burst, clock=clock)
    let_through = []
    for pause in pauses:
        clock.now += pause
        try:
            limiter.take("key")
        except Busy:
            continue
        let_through.append(clock.now)
    for first, since in enumerate(let_through):
        for last, until in enumerate(let_through[first:], first):
            assert last - first + 1 <= burst + (until - since) * per_minute / 60 + 1e-6


@given(per_minute=st.floats(1, 6000), burst=st.integers(1, 20))
def test_the_time_to_wait_is_neither_too_short_nor_too_long(per_minute: float, burst: int) -> None:
    clock = Clock()
    limiter = RateLimiter(per_minute, burst, clock=clock)
    for _ in range(burst):
        limiter.take("key")
    with pytest.raises(Busy) as caught:
        limiter.take("key")
    assert caught.value.is_callers
    clock.now += caught.value.retry_after_s * 0.9
    with pytest.raises(Busy):
        limiter.take("key")
    clock.now += caught.value.retry_after_s * 0.101
    limiter.take("key")


def test_keys_do_not_share_an_allowance() -> None:
    limiter = RateLimiter(60, 1, clock=Clock())
    limiter.take("one")
    limiter.take("other")
    with pytest.raises(Busy):
        limiter.take("one")


def test_memory_is_bounded_and_the_quietest_key_is_forgotten_first() -> None:
    limiter = RateLimiter(60, 1, clock=Clock(), most=3)
    for number in range(1000):
        limiter.take(str(number))
        assert len(limiter) <= 3
    with pytest.raises(Busy):
        limiter.take("999")
    limiter.take("0")


def test_threads_together_take_no_more_than_one_would() -> None:
    limiter, taken = RateLimiter(60, 50, clock=Clock()), []

    def take() -> None:
        for _ in range(40):
            try:
                limiter.take("key")
            except Busy:
                continue
            taken.append(1)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 50


def test_a_key_that_asks_too_often_is_told_when_to_come_back(tiny: LanguageModel, store: Store) -> None:
    eager, patient = key_for(store, "read"), key_for(store, "read")
    with asking(app_over(tiny, store, rate_per_minute=6.0, rate_burst=2), eager) as client:
        answers = [client.get("/v1/traits") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert error_of(answers[2], 429)["type"] == "rate_limit_error"
        assert 1 <= int(answers[2].headers["retry-after"]) <= 10
        assert client.get("/v1/traits", headers={"Authorization": f"Bearer {patient}"}).status_code == 200
        assert client.get("/healthz").status_code == 200


# --- time


async def _told(app: Any) -> list[Any]:
    """What an ASGI app sends when it is asked."""
    sent: list[Any] = []

    async def to_caller(message: Any) -> None:
        sent.append(message)

    await app({**SCOPE, "state": {}}, _body, to_caller)
    return sent


def test_what_takes_too_long_is_cancelled_and_answered_with_504() -> None:
    ended = []

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(True)

    sent = asyncio.run(_told(TimeLimit(slow, seconds=0.05)))
    assert sent[0]["status"] == 504
    assert b"timeout_error" in sent[1]["body"]
    assert ended == [True]


def test_an_answer_that_has_begun_may_take_longer() -> None:
    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await anyio.sleep(0.2)
        await send({"type": "http.response.body", "body": b"late"})

    assert asyncio.run(_told(TimeLimit(stream, seconds=0.05)))[-1]["body"] == b"late"


def test_a_reader_that_stops_reading_does_not_hold_an_answer_for_ever() -> None:
    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"more", "more_body": True})

    async def asked() -> None:
        async def stuck(message: Any) -> None:
            if message["type"] == "http.response.body":
                await anyio.sleep_forever()

        async def nothing() -> Any:
            await anyio.sleep_forever()

        await TimeLimit(stream, seconds=0.05)({**SCOPE}, nothing, stuck)

    asyncio.run(asyncio.wait_for(asked(), 5))


def test_an_errors_own_timeout_is_not_taken_for_ours() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise TimeoutError("of a database")

    with pytest.raises(TimeoutError, match="of a database"):
        asyncio.run(_told(TimeLimit(broken, seconds=5)))


# --- callers that hang up


async def _gone() -> Any:
    return {"type": "http.disconnect"}


async def _body() -> Any:
    return {"type": "http.request", "body": b"{}"}


def test_work_that_nobody_waits_for_is_cancelled() -> None:
    ended = []

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(True)

    async def no_answer(message: Any) -> None:
        raise AssertionError("nobody is there to be answered")

    asyncio.run(asyncio.wait_for(while_connected(slow, SCOPE, _body, _gone, no_answer), 5))
    assert ended == [True]


def test_an_answer_that_has_begun_is_left_to_whoever_streams_it() -> None:
    async def stream(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["body"] == b"{}"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await anyio.sleep(0.05)
        await send({"type": "http.response.body", "body": b"all"})

    async def asked() -> list[Any]:
        left, sent = anyio.Event(), []

        async def gone_later() -> Any:
            await left.wait()
            return await _gone()

        async def send(message: Any) -> None:
            sent.append(message)
            left.set()

        await while_connected(stream, SCOPE, _body, gone_later, send)
        return sent

    assert asyncio.run(asked())[-1]["body"] == b"all"


@pytest.fixture
def ended() -> list[str]:
    return []


@pytest.fixture
def slow(app: FastAPI, store: Store, ended: list[str]) -> Any:
    """The app behind a real port, with routes that never end by themselves."""

    @app.post("/slow")
    async def slow_route() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.append("slow")

    @app.post("/stream")
    async def stream_route() -> StreamingResponse:
        async def pieces() -> Any:
            try:
                while True:
                    yield b"piece\n"
                    await asyncio.sleep(0.01)
            finally:
                ended.append("stream")

        return StreamingResponse(pieces())

    with serving(app, settings_in(store.folder, grace_s=0.2)) as made:
        yield made


def _until(what: list[str], count: int) -> None:
    until = time.monotonic() + 10
    while len(what) < count:
        assert time.monotonic() < until, "nothing was cancelled"
        time.sleep(0.01)


def test_closing_the_connection_cancels_what_runs_behind_a_real_port(slow: Served, ended: list[str]) -> None:
    with slow.client() as client, client.stream("POST", "/stream", json={}) as response:
        next(response.iter_lines())
    _until(ended, 1)
    with slow.client() as client, pytest.raises(Exception, match="timed out"):
        client.post("/slow", json={}, timeout=0.3)
    _until(ended, 2)
    assert ended == ["stream", "slow"]
