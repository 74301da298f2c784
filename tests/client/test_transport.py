"""Asking a server that misbehaves on purpose: what is tried again, what is not, and what the errors say and do not say."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from tests.client.rude import Act, Rude, answer, events

from steersman.client.flow import ask, each, follow, listen, poll
from steersman.client.refusals import retry_after_s
from steersman.client.steps import Again, Call
from steersman.client.target import Target
from steersman.client.transport import AsyncDriver, Driver
from steersman.errors import ApiError, RequestError

KEY = "ssm_abc123_" + "s3cret" * 7
DONE = answer({"ok": 1})


def get(**facts: Any) -> Call[Any]:
    return Call(**{"method": "GET", "path": "/v1/x", "read": lambda said: said["ok"], "is_harmless": True, **facts})


def post(**facts: Any) -> Call[Any]:
    return get(**{"method": "POST", "body": {"a": 1}, "is_harmless": False, **facts})


def stream(**facts: Any) -> Call[Any]:
    return get(is_stream=True, **facts)


@pytest.fixture(autouse=True)
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between attempts, not waited for but written down."""
    pauses: list[float] = []
    real = Target.wait_s

    def wait_s(self: Target, step: Again) -> float | None:
        seconds = real(self, step)
        if seconds is None:
            return None
        pauses.append(seconds)
        return 0.0

    monkeypatch.setattr(Target, "wait_s", wait_s)
    return pauses


def both(url: str, make: Callable[[], Any], **facts: Any) -> list[Any]:
    """What a flow comes to (or its error) on a thread and on asyncio."""

    def on_thread() -> Any:
        driver = Driver(Target(url, **facts))
        try:
            return driver.run(make())
        except ApiError as error:
            return error
        finally:
            driver.close()

    async def on_loop() -> Any:
        driver = AsyncDriver(Target(url, **facts))
        try:
            return await driver.run(make())
        except ApiError as error:
            return error
        finally:
            await driver.close()

    return [on_thread(), asyncio.run(on_loop())]


def fails(*acts: Act, call: Call[Any] | None = None, heard: int | None = None, **facts: Any) -> ApiError:
    """The error that both drivers end with, after as many requests as expected."""
    errors = []
    for driver in (0, 1):
        with Rude(acts) as rude:
            error = (
                both(rude.url, lambda: ask(call or get()), **facts)[driver]
                if len(acts) == 1
                else _one(rude, driver, call, facts)
            )
            assert isinstance(error, ApiError), error
            errors.append(error)
            if heard is not None:
                assert len(rude.heard) == heard * (2 if len(acts) == 1 else 1)
    assert [(e.status, e.kind, e.request_id) for e in errors[:1]] == [
        (e.status, e.kind, e.request_id) for e in errors[1:]
    ]
    assert "\n" not in str(errors[0])
    return errors[0]


def _one(rude: Rude, driver: int, call: Call[Any] | None, facts: dict[str, Any]) -> Any:
    made = [Driver, AsyncDriver][driver](Target(rude.url, **facts))
    try:
        ran = made.run(ask(call or get()))
        return asyncio.run(ran) if driver else ran
    except ApiError as error:
        return error


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


# --- answers


def test_an_answer_is_read_by_both() -> None:
    with Rude([DONE]) as rude:
        assert both(rude.url, lambda: ask(post(query={"q": "a b&c/ü"})), key=KEY) == [1, 1]
    [one, two] = rude.heard
    assert one == two
    assert one.line == "POST /v1/x?q=a+b%26c%2F%C3%BC HTTP/1.1"
    assert one.json == {"a": 1}
    assert one.headers["authorization"] == f"Bearer {KEY}"
    assert one.headers["user-agent"].startswith("steersman/")


def test_the_base_url_may_end_in_v1() -> None:
    assert (
        Target("http://h:1/v1/").base_url
        == Target("http://h:1/v1").base_url
        == Target("http://h:1").base_url
        == "http://h:1"
    )
    assert Target("https://h/steer/").base_url == "https://h/steer"


@pytest.mark.parametrize(
    "url",
    ["h:1", "ftp://h", "http://", "http://u:pw@h", "http://h?x=1", "http://h:99999", "http://h h", "http://[::1", ""],
)
def test_a_base_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(RequestError, match="base_url looks like") as found:
        Target(url)
    assert "pw" not in str(found.value)


@pytest.mark.parametrize("key", ["", "a b", "a\nb", "schlüssel"])
def test_a_key_that_is_none_is_refused_unsaid(key: str) -> None:
    with pytest.raises(RequestError, match="API key") as found:
        Target("http://h", key)
    assert not key or key not in str(found.value)


