"""What the server's tests share: an app over the tiny model with a store of its own, asked in process or over a real port."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tests.engine.rig import make_engine

from steersman.models.language_model import LanguageModel
from steersman.server.app import create_app
from steersman.server.run import Server
from steersman.server.settings import ServerSettings
from steersman.store.facts import SCOPES, Scope
from steersman.store.store import Store

HOST = "http://127.0.0.1"
"""An open server answers to its own address only."""


def settings_in(folder: Path, **changes: Any) -> ServerSettings:
    """Settings for a test: no jobs run unless asked for, and nothing waits long for its end."""
    return ServerSettings(**{"folder": folder, "job_workers": 0, "grace_s": 5.0, "max_tokens": 64, **changes})


def app_over(model: LanguageModel, store: Store, **changes: Any) -> FastAPI:
    """An app over the model, with the store's folder."""
    return create_app(settings_in(store.folder, **changes), engine=make_engine(model), store=store)


def key_for(store: Store, *scopes: Scope, owner: str = "ada") -> str:
    """A new key; with all scopes unless some are named."""
    return store.keys.create("test", owner, scopes or SCOPES)[1]


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@contextlib.contextmanager
def asking(app: FastAPI, secret: str | None = None) -> Iterator[TestClient]:
    """The app, started, asked in process; what nobody meant to happen comes as 500, as it would to a caller."""
    headers = bearer(secret) if secret else {}
    with TestClient(app, base_url=HOST, headers=headers, raise_server_exceptions=False) as client:
        yield client


class Served:
    """An app behind a real port, in a thread of its own."""

    def __init__(self, app: FastAPI, settings: ServerSettings) -> None:
        self.app = app
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"{HOST}:{self.socket.getsockname()[1]}"
        self.server = Server(app, settings)
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],), daemon=True)

    def start(self) -> None:
        """Wait until it answers."""
        self.thread.start()
        until = time.monotonic() + 30
        while not self.server.started:
            assert self.thread.is_alive(), "the server did not start"
            assert time.monotonic() < until, "the server takes too long to start"
            time.sleep(0.01)

    def end(self) -> None:
        """As the first signal does; does not wait."""
        self.server.end()

    def stop(self) -> None:
        """End well, and wait for it."""
        self.end()
        self.thread.join(30)
        assert not self.thread.is_alive(), "the server does not end"
        self.socket.close()

    def client(self, secret: str | None = None, **options: Any) -> httpx2.Client:
        """A client that keeps connections."""
        return httpx2.Client(base_url=self.url, headers=bearer(secret) if secret else {}, timeout=30, **options)


@contextlib.contextmanager
def serving(app: FastAPI, settings: ServerSettings) -> Iterator[Served]:
    """The app behind a real port; ended well afterwards."""
    served = Served(app, settings)
    served.start()
    try:
        yield served
    finally:
        served.stop()


def error_of(response: Any, status: int) -> dict[str, Any]:
    """The error in a response, after checking that it has the form that every error has."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    error = body["error"]
    assert set(error) == {"message", "type", "code", "param", "request_id"}
    assert error["request_id"] == response.headers["x-request-id"]
    assert error["message"].strip()
    assert "\n" not in error["message"]
    assert "Traceback" not in response.text
    assert (status in (429, 503)) <= ("retry-after" in response.headers)
    return dict(error)
