"""Alive is not ready: ready needs the model, the store and no end in sight. A store that goes away and comes back is no end."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tests.server.rig import app_over, asking, bearer, error_of

from steersman.errors import StorageError
from steersman.models.language_model import LanguageModel
from steersman.store.facts import Scope
from steersman.store.store import Store


def test_a_server_that_works_is_alive_and_ready(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ok"}


def test_before_its_model_is_there_it_is_alive_only(app: FastAPI) -> None:
    client = TestClient(app, raise_server_exceptions=False)  # Without its start.
    assert client.get("/healthz").status_code == 200
    error_of(client.get("/readyz"), 503)
    error_of(client.get("/v1/recipes"), 503)


def test_health_asks_for_no_key(keys: dict[Scope, str], client: TestClient) -> None:
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


def test_a_store_that_is_gone_is_503_and_the_server_recovers_by_itself(
    keys: dict[Scope, str], store: Store, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise StorageError("the database at postgres does not answer")

    paths = {"/v1/recipes": "read", "/v1/jobs": "read", "/v1/traits": "read"}
    with monkeypatch.context() as patched:
        patched.setattr(type(store), "ping", gone)
        patched.setattr(type(store.keys), "verify", gone)
        assert client.get("/healthz").status_code == 200
        for path in ("/readyz", *paths):
            answer = client.get(path, headers=bearer(keys["read"]))
            error_of(answer, 503)
            assert int(answer.headers["retry-after"]) >= 1
    assert client.get("/readyz").status_code == 200
    for path in paths:
        assert client.get(path, headers=bearer(keys["read"])).status_code == 200


def test_numbers_are_told_even_while_the_store_is_gone(
    client: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise StorageError("gone")

    monkeypatch.setattr(type(store.jobs), "counts", gone)
    assert client.get("/metrics").status_code == 200


def test_a_server_that_is_ending_is_alive_but_not_ready(tiny: LanguageModel, store: Store) -> None:
    app = app_over(tiny, store)
    with asking(app) as client:
        app.state.draining.begin()
        assert client.get("/healthz").status_code == 200
        error_of(client.get("/readyz"), 503)
        refused = client.get("/v1/recipes")
        assert error_of(refused, 503)["type"] == "unavailable_error"
