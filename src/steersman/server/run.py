"""Run a server until it is told to end: take the port, make the parts, answer, and finish what runs.

The first SIGTERM or SIGINT ends it well: no new work, running answers finish within `grace_s`, jobs go back to the store. A
second one ends it at once. Knows nothing of terminals.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import logging
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from steersman.engine.engine import Engine
from steersman.errors import AccessRefused, SteersmanError
from steersman.server.app import create_app, prepare, wind_down
from steersman.server.parts import open_context
from steersman.server.settings import ServerSettings
from steersman.store.store import Store

_LOG = logging.getLogger("steersman.server")
_LAST_WAIT_S = 2
"""For connections to close once nothing runs on them."""
_BACKLOG = 2048


def serve(
    settings: ServerSettings,
    load: Callable[[], Engine],
    *,
    on_ready: Callable[[ServerSettings], None] = lambda settings: None,
) -> bool:
    """Answer until told to end. Returns whether the work of a job, which was given back, still computes in its thread: the
    process must then end without waiting for it (`os._exit`), as the interpreter cannot shut down beside it.

    Args:
        settings: what it allows and where things are.
        load: makes the engine; called once port and store are known to be good.
        on_ready: called when the server answers, with the port that it has and whether keys are required.

    Raises:
        SteersmanError: the port is taken, the address is not this machine's, or a file of recipes or routes cannot be used.
        AccessRefused: other machines could reach it, and there is no key.
        StorageError: the database does not answer, or the folder cannot be written.
        ModelError: no such model.
    """
    with contextlib.ExitStack() as owned:
        taken = owned.enter_context(contextlib.closing(listen(settings)))
        settings = dataclasses.replace(settings, port=taken.getsockname()[1])
        store = owned.enter_context(Store.open(settings.database, settings.folder))
        check_keys(settings, store)
        engine = owned.enter_context(load())
        app = create_app(settings, engine=engine, store=store)
        context = open_context(settings, engine, store, app.state.metrics, owned)
        prepare(app, context)
        settings = dataclasses.replace(settings, require_keys=app.state.gate.requires_keys)
        Server(app, settings, lambda: on_ready(settings)).run([taken])
    return context.runner.is_computing


def listen(settings: ServerSettings) -> socket.socket:
    """A socket that listens where the settings say.

    Raises:
        SteersmanError: it cannot, with the next step.
    """
    where = f"{settings.host}, port {settings.port}"
    try:
        found = socket.getaddrinfo(
            settings.host or None, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise SteersmanError(f"{settings.host!r} is no address of this machine; use --host 127.0.0.1") from error
    family, kind, protocol, _, address = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)[0]
    taken = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # Elsewhere the option would let two servers share a port.
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen(_BACKLOG)
    except OSError as error:
        taken.close()
        reasons = {
            errno.EADDRINUSE: f"port {settings.port} is in use; choose another with --port, or --port 0 for any free one",
            errno.EACCES: f"port {settings.port} is for the system; choose one above 1023 with --port",
            errno.EADDRNOTAVAIL: f"{settings.host} is no address of this machine; use --host 127.0.0.1",
        }
        reason = reasons.get(error.errno or 0, error.strerror)
        raise SteersmanError(f"cannot listen on {where}: {reason}") from error
    return taken


def check_keys(settings: ServerSettings, store: Store) -> None:
    """Refuse to let other machines in, or to ask for keys, when no key is valid.

    Raises:
        AccessRefused: with the command that makes one.
    """
    if settings.is_loopback and not settings.require_keys:
        return
    if not store.keys.any_valid():
        why = "keys are required" if settings.is_loopback else f"{settings.host} can be reached from other machines"
        raise AccessRefused(
            f"{why}, and there is no valid key; make one: steersman keys create NAME (with the same --folder or --database)"
        )


class Server(uvicorn.Server):
    """uvicorn, ending our way."""

    def __init__(self, app: FastAPI, settings: ServerSettings, on_ready: Callable[[], None] = lambda: None) -> None:
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            lifespan="on",
            ws="none",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_LAST_WAIT_S,
        )
        super().__init__(config)
        self._app, self._on_ready = app, on_ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Task[None] | None = None
        self._is_told = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by the interpreter between two instructions of the main thread."""
        if self._is_told or self._loop is None:
            # At once: threads that compute would hold an orderly end up, and nothing on disk is ever half-written.
            os._exit(128 + sig)
        self._is_told = True
        self._loop.call_soon_threadsafe(self._begin_end, signal.Signals(sig).name)

    def end(self) -> None:
        """End well, from any thread."""
        if self._loop is not None and not self._is_told:
            self._is_told = True
            self._loop.call_soon_threadsafe(self._begin_end, "request")

    def _begin_end(self, why: str) -> None:
        _LOG.info("ending on %s: running answers may finish, new ones are refused", why)

        async def end() -> None:
            try:
                await wind_down(self._app)
            finally:
                self.should_exit = True

        self._ending = asyncio.get_running_loop().create_task(end())
