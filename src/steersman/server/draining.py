"""Ending well: no new work is taken, what runs may finish, who only listens is sent away. Knows nothing of signals."""

from __future__ import annotations

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steersman.errors import Busy
from steersman.server.errors import answer

_ALWAYS = ("/healthz", "/readyz", "/metrics")
_LISTENERS = "/events"
_RETRY_S = 5.0
_LAST_WORD_S = 1.0


class Draining:
    """Whether a server is ending, and what still runs. Lives on the event loop."""

    def __init__(self) -> None:
        self.is_on = False
        self._running: dict[anyio.CancelScope, bool] = {}
        """Each request, and whether it only listens."""
        self._changed = anyio.Event()

    def begin(self) -> None:
        """Take no new work from now on."""
        self.is_on = True

    def send_listeners_away(self) -> None:
        """End the streams of job events: they would go on for as long as the job, which another process will run."""
        for scope, only_listens in self._running.items():
            if only_listens:
                scope.cancel()

    async def finish(self, grace_s: float) -> None:
        """Wait until nothing runs, at most so long; cut off what still does."""
        with anyio.move_on_after(grace_s):
            await self._idle()
        for scope in self._running:
            scope.cancel()
        with anyio.move_on_after(_LAST_WORD_S):
            await self._idle()

    async def _idle(self) -> None:
        while self._running:
            self._changed = anyio.Event()
            await self._changed.wait()

    def enter(self, scope: anyio.CancelScope, *, only_listens: bool) -> None:
        """Note that a request runs."""
        self._running[scope] = only_listens

    def leave(self, scope: anyio.CancelScope) -> None:
        """Note that it has ended."""
        del self._running[scope]
        self._changed.set()


class Drain:
    """Refuse requests while the server ends (503), except to ask how it is."""

    def __init__(self, app: ASGIApp, *, draining: Draining) -> None:
        self._app, self._draining = app, draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or count the request as running."""
        if scope["type"] != "http" or scope["path"] in _ALWAYS:
            return await self._app(scope, receive, send)
        if self._draining.is_on:
            return await _refuse("the server is ending; ask again in a moment", scope, receive, send)
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        running = anyio.CancelScope()
        self._draining.enter(running, only_listens=scope["path"].endswith(_LISTENERS))
        try:
            with running:
                await self._app(scope, receive, sending)
            # Half an answer is left at that: the connection is cut, so that the caller sees it is half.
            if running.cancelled_caught and not begun:
                await _refuse(
                    "the server ended before the answer was there; ask again in a moment", scope, receive, send
                )
        finally:
            self._draining.leave(running)
        return None


async def _refuse(why: str, scope: Scope, receive: Receive, send: Send) -> None:
    await answer(Busy(why, retry_after_s=_RETRY_S), scope)(scope, receive, send)
