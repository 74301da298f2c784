"""Drive the engine from one thread for everybody on the event loop. Knows nothing of HTTP or JSON.

The thread sleeps while nothing runs. After each step it looks at what every answer has to tell and wakes the event loop once for
all of them; nothing else passes between the two per token. Requests wait here, not in the engine, so that their number is
bounded; those of background jobs, which call the engine themselves, stand behind them.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Self

from steersman.engine.engine import Engine
from steersman.engine.request import Chunk, Request, Result
from steersman.engine.ticket import Ticket
from steersman.errors import Busy, RequestError, SteersmanError

_LOOK_S = 0.02
_RETRY_S = 2.0

Piece = tuple[int, Chunk]
"""Which of a feed's requests, and what was written of its answer."""


class Feed:
    """The answers to a few requests that belong together, as they come; lives on one event loop.

    Iterating gives everything that came since the last time, so a slow reader gets more at once. Whoever stops early
    calls `cancel`.
    """

    def __init__(self, pump: Pump, count: int) -> None:
        self.loop = asyncio.get_running_loop()
        self._pump = pump
        self._count, self._left = count, set(range(count))
        self._pieces: list[Piece] = []
        self._error: Exception | None = None
        self._wake: asyncio.Future[None] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Piece]:
        """What came, in order; waits when nothing did.

        Raises:
            SteersmanError: a request turned out wrong, or the server is stopping.
            Exception: the engine broke; what it raised.
        """
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if not self._left:
                raise StopAsyncIteration
            self._wake = self.loop.create_future()
            await self._wake
        pieces, self._pieces = self._pieces, []
        return pieces

    async def results(self) -> list[Result]:
        """All whole answers, in the order of their requests; being cancelled cancels them. Raises as iterating does."""
        found: dict[int, Result] = {}
        try:
            async for pieces in self:
                found |= {index: chunk.result for index, chunk in pieces if chunk.result is not None}
        finally:
            self.cancel()
        return [found[index] for index in range(self._count)]

    def cancel(self) -> None:
        """End what still runs; does nothing when all is there."""
        if self._left:
            self._left.clear()
            self._pump._forget(self)
            self._rouse()

    def _deliver(self, pieces: Sequence[Piece], error: Exception | None) -> None:
        """On the event loop: hand over and wake whoever waits."""
        if self._error is not None or not self._left:
            return
        self._pieces.extend(pieces)
        self._left.difference_update(index for index, chunk in pieces if chunk.result is not None)
        self._error = error
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class _Row:
    """One request of a feed. All its fields are the driving thread's once it was handed over."""

    __slots__ = ("feed", "index", "streams", "ticket")

    def __init__(self, feed: Feed, index: int, ticket: Ticket, *, streams: bool) -> None:
        self.feed, self.index, self.ticket, self.streams = feed, index, ticket, streams

    @property
    def has_news(self) -> bool:
        return self.ticket.has_news if self.streams else self.ticket.is_done


class _News:
    """What one step brought, by feed."""

    def __init__(self) -> None:
        self.pieces: defaultdict[Feed, list[Piece]] = defaultdict(list)
        self.errors: dict[Feed, Exception] = {}

    def publish(self) -> None:
        """Wake every event loop that is concerned, once."""
        feeds = self.pieces.keys() | self.errors.keys()
        for loop in {feed.loop for feed in feeds}:
            parts = [(f, self.pieces.get(f, ()), self.errors.get(f)) for f in feeds if f.loop is loop]
            try:
                loop.call_soon_threadsafe(_deliver_all, parts)
            except RuntimeError:  # The loop is closed: nobody listens any more.
                for feed, _, _ in parts:
                    feed._pump._forget(feed)


