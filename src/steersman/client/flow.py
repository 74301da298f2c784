"""What is done for one answer of the server: ask, read, try again, follow a stream. No sockets, clocks or threads in here.

A flow is a generator: it yields steps (send this, read on, wait), a driver carries them out and sends back what came of
them. So both clients share one definition of every path, every retry and every error.

What is tried again: a refusal with 429 or 503, which says that nothing was done, and a connection that could not be made. After a
connection that breaks off, only what can be repeated without harm.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import ValidationError

from steersman.client.refusals import lost, name_of, nonsense, one_line, refusal, retry_after_s, told
from steersman.client.steps import Again, Call, Failure, Flow, Head, Item, Pause, Read, Send, Step, Streamed
from steersman.client.streaming import EventParser, ServerEvent
from steersman.errors import ApiError

T = TypeVar("T")

_AGAIN = {429, 503}
_AWAY = {0, 429, 502, 503, 504}  # As one that starts again looks, directly and through a proxy.
_MOST_BYTES = 256 << 20
_MOST_ERROR_BYTES = 1 << 20


def ask(call: Call[T]) -> Flow[T]:
    """Send a request, again where that helps, and read the whole answer.

    Raises:
        ApiError: the server refuses, cannot be reached, or answers what is no answer.
    """
    head, attempt = yield from _open(call)
    while True:
        data = yield from _body(_MOST_BYTES)
        if isinstance(data, bytes):
            return _understood(call, head, data)
        if data.kind != "broken" or not call.is_harmless or not (yield Again(attempt, None)):
            raise lost(call, data, head)
        head, attempt = yield from _open(call, attempt + 1)


def listen(call: Call[Any]) -> Streamed[ServerEvent]:
    """Open a stream of events and hand them out as they come, up to its end.

    Raises:
        ApiError: as `ask`; also where the stream breaks off.
    """
    head, _ = yield from _open(call)
    if not head.headers.get("content-type", "").startswith("text/event-stream"):
        data = yield from _body(_MOST_ERROR_BYTES)
        raise nonsense(call, head, data if isinstance(data, bytes) else b"", "no stream of events")
    parser = EventParser()
    while True:
        chunk = yield Read()
        if chunk is None:
            return
        if isinstance(chunk, Failure):
            raise lost(call, chunk, head)
        try:
            events = parser.feed(chunk)
        except ValueError as error:
            raise nonsense(call, head, b"", str(error)) from None
        for event in events:
            if event.data.startswith('{"error"') and event.kind in ("message", "error"):
                raise told(call, head, event.data.encode(), "broke off")
            yield Item(event)


def follow(call: Call[Any], last_kind: str) -> Streamed[ServerEvent]:
    """A stream that goes on after a lost connection, from the event after the last one that came.

    Once it has begun, a server that starts again is waited for, for some minutes.

    Args:
        call: opens the stream.
        last_kind: the kind of its last event; a stream that ends without one was cut off.

    Raises:
        ApiError: the server refuses, or the connection is lost time and again without any event between.
    """
    attempt, has_begun = 1, False
    while True:
        gone = ApiError(
            f"{name_of(call)}: the stream ends before its last event; try again later", status=0, kind="broken"
        )
        flow: Streamed[ServerEvent] = listen(call)
        answer: Any = None
        is_away = False
        while True:
            try:
                step = flow.send(answer)
            except StopIteration:
                break
            except ApiError as error:
                gone, is_away = error, True
                break
            answer = yield step
            has_begun |= isinstance(answer, Head) and answer.status == 200
            if isinstance(step, Item):
                event, attempt = step.value, 1
                call = replace(call, last_event_id=event.id or call.last_event_id)
                if event.kind == last_kind:
                    return
        if gone.status in _AGAIN and not has_begun:
            raise gone  # Refused as often as a refusal is tried again.
        if gone.status not in _AWAY or not (yield Again(attempt, None, is_patient=has_begun and is_away)):
            raise gone
        attempt += 1


def poll(call: Call[T], is_over: Callable[[T], bool], every_s: float) -> Flow[T]:
    """Ask time and again until it is over; once there was an answer, a server that starts again is waited for.

    Raises:
        ApiError: as `ask`.
    """
    attempt, has_begun = 1, False
    while True:
        try:
            found = yield from ask(call)
        except ApiError as error:
            if not has_begun or error.status not in _AWAY or not (yield Again(attempt, None, is_patient=True)):
                raise
            attempt += 1
            continue
        if is_over(found):
            return found
        attempt, has_begun = 1, True
        yield Pause(every_s)


def each(flow: Streamed[T], take: Callable[[T], None]) -> Flow[None]:
    """Run a stream inside a flow and hand its items to a function."""
    answer: Any = None
    while True:
        try:
            step = flow.send(answer)
        except StopIteration:
            return
        if isinstance(step, Item):
            take(step.value)
            answer = None
        else:
            answer = yield step


def _open(call: Call[Any], attempt: int = 1) -> Generator[Step, Any, tuple[Head, int]]:
    """Send until there is an answer that is no refusal."""
    while True:
        head = yield Send(call)
        wait_s: float | None = None
        if isinstance(head, Failure):
            error = lost(call, head, None)
            again = head.kind == "unreachable" or (head.kind == "broken" and call.is_harmless)
        elif 200 <= head.status < 300:
            return head, attempt
        else:
            data = yield from _body(_MOST_ERROR_BYTES)
            error = refusal(call, head, data if isinstance(data, bytes) else b"")
            again = head.status in _AGAIN
            wait_s = retry_after_s(head.headers.get("retry-after"))
        if not again or not (yield Again(attempt, wait_s)):
            raise error
        attempt += 1


def _body(most: int) -> Generator[Step, Any, bytes | Failure]:
    data = bytearray()
    while (chunk := (yield Read())) is not None:
        if isinstance(chunk, Failure):
            return chunk
        data += chunk
        if len(data) > most:
            return Failure("too_large", f"sent more than {most >> 20} MiB")
    return bytes(data)


def _understood(call: Call[T], head: Head, data: bytes) -> T:
    """The answer, read.

    Raises:
        ApiError: it is none.
    """
    try:
        return call.read(data if call.is_raw else (json.loads(data) if data else None))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        why = one_line(head.clean(f"'{place}': {first['msg']}" if place else first["msg"]))
    except (ValueError, LookupError, TypeError, RecursionError):
        why = "not in the form expected" if data.strip() else "with nothing"
    raise nonsense(call, head, data, why)
