"""How much, how fast and how long: a rate for each key, a limit on time. Knows nothing of what is asked.

Plain ASGI, here and in the modules beside it: what wraps responses in tasks of its own breaks streams and cancellation.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steersman.errors import Busy
from steersman.server.errors import Refusal, answer

_MOST_BUCKETS = 10_000


class RateLimiter:
    """A token bucket for each key: `burst` at once, `per_minute` in the long run. Safe to share between threads.

    Memory is bounded: of more than `most` keys the one that was quiet longest is forgotten, which only lets it begin anew.
    """

    def __init__(
        self,
        per_minute: float,
        burst: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        most: int = _MOST_BUCKETS,
    ) -> None:
        self._per_s, self._burst, self._clock, self._most = per_minute / 60.0, float(burst), clock, most
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """What was left in each bucket, and when."""
        self._lock = threading.Lock()

    def take(self, key: str) -> None:
        """Take one from the key's bucket.

        Raises:
            Busy: it is empty; says when there will be one again.
        """
        with self._lock:
            now = self._clock()
            left, at = self._buckets.pop(key, (self._burst, now))
            left = min(self._burst, left + (now - at) * self._per_s)
            self._buckets[key] = (left - 1.0 if left >= 1.0 else left, now)
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
        if left < 1.0:
            wait_s = (1.0 - left) / self._per_s
            raise Busy(
                f"this key has sent more than {self._per_s * 60:g} requests a minute; wait {wait_s:.1f} seconds",
                retry_after_s=wait_s,
                is_callers=True,
            )

    def __len__(self) -> int:
        return len(self._buckets)


class TimeLimit:
    """End what takes too long: until an answer begins, and between two pieces of one when its reader does not take them."""

    def __init__(self, app: ASGIApp, *, seconds: float) -> None:
        self._app, self._seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on, with an eye on the clock."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun = False
        with anyio.CancelScope(deadline=anyio.current_time() + self._seconds) as limit:
            watch = _Watch(self._seconds, limit)

            async def sending(message: Message) -> None:
                nonlocal begun
                if not begun:
                    begun = True
                    limit.deadline = float("inf")
                    watch.look()
                watch.since = watch.loop.time()
                await send(message)
                watch.since = None

            try:
                await self._app(scope, receive, sending)
            finally:
                watch.end()
        if limit.cancelled_caught and not begun:
            refusal = Refusal(504, f"no answer within {self._seconds:g} seconds; ask for less, or again later")
            await answer(refusal, scope)(scope, receive, send)
        return None


class _Watch:
    """Looks now and then whether a piece is still not taken, and cancels then. A deadline for every piece would cost more than
    sending it."""

    def __init__(self, seconds: float, limit: anyio.CancelScope) -> None:
        self.loop = asyncio.get_running_loop()
        self.since: float | None = None
        """When the piece that is being sent was handed over."""
        self._seconds, self._limit = seconds, limit
        self._next: asyncio.TimerHandle | None = None

    def look(self) -> None:
        """Look, and again a little later."""
        if self.since is not None and self.loop.time() - self.since >= self._seconds:
            self._limit.cancel()  # There is nobody to tell.
        else:
            self._next = self.loop.call_later(self._seconds / 4, self.look)

    def end(self) -> None:
        """Look no more."""
        if self._next is not None:
            self._next.cancel()


async def while_connected(app: ASGIApp, scope: Scope, body: Receive, connection: Receive, send: Send) -> None:
    """Run an app, and cancel it when its caller hangs up before the answer begins. (Streams notice that by themselves.)

    Args:
        app: what answers.
        scope: of the request.
        body: what the app receives.
        connection: what the connection says once the body was read: that can only be that it is gone.
        send: to the caller.
    """
    begun = False

    async def sending(message: Message) -> None:
        nonlocal begun
        begun = True
        await send(message)

    async def watch() -> None:
        while (await connection())["type"] != "http.disconnect":
            pass
        if not begun:
            running.cancel()

    with anyio.CancelScope() as running:
        watcher = asyncio.create_task(watch())
        try:
            await app(scope, body, sending)
        finally:
            watcher.cancel()
