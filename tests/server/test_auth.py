"""Who may: keys and scopes where keys are required; where they are not, nobody but this machine, and no web page through it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tests.server.rig import app_over, asking, bearer, error_of, key_for, settings_in

from steersman.errors import AccessRefused
from steersman.models.language_model import LanguageModel
from steersman.server.auth import Gate
from steersman.server.limits import RateLimiter
from steersman.store.facts import Scope
from steersman.store.store import Store

_PATHS: dict[str, Scope] = {"/v1/recipes": "read", "/v1/jobs": "read", "/metrics": "admin"}
_OPEN = {"/healthz", "/readyz", "/openapi.json", "/"}


# --- with keys


@pytest.mark.parametrize("path", _PATHS)
def test_a_key_opens_what_its_scope_says_and_nothing_else(
    keys: dict[Scope, str], client: TestClient, path: str
) -> None:
    for scope, secret in keys.items():
        answer = client.get(path, headers=bearer(secret))
        if scope == _PATHS[path]:
            assert answer.status_code == 200, answer.text
        else:
            error = error_of(answer, 403)
            assert _PATHS[path] in error["message"]
            assert scope in error["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer ssm_000000000000_" + "A" * 43},
        {"Authorization": "Bearer " + "x" * 5000},
        {"Authorization": "Basic c3NtOnNzbQ=="},
        {"Authorization": "Bearer ssm_'; DROP TABLE keys; --"},
        {"Authorization": "Bearer caf\u00e9".encode("latin-1")},
    ],
    ids=str,
)
def test_no_key_or_a_wrong_one_is_401(keys: dict[Scope, str], client: TestClient, headers: Any) -> None:
    for path in _PATHS:
        answer = client.get(path, headers=headers)
        assert error_of(answer, 401)["type"] == "authentication_error"
        assert answer.headers["www-authenticate"] == "Bearer"


def test_a_key_of_another_server_expired_or_revoked_is_401(
    keys: dict[Scope, str], store: Store, client: TestClient, tmp_path: Path
) -> None:
    # Times of the store are handed in, so one store of the same files lives tomorrow.
    later = datetime.now(UTC) + timedelta(days=2)
    record, short = store.keys.create("short", "ada", ["read"], datetime.now(UTC) + timedelta(days=1))
    assert client.get("/v1/recipes", headers=bearer(short)).status_code == 200
    with Store.open(None, store.folder, clock=lambda: later) as tomorrow, pytest.raises(AccessRefused, match="expired"):
        tomorrow.keys.verify(short)
    store.keys.revoke(record.id)
    assert "revoked" in error_of(client.get("/v1/recipes", headers=bearer(short)), 401)["message"]
    with Store.open(None, tmp_path / "other") as other:
        error_of(client.get("/v1/recipes", headers=bearer(key_for(other))), 401)


def test_a_key_counts_in_the_header_only(keys: dict[Scope, str], client: TestClient) -> None:
    error_of(client.get("/v1/recipes", params={"key": keys["read"], "access_token": keys["read"]}), 401)
    client.cookies.set("Authorization", f"Bearer {keys['read']}")
    error_of(client.get("/v1/recipes"), 401)


def test_a_server_with_keys_stays_closed_when_the_last_key_is_gone(
    keys: dict[Scope, str], store: Store, client: TestClient
) -> None:
    for record in store.keys.list():
        store.keys.revoke(record.id)
    error_of(client.get("/v1/recipes"), 401)


def test_every_route_that_does_anything_asks_for_a_key(keys: dict[Scope, str], app: FastAPI) -> None:
    described = app.openapi()
    with asking(app) as client:
        for path, methods in described["paths"].items():
            for method, operation in methods.items():
                if path in _OPEN or path == "/v1/":
                    continue
                assert operation.get("security") == [{"key": []}], f"{method} {path} is open"
                filled = path.replace("{", "x").replace("}", "x")
                body = {"json": {}} if method in ("post", "put", "patch") else {}
                answer = client.request(method, filled, **body)
                assert answer.status_code == 401, f"{method} {path}: {answer.status_code} {answer.text}"


# --- without keys


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8765",
        "localhost:8765",
        "LOCALHOST",
        "[::1]:8765",
        "[::1]",
        "127.9.9.9",
        "x.localhost:1",
        "localhost.",
    ],
)
def test_an_open_server_answers_to_this_machines_names(client: TestClient, host: str) -> None:
    assert client.get("/v1/recipes", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8765",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "192.168.1.2:8765",
        "",
        "[::2]:80",
    ],
)
def test_a_name_that_was_bent_to_this_machine_is_refused(client: TestClient, host: str) -> None:
    assert error_of(client.get("/v1/recipes", headers={"Host": host}), 403)["type"] == "permission_error"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:9", "http://localhost"])
def test_pages_of_other_origins_are_refused(client: TestClient, origin: str) -> None:
    headers = {"Origin": origin}
    for answer in (client.get("/v1/recipes", headers=headers), client.post("/v1/jobs", json={}, headers=headers)):
        error_of(answer, 403)


def test_its_own_pages_and_allowed_ones_may_call(tiny: LanguageModel, store: Store) -> None:
    with asking(app_over(tiny, store, allowed_origins=("https://good.example",))) as client:
        for origin in ("http://127.0.0.1", "https://good.example"):
            assert client.get("/v1/recipes", headers={"Origin": origin}).status_code == 200
        error_of(client.get("/v1/recipes", headers={"Origin": "https://good.example.evil"}), 403)


def test_clients_that_always_send_a_key_may(client: TestClient) -> None:
    assert client.get("/v1/recipes", headers=bearer("unused")).status_code == 200


@pytest.mark.parametrize(
    ("settings", "has_key", "requires"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"require_keys": True}, False, True),
        ({"require_keys": False}, True, False),
        ({"host": "0.0.0.0"}, False, True),
        ({"host": "::1"}, False, False),
    ],
)
def test_when_keys_are_required(store: Store, settings: dict[str, Any], has_key: bool, requires: bool) -> None:
    if has_key:
        key_for(store)
    assert Gate(settings_in(store.folder, **settings), store.keys, RateLimiter(60, 1)).requires_keys == requires
