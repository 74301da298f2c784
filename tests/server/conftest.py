"""A store, an app over the tiny model, and clients of it: in process, and over a real port."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tests.server.rig import Served, app_over, asking, key_for, serving, settings_in

from steersman.models.language_model import LanguageModel
from steersman.store.facts import SCOPES, Scope
from steersman.store.store import Store


@pytest.fixture(autouse=True)
def _no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks a language model that the machine's owner has set up."""
    for name in ("STEERSMAN_LLM_URL", "STEERSMAN_LLM_MODEL", "STEERSMAN_LLM_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty SQLite store in a folder of its own."""
    with Store.open(None, tmp_path / "server") as made:
        yield made


@pytest.fixture
def keys(store: Store) -> dict[Scope, str]:
    """A key for each scope, all of one owner. An app made after this asks for keys."""
    return {scope: key_for(store, scope) for scope in SCOPES}


@pytest.fixture
def app(tiny: LanguageModel, store: Store) -> FastAPI:
    """An app over the tiny model and the store; open, unless the store has keys when it starts. No jobs run."""
    return app_over(tiny, store)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """The app, started, asked in process."""
    with asking(app) as made:
        yield made


@pytest.fixture
def served(app: FastAPI, store: Store) -> Iterator[Served]:
    """The app behind a real port."""
    with serving(app, settings_in(store.folder)) as made:
        yield made