def test_numbers_that_json_does_not_have_are_refused_before_anything_is_sent() -> None:
    with Rude([DONE]) as rude, pytest.raises(RequestError, match="no JSON"):
        Driver(Target(rude.url)).run(ask(post(body={"x": float("nan")})))
    assert rude.heard == []


def test_a_closed_client_says_so() -> None:
    driver = Driver(Target("http://127.0.0.1:1"))
    driver.close()
    with pytest.raises(RequestError, match="closed"):
        driver.run(ask(get()))


# --- what is tried again


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("call", [get(), post()], ids=["get", "post"])
def test_a_refusal_for_now_is_tried_again_when_the_server_says(
    status: int, call: Call[Any], waited: list[float]
) -> None:
    busy = answer({"error": {"message": "busy", "type": "t"}}, status, Retry_After="3")
    for driver in (0, 1):
        with Rude([busy, busy, DONE]) as rude:
            assert _one(rude, driver, call, {}) == 1
            assert len(rude.heard) == 3
    assert len(waited) == 4
    assert all(3 <= seconds <= 3.5 for seconds in waited)


def test_patience_ends(waited: list[float]) -> None:
    error = fails(answer({"error": {"message": "full", "type": "unavailable_error"}}, 503), heard=3, retries=2)
    assert (error.status, error.kind) == (503, "unavailable_error")
    assert "full" in str(error)
    assert len(waited) == 8  # Two pauses, twice in each of two servers.
    assert 0.25 <= waited[0] <= 0.5 <= waited[1] <= 1


def test_a_wait_that_is_too_long_is_left_to_the_caller() -> None:
    error = fails(answer({"error": {"message": "come back in an hour", "type": "t"}}, 429, Retry_After="3600"), heard=1)
    assert error.status == 429


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 500, 502, 504])
def test_other_refusals_are_final(status: int) -> None:
    error = fails(answer({"error": {"message": "no", "type": "kind", "request_id": "r-1"}}, status), heard=1)
    assert (error.status, error.kind, error.request_id) == (status, "kind", "r-1")
    assert f"GET /v1/x answered {status}: no" in str(error)
    assert "r-1" in str(error)


def test_a_server_that_is_not_there_yet_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    port, real = free_port(), Target.wait_s
    started: list[Rude] = []

    def wait_s(self: Target, step: Again) -> float | None:
        if not started:
            rude = Rude([DONE])
            rude._socket = socket.create_server(("127.0.0.1", port))
            rude._thread = threading.Thread(target=rude._serve, daemon=True)
            rude._thread.start()
            started.append(rude)
        return real(self, step)

    monkeypatch.setattr(Target, "wait_s", wait_s)
    assert Driver(Target(f"http://127.0.0.1:{port}")).run(ask(post())) == 1
    started[0].__exit__()


def test_nobody_there() -> None:
    for error in both(f"http://127.0.0.1:{free_port()}", lambda: ask(post()), key=KEY):
        assert (error.status, error.kind) == (0, "unreachable")
        assert "steersman serve" in str(error)