class Pump:
    """Answers requests from coroutines. Safe to share between event loops."""

    def __init__(self, engine: Engine, *, max_queue: int, max_running: int | None = None) -> None:
        """Make a pump over an engine that others may use too; its thread starts with the first request.

        At most `max_running` requests (by default the engine's slots) are handed to it at once, and `max_queue` may wait.
        """
        self.engine = engine
        self._max_queue = max_queue
        self._max_running = max_running or engine.limits.slots
        self._work = threading.Condition()
        self._queue: deque[_Row] = deque()
        self._live: list[_Row] = []
        self._thread: threading.Thread | None = None
        self._refuses = False
        self._is_closed = False

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Requests that the engine has."""
        return len(self._live)

    async def open(self, requests: Sequence[Request], *, stream: bool) -> Feed:
        """Hand in requests whose answers belong together: all or none of them.

        Args:
            requests: what to answer.
            stream: whether pieces are wanted as they come; else each answer comes as one piece.

        Raises:
            Busy: too many requests wait already, or the server is stopping.
            RequestError, RecipeMismatch, SaeError: a request is wrong.
        """
        self._check_room(len(requests))
        # Off the event loop: a prompt may be long, and an SAE may have to be loaded.
        tickets = await asyncio.to_thread(lambda: [self.engine.prepare(item, stream=stream) for item in requests])
        feed = Feed(self, len(tickets))
        with self._work:
            self._check_room(len(tickets))
            self._queue.extend(_Row(feed, index, ticket, streams=stream) for index, ticket in enumerate(tickets))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="steersman-pump", daemon=True)
                self._thread.start()
            self._work.notify()
        return feed

    async def generate(self, request: Request) -> Result:
        """One whole answer; being cancelled cancels it.

        Raises:
            Busy, RequestError, RecipeMismatch, SaeError: as for `open`.
        """
        [result] = await self.generate_all([request])
        return result

    async def generate_all(self, requests: Sequence[Request]) -> list[Result]:
        """Whole answers, in order; being cancelled cancels them all. Raises as `generate`."""
        return await (await self.open(requests, stream=False)).results()

    async def drain(self, grace_s: float) -> bool:
        """Refuse new requests, let what was taken in finish, end what has not by then. Whether all of it finished."""
        self._refuses = True
        until = asyncio.get_running_loop().time() + grace_s
        while (self._queue or self._live) and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(_LOOK_S)
        return self._end_all() == 0

    def close(self) -> None:
        """End everything, and the thread. Waits for the step that runs."""
        self._is_closed = True
        self._end_all()
        if self._thread is not None:
            self._thread.join()

    def _check_room(self, count: int) -> None:
        if self._refuses:
            raise _stopping()
        most = self._max_running + self._max_queue
        if count > most:
            raise RequestError(f"{count} answers at once are more than this server ever takes ({most}); ask for fewer")
        if count > most - len(self._live) - len(self._queue):
            raise Busy(
                f"{len(self._live)} requests are running and {len(self._queue)} wait; ask again in a moment",
                retry_after_s=_RETRY_S,
            )

    def _forget(self, feed: Feed) -> None:
        with self._work:
            rows = [row for row in [*self._queue, *self._live] if row.feed is feed]
            self._queue = deque(row for row in self._queue if row.feed is not feed)
        for row in rows:
            row.ticket.cancel()

    def _end_all(self) -> int:
        """Refuse what comes and cancel what is there, whose readers the thread will tell; how many that were."""
        with self._work:
            self._refuses = True
            rows = [*self._queue, *self._live]
            for row in rows:
                row.ticket.cancel()
            self._work.notify()
        return len(rows)

    # --- the driving thread

    def _run(self) -> None:
        while True:
            with self._work:
                self._work.wait_for(lambda: self._queue or self._live or self._is_closed)
                if not (self._queue or self._live):
                    return
                self._start_some()
            news = _News()
            try:
                self.engine.step()
            except Exception as error:  # noqa: BLE001 - who asked gets it
                # Nobody took part in that step, so the engine ended nobody's request; none may wait forever.
                news.errors = {row.feed: error for row in self._live}
            self._collect(news)
            news.publish()

    def _start_some(self) -> None:
        while self._queue and len(self._live) < self._max_running:
            row = self._queue.popleft()
            self._live.append(row)
            self.engine.start(row.ticket, ahead=True)

    def _collect(self, news: _News) -> None:
        """Take what the rows have to tell, and let go of those that are done."""
        for row in self._live:
            if not row.has_news or row.feed in news.errors:
                continue
            try:
                chunk = row.ticket.take()
            except Exception as error:  # noqa: BLE001 - who asked gets it
                news.errors[row.feed] = _cause(error)
                continue
            if chunk.result is not None and chunk.result.finish_reason == "cancelled":
                news.errors[row.feed] = _stopping()  # If it was the reader who did it, nobody hears this.
            elif chunk.text or chunk.result is not None:
                news.pieces[row.feed].append((row.index, chunk))
        for row in self._live:
            if row.feed in news.errors:
                row.ticket.cancel()
        done = [row for row in self._live if row.ticket.is_done]
        if done:
            with self._work:
                self._live = [row for row in self._live if not row.ticket.is_done]


def _deliver_all(parts: Sequence[tuple[Feed, Sequence[Piece], Exception | None]]) -> None:
    for feed, pieces, error in parts:
        feed._deliver(pieces, error)


def _cause(error: Exception) -> Exception:
    """What broke, where the engine says no more than that something did: that is nobody's fault but the server's."""
    if type(error) is not SteersmanError:
        return error
    return error.__cause__ if isinstance(error.__cause__, Exception) else RuntimeError(str(error))


def _stopping() -> Busy:
    return Busy("the server is stopping; ask again in a moment", retry_after_s=_RETRY_S)
