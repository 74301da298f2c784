"""One line of JSON a request, and never a prompt, a key or a query in it, unless that was asked for."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.server.rig import app_over, asking, bearer, key_for

from steersman.models.language_model import LanguageModel
from steersman.server.logs import JsonLines, PlainLines, to_stderr
from steersman.store.facts import Scope
from steersman.store.store import Store

SECRET = "my-secret-prompt"
CHAT = {"model": "default", "max_tokens": 2, "messages": [{"role": "user", "content": SECRET}]}


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Everything that is logged meanwhile, as the server would write it."""
    text, root = io.StringIO(), logging.getLogger()
    handler, level = logging.StreamHandler(text), root.level
    handler.setFormatter(JsonLines())
    handler.addFilter(lambda record: record.name.startswith("steersman"))  # Clients log what they ask for.
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield text
    root.removeHandler(handler)
    root.setLevel(level)


def _requests(lines: io.StringIO) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in lines.getvalue().splitlines()]
    return [line for line in found if line["logger"] == "steersman.access"]


def test_a_request_is_one_line_with_its_route_and_key(
    lines: io.StringIO, keys: dict[Scope, str], client: TestClient, store: Store
) -> None:
    client.get("/v1/recipes/some-name", headers={**bearer(keys["read"]), "X-Request-Id": "here"})
    [line] = _requests(lines)
    assert line["method"] == "GET"
    assert line["route"].endswith("/{recipe_id}")
    assert line["status"] == 404
    assert line["request_id"] == "here"
    assert line["ms"] > 0
    assert line["key_id"] in {record.id for record in store.keys.list()}
    assert "T" in line["time"]


def test_nothing_that_was_sent_is_in_the_log(lines: io.StringIO, keys: dict[Scope, str], client: TestClient) -> None:
    secret = keys["generate"]
    assert client.post("/v1/chat/completions", json=CHAT, headers=bearer(secret)).status_code == 200
    client.get(f"/v1/features?query={SECRET}", headers=bearer(secret))
    client.get(f"/{SECRET}?{SECRET}")
    client.get("/v1/recipes", headers=bearer(secret[:-1]))
    client.post("/v1/chat/completions", json={SECRET: 1}, headers=bearer(secret))
    broken = {**bearer(secret), "Content-Type": "application/json"}
    client.post("/v1/chat/completions", content=f'"{SECRET}'.encode(), headers=broken)
    assert len(_requests(lines)) == 6
    assert SECRET not in lines.getvalue()
    assert secret[20:40] not in lines.getvalue()


def test_prompts_are_logged_when_asked_for_but_keys_never(
    lines: io.StringIO, tiny: LanguageModel, store: Store
) -> None:
    secret = key_for(store)
    with asking(app_over(tiny, store, log_prompts=True), secret) as client:
        client.post("/v1/chat/completions", json=CHAT)
        client.get("/v1/recipes?tag=blue")
    chat, listed = _requests(lines)
    assert SECRET in chat["body"]
    assert listed["query"] == "tag=blue"
    assert secret[20:40] not in lines.getvalue()


def test_what_a_caller_writes_cannot_forge_a_line(lines: io.StringIO) -> None:
    logging.getLogger("steersman.server").warning('a\n{"level": "error"}\r\u2028 \x1b[31m %s', "\x00")
    assert len(lines.getvalue().splitlines()) == 1
    assert json.loads(lines.getvalue())["message"].startswith("a\n")
    assert lines.getvalue().isascii()


def test_a_trace_stays_within_its_line(lines: io.StringIO) -> None:
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("steersman.server").exception("it broke")
    [line] = lines.getvalue().splitlines()
    assert "ValueError: why" in json.loads(line)["trace"]


@pytest.mark.parametrize("as_json", [True, False])
def test_writing_the_log_ends_with_the_server(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    root, ours = logging.getLogger(), logging.getLogger("steersman")
    before = (list(root.handlers), root.level, ours.level)
    with to_stderr(as_json=as_json):
        logging.getLogger("steersman.server").info("ours")
        logging.getLogger("library").info("too much")
        logging.getLogger("uvicorn.error").error("ASGI callable returned without completing response.")
    assert (list(root.handlers), root.level, ours.level) == before
    [line] = capsys.readouterr().err.splitlines()
    assert "ours" in line
    assert line.startswith("{") == as_json


def test_a_person_gets_a_short_line() -> None:
    record = logging.LogRecord("steersman.access", logging.INFO, "", 0, "request", None, None)
    vars(record).update(method="GET", route="/v1/x", status=200, ms=12.5)
    assert PlainLines().format(record).endswith("GET /v1/x 200, 12.5 ms")
    warned = logging.LogRecord("steersman.server", logging.WARNING, "", 0, "look %s", ("here",), None)
    assert PlainLines().format(warned).endswith("warning: look here")
