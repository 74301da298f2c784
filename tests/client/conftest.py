"""A real server over the tiny model, with jobs and features, and one way to ask it that goes through both clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.server.feature_rig import toy_lookup
from tests.server.rig import Served, app_over, serving, settings_in

from steersman.client.async_client import AsyncClient
from steersman.client.client import Client
from steersman.models.language_model import LanguageModel
from steersman.store.store import Store

Do = Callable[[Callable[[Any], Any]], Any]
"""Runs `lambda client: client.method(...)` with one of the clients."""


@pytest.fixture(autouse=True)
def _no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks a language model that the machine's owner has set up."""
    for name in ("STEERSMAN_LLM_URL", "STEERSMAN_LLM_MODEL", "STEERSMAN_LLM_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server_store(tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    with Store.open(None, tmp_path / "server") as made:
        yield made


@pytest.fixture
def server(tiny: LanguageModel, server_store: Store, tmp_path: Path) -> Iterator[Served]:
    """The server on a free port; open, unless the store has keys by then."""
    changes = {"job_workers": 1}
    app = app_over(tiny, server_store, **changes)
    with serving(app, settings_in(server_store.folder, **changes)) as made:
        app.state.features = toy_lookup(tiny, tmp_path / "cache")
        yield made


@pytest.fixture(params=["sync", "async"])
def do(request: pytest.FixtureRequest, server: Served) -> Do:
    """Ask the server, by either client."""

    async def on_loop(ask: Callable[[Any], Any]) -> Any:
        async with AsyncClient(server.url) as client:
            return await ask(client)

    def asked(ask: Callable[[Any], Any]) -> Any:
        if request.param == "async":
            return asyncio.run(on_loop(ask))
        with Client(server.url) as client:
            return ask(client)

    return asked
