"""Every answer has an id and the headers that keep browsers careful; what nobody meant to happen is told to the log alone."""

from __future__ import annotations

import logging
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.responses import StreamingResponse
from tests.server.rig import app_over, asking, error_of, serving, settings_in

from steersman.models.language_model import LanguageModel
from steersman.store.store import Store


@pytest.mark.parametrize("given", ["abc-123", "01HZ:x.y_z", "a", "x" * 100])
def test_a_sane_id_of_the_caller_is_kept(client: TestClient, given: str) -> None:
    assert client.get("/healthz", headers={"X-Request-Id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 101, "two words", 'quo"te', "<b>", "caf\u00e9", "a\tb", "{}"])
def test_any_other_is_replaced(client: TestClient, given: str) -> None:
    answers = [client.get("/healthz", headers={"X-Request-Id": given.encode()}) for _ in range(2)]
    one, other = (answer.headers["x-request-id"] for answer in answers)
    assert given not in (one, other)
    assert one != other
    assert one.isalnum()


def test_errors_carry_the_id_too(client: TestClient) -> None:
    found = client.get("/nowhere", headers={"X-Request-Id": "mine"})
    assert error_of(found, 404)["request_id"] == "mine"


@pytest.mark.parametrize("path", ["/healthz", "/nowhere", "/v1/models"])
def test_browsers_are_told_to_be_careful(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in headers
    assert "server" not in headers


def test_pages_of_an_allowed_origin_may_read_answers_and_errors(tiny: LanguageModel, store: Store) -> None:
    with asking(app_over(tiny, store, allowed_origins=("https://good.example",))) as client:
        for path in ("/v1/models", "/nowhere"):
            answer = client.get(path, headers={"Origin": "https://good.example"})
            assert answer.headers["access-control-allow-origin"] == "https://good.example"
            assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
            assert "cross-origin-resource-policy" not in answer.headers
        asked = {"Origin": "https://good.example", "Access-Control-Request-Method": "POST"}
        asked["Access-Control-Request-Headers"] = "authorization,content-type"
        assert client.options("/v1/chat/completions", headers=asked).status_code == 200
        asked["Origin"] = "https://bad.example"
        refused = client.options("/v1/chat/completions", headers=asked)
        assert "access-control-allow-origin" not in refused.headers


def test_what_nobody_meant_to_happen_is_500_with_no_detail_and_the_log_has_the_trace(
    app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    @app.get("/boom")
    async def boom() -> None:
        raise ZeroDivisionError("secret detail")

    with asking(app) as client, caplog.at_level(logging.INFO, "steersman"):
        found = client.get("/boom", headers={"X-Request-Id": "look-here"})
    error = error_of(found, 500)
    assert error["type"] == "internal_error"
    assert "secret" not in found.text
    assert "ZeroDivision" not in found.text
    [record] = [record for record in caplog.records if record.exc_info]
    assert vars(record)["request_id"] == "look-here"
    assert isinstance(record.exc_info[1], ZeroDivisionError)
    [line] = [record for record in caplog.records if record.name == "steersman.access"]
    assert vars(line)["status"] == 500


def test_an_answer_that_breaks_off_is_seen_to_be_half(
    app: FastAPI, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    @app.get("/half")
    async def half() -> StreamingResponse:
        async def pieces() -> Any:
            yield b"first"
            raise ZeroDivisionError("in the middle")

        return StreamingResponse(pieces())

    with serving(app, settings_in(store.folder)) as served, served.client() as client:
        with pytest.raises(httpx2.RemoteProtocolError):
            client.get("/half")
        assert client.get("/healthz").status_code == 200
    assert any(record.getMessage() == "an answer broke off" for record in caplog.records)