@pytest.mark.parametrize(
    "cut", [Act((b"",)), Act((b"",), is_cut=True), Act((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{",))]
)
def test_a_broken_connection_is_tried_again_only_where_that_is_harmless(cut: Act) -> None:
    for driver in (0, 1):
        with Rude([cut, DONE]) as rude:
            assert _one(rude, driver, get(), {}) == 1
        with Rude([cut, DONE]) as rude:
            error = _one(rude, driver, post(), {})
            assert isinstance(error, ApiError)
            assert (error.status, error.kind) == (0, "broken")
            assert len(rude.heard) == 1


def test_a_slow_server_is_not_asked_again() -> None:
    error = fails(Act((b"HTTP/1.1 200 OK\r\n",), pause_s=0.6), timeout_s=0.2, heard=None)
    assert (error.status, error.kind) == (0, "timeout")
    assert "0.2 s" in str(error)


def test_a_body_that_trickles_ends_as_well() -> None:
    trickle = Act((b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", *[b" "] * 20), pause_s=0.4)
    with Rude([trickle]) as rude:
        begin = time.monotonic()
        error = _one(rude, 0, get(), {"timeout_s": 0.4})
        assert error.kind == "timeout"
        assert time.monotonic() - begin < 6


# --- nonsense


@pytest.mark.parametrize(
    "act",
    [
        answer(b"<html><body>It works!</body></html>", Content_Type="text/html"),
        answer(b""),
        answer(b'{"ok": '),
        answer(b"\xff\xfe\x00"),
        answer([1, 2]),
        answer({"other": 1}),
        answer(b"[" * 100_000),
        answer(None),
    ],
)
def test_nonsense_is_named(act: Act) -> None:
    error = fails(act, heard=1)
    assert (error.status, error.kind) == (200, "not_understood")
    assert "is this a steersman server" in str(error)
    assert len(str(error)) < 500


@pytest.mark.parametrize(
    "body", [b"<h1>502 Bad Gateway</h1>", b"", b"{", b'{"error": 3}', b'{"error": {"message": 7}}', b"\xff" * 9000]
)
def test_a_refusal_in_any_form_keeps_its_status(body: bytes) -> None:
    error = fails(answer(body, 502, X_Request_Id="r-2"), heard=1)
    assert (error.status, error.kind, error.request_id) == (502, "error", "r-2")
    assert len(str(error)) < 500


def test_no_http_at_all() -> None:
    error = fails(Act((b"SSH-2.0-OpenSSH_9.2\r\n",)), call=post(), heard=1)
    assert error.kind == "broken"


# --- the key


def test_a_redirect_is_not_followed() -> None:
    with Rude([DONE]) as elsewhere:
        error = fails(answer(b"", 307, Location=f"{elsewhere.url}/v1/x?token=1"), key=KEY, heard=1)
        assert (error.status, error.kind) == (307, "redirect")
        assert elsewhere.url in str(error)
        assert "token" not in str(error)
    assert elsewhere.heard == []


def test_the_key_is_nowhere_to_be_read(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    acts = [
        answer(
            {"error": {"message": f"the key {KEY} is wrong", "type": KEY, "request_id": KEY}}, 401, X_Request_Id=KEY
        ),
        answer(f"<p>{' ' * 90}{KEY}</p>".encode()),
        answer(b"", 302, Location=f"http://h/{KEY}"),
        events(b'data: {"error": {"message": "' + KEY.encode() + b'"}}\n\n'),
        Act((KEY.encode(),)),
    ]
    for act in acts:
        with Rude([act]) as rude:
            calls = [lambda: ask(get()), lambda: each(listen(stream()), lambda _: None)]
            for error in (found for call in calls for found in both(rude.url, call, key=KEY, retries=0)):
                told = "".join(traceback.format_exception(error)) + repr(vars(error)) + repr(error)
                assert KEY[:20] not in told
                assert error.__cause__ is None
                assert error.__context__ is None or KEY not in repr(vars(error.__context__))
    # What the HTTP library logs of a header that the server sent is not ours to change.
    assert KEY not in "".join(line for line in caplog.text.splitlines() if "receive_response_headers" not in line)
    assert KEY not in repr(Target("http://h", KEY))


def test_nothing_that_holds_the_key_hangs_on_an_error() -> None:
    for error in both(f"http://127.0.0.1:{free_port()}", lambda: ask(get()), key=KEY, retries=0):
        seen: BaseException | None = error
        while seen is not None:
            assert not isinstance(seen, httpx2.HTTPError)
            seen = seen.__cause__ or seen.__context__


# --- streams


def test_events_come_one_by_one_and_the_end_is_the_end() -> None:
    def on_thread(url: str) -> list[str]:
        return [event.data for event in Driver(Target(url)).stream(listen(stream()))]

    async def on_loop(url: str) -> list[str]:
        return [event.data async for event in AsyncDriver(Target(url)).stream(listen(stream()))]

    with Rude([events(b"data: 1\n\nda", b"ta: \xc3", b"\xbc\n", b"\n: ping\n\n")]) as rude:
        assert on_thread(rude.url) == asyncio.run(on_loop(rude.url)) == ["1", "ü"]


def test_a_stream_begins_before_it_ends() -> None:
    with Rude([events(b"data: 1\n\n", b"data: 2\n\n", pause_s=1.5)]) as rude:
        begin = time.monotonic()
        with Driver(Target(rude.url)).stream(listen(stream())) as found:
            assert next(found).data == "1"
            assert time.monotonic() - begin < 2.9


@pytest.mark.parametrize(
    ("act", "status", "kind"),
    [
        (events(b"data: 1\n\n", is_whole=False), 0, "broken"),
        (events(b'data: {"error": {"message": "out of memory", "type": "internal_error"}}\n\n'), 200, "internal_error"),
        (answer({"ok": 1}), 200, "not_understood"),
        (answer({"error": {"message": "no", "type": "k"}}, 404), 404, "k"),
    ],
)
def test_a_stream_that_goes_wrong(act: Act, status: int, kind: str) -> None:
    with Rude([act]) as rude:
        for error in both(rude.url, lambda: each(listen(stream()), lambda _: None)):
            assert (error.status, error.kind) == (status, kind)


def test_leaving_a_stream_hangs_up() -> None:
    with Rude([events(*[b"data: x\n\n"] * 50, pause_s=0.05)]) as rude:
        driver = Driver(Target(rude.url))
        for _ in driver.stream(listen(stream())):
            break
        assert not driver._http._transport._pool.connections  # type: ignore[attr-defined]

        async def leave() -> None:
            found = AsyncDriver(Target(rude.url))
            async with found.stream(listen(stream())) as items:
                async for _ in items:
                    break
            assert not found._http._transport._pool.connections  # type: ignore[attr-defined]

        asyncio.run(leave())


def test_a_cancelled_task_hangs_up() -> None:
    async def cancelled(url: str) -> None:
        driver = AsyncDriver(Target(url))

        async def read() -> None:
            async for _ in driver.stream(listen(stream())):
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not driver._http._transport._pool.connections  # type: ignore[attr-defined]

    with Rude([events(*[b"data: x\n\n"] * 50, pause_s=0.05)]) as rude:
        asyncio.run(cancelled(rude.url))


def _followed(url: str) -> tuple[list[Any], list[str]]:
    seen: list[str] = []
    return both(url, lambda: each(follow(stream(), "over"), lambda event: seen.append(event.data))), seen


def test_a_lost_stream_goes_on_after_the_last_event() -> None:
    lost = events(b"id: 1\ndata: a\n\nid: 2\ndata: b\n\nid: 3\nda", is_whole=False)
    rest = events(b"id: 3\ndata: c\n\nid: 4\nevent: over\ndata: d\n\n")
    with Rude([lost, rest]) as rude:
        [first, _], seen = _followed(rude.url)
    assert first is None
    assert seen[:4] == ["a", "b", "c", "d"]
    assert [heard.headers.get("last-event-id") for heard in rude.heard[:2]] == [None, "2"]


def test_a_stream_is_over_only_with_its_last_event() -> None:
    with Rude([events()]) as rude:
        found, seen = _followed(rude.url)
        assert [error.kind for error in found] == ["broken", "broken"]
        assert seen == []
        assert len(rude.heard) == 8  # Four times each.
    with Rude([events(b"id: 1\ndata: a\n\n"), answer({}, 503), events(b"event: over\ndata: b\n\n")]) as rude:
        assert _followed(rude.url) == ([None, None], ["a", "b", "b"])
        assert rude.heard[2].headers["last-event-id"] == "1"


def test_a_server_that_starts_again_is_waited_for_where_it_was_there_before() -> None:
    away = [answer({}, 503)] * 12  # Three rounds of four: more than a single request is tried.
    with Rude([events(b"id: 1\ndata: a\n\n"), *away, events(b"event: over\ndata: b\n\n")]) as rude:
        driver, seen = Driver(Target(rude.url)), list[str]()
        driver.run(each(follow(stream(), "over"), lambda event: seen.append(event.data)))
        assert seen == ["a", "b"]
    with Rude([answer({"ok": 1}), *away, answer({}, 502), answer({"ok": 2})]) as rude:
        assert Driver(Target(rude.url)).run(poll(get(), lambda found: found == 2, 0.0)) == 2
    with Rude(away) as rude:
        with pytest.raises(ApiError, match="answered 503"):
            Driver(Target(rude.url)).run(poll(get(), lambda _: True, 0.0))
        assert len(rude.heard) == 4
    with Rude([DONE, *away]) as rude:
        with pytest.raises(ApiError, match="answered 503"):
            Driver(Target(rude.url, retries=0)).run(poll(get(), lambda found: found == 2, 0.0))
        assert len(rude.heard) == 2


def test_a_refused_stream_is_not_asked_for_again() -> None:
    with Rude([answer({"error": {"message": "gone", "type": "k"}}, 404)]) as rude:
        found, _ = _followed(rude.url)
        assert [error.status for error in found] == [404, 404]
        assert len(rude.heard) == 2


# --- Retry-After


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("0", 0, 0),
        ("2.5", 2.5, 2.5),
        ("-3", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 1e9, 1e10),
    ],
)
def test_retry_after_as_number_or_date(value: str, least: float, most: float) -> None:
    seconds = retry_after_s(value)
    assert seconds is not None
    assert least <= seconds <= most


@pytest.mark.parametrize("value", [None, "", "soon", "nan", "inf", "1e999"])
def test_retry_after_that_says_nothing(value: str | None) -> None:
    assert retry_after_s(value) is None
