"""What a caller sends on purpose to harm others: it costs little, tells nothing of the machine, and reaches nobody else."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tests.engine.rig import ask, make_engine, model_of
from tests.server.rig import app_over, asking, bearer, error_of

from steersman.engine.request import Chunk
from steersman.errors import AssetError, RequestError, StorageError
from steersman.models.language_model import LanguageModel
from steersman.server.auth import Gate
from steersman.server.bodies import check_json
from steersman.server.errors import Refusal, as_refusal
from steersman.server.limits import RateLimiter
from steersman.server.metrics import Metrics
from steersman.server.openai_stream import EventStream
from steersman.server.pump import Feed, Pump
from steersman.server.settings import ServerSettings
from steersman.steering.edits import Add
from steersman.steering.recipe import Recipe
from steersman.steering.vector import Vector
from steersman.store.facts import Scope
from steersman.store.store import Store

_CHAT = "/v1/chat/completions"
_JSON = {"Content-Type": "application/json"}


def chat_with(**fields: Any) -> dict[str, Any]:
    return {"model": "default", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2, **fields}


def test_the_body_of_a_stranger_is_not_read(keys: dict[Scope, str], app: FastAPI, client: TestClient) -> None:
    read = 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b"{", "more_body": True}

    async def statuses(headers: list[tuple[bytes, bytes]]) -> int:
        said: list[Any] = []

        async def send(message: Any) -> None:
            said.append(message)

        scope = {
            "type": "http", "method": "POST", "path": "/v1/recipes", "raw_path": b"/v1/recipes", "query_string": b"",
            "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), *headers], "state": {},
            "http_version": "1.1", "scheme": "http", "root_path": "", "asgi": {"version": "3.0"},
        }  # fmt: skip
        await app(scope, receive, send)
        return int(said[0]["status"])

    for headers in (
        [],
        [(b"authorization", b"Bearer ssm_000000000000_" + b"A" * 43)],
        [(b"authorization", b"Basic x")],
    ):
        assert asyncio.run(statuses(headers)) == 401
    assert read == 0


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "null", "", "http://", "://127.0.0.1:80"])
def test_an_origin_that_is_no_address_is_refused_in_words(client: TestClient, origin: str) -> None:
    error_of(client.get("/v1/models", headers={"Origin": origin, "Host": "127.0.0.1"}), 403)


def test_a_request_takes_one_of_the_allowance_however_often_its_key_is_looked_at(
    tiny: LanguageModel, store: Store, keys: dict[Scope, str]
) -> None:
    with asking(app_over(tiny, store, rate_burst=3, rate_per_minute=0.001), keys["generate"]) as client:
        assert [client.post(_CHAT, json=chat_with()).status_code for _ in range(4)] == [200, 200, 200, 429]
    with asking(app_over(tiny, store, rate_burst=2, rate_per_minute=0.001), keys["generate"]) as client:
        sent = [client.post(_CHAT, content="{", headers=_JSON).status_code for _ in range(3)]
        assert sent == [400, 400, 429]


@pytest.mark.parametrize(
    "error", [StorageError("the database at /home/ann/x.db is full"), AssetError("no /home/ann/m")]
)
def test_strangers_are_not_told_where_things_are_but_the_log_is(
    app: FastAPI,
    client: TestClient,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def gone() -> None:
        raise error

    monkeypatch.setattr(app.state.context.store, "ping", gone)
    with caplog.at_level(logging.WARNING, "steersman.server"):
        answer = client.get("/readyz")
    assert "/home" not in error_of(answer, 503)["message"]
    assert any(str(error) in record.getMessage() for record in caplog.records)
    assert "/home" not in str(as_refusal(error))


@pytest.mark.parametrize(
    "body",
    [
        {str(number): 1 for number in range(60_000)},
        chat_with(steering={"traits": {str(number): "1" for number in range(60_000)}}),
        chat_with(messages=[{"role": "user", "content": "x", **{f"f{n}": 1 for n in range(400)}} for _ in range(150)]),
    ],
    ids=["unknown", "of one field", "spread"],
)
def test_very_many_mistakes_are_counted_and_not_told(client: TestClient, body: dict[str, Any]) -> None:
    error = error_of(client.post(_CHAT, json=body), 400)
    assert "6000" in error["message"]
    assert len(error["message"]) < 400


def test_a_field_of_megabytes_is_not_compared_with_names(client: TestClient) -> None:
    began = time.perf_counter()
    error_of(client.post("/v1/jobs", json={"kind": "fit", "name": "x", "é" * 500_000: 1}), 400)
    alone = time.perf_counter() - began
    assert alone < 3.0, "seconds of the event loop"


def test_no_number_passes_that_python_reads_as_infinity() -> None:
    for text in ("9" * 299 + "e99", "9" * 205 + "e105", "1e999", "-" + "1" * 310 + ".5"):
        with pytest.raises(Refusal, match="too large"):
            check_json(f'{{"x": {text}}}'.encode())
    check_json(b'{"x": 1e308, "y": -0.0, "z": 123456789012345678901234567890}')


def test_recipes_that_are_small_apart_are_refused_together_when_they_are_too_much(
    client: TestClient, store: Store
) -> None:
    edits = tuple(Add(layer=1, vector=Vector([float(n)] * 32), strength=0.001) for n in range(1, 257))
    for number in range(9):
        store.recipes.add("local", Recipe(name=f"r{number}", edits=edits))
    few = {"recipes": {f"r{number}": 0.1 for number in range(2)}}
    assert client.post(_CHAT, json=chat_with(steering=few)).status_code == 200
    many = {"recipes": {f"r{number}": 0.1 for number in range(9)}}
    assert "2304 edits" in error_of(client.post(_CHAT, json=chat_with(steering=many)), 400)["message"]


def test_what_never_fits_is_refused_for_good_and_not_for_now() -> None:
    async def all_of(count: int) -> Any:
        pump = Pump(make_engine(model_of("llama")), max_queue=2, max_running=2)
        try:
            return await pump.generate_all([ask("x", tokens=2)] * count)
        finally:
            pump.close()

    assert len(asyncio.run(all_of(4))) == 4
    with pytest.raises(RequestError, match="5 answers at once"):
        asyncio.run(all_of(5))


def test_the_steering_api_counts_its_tokens(client: TestClient, app: FastAPI, store: Store) -> None:
    made = store.sets.create("local", "s", model="m", method="lat", dimensions={"a": {}}, prompts=None, request={})
    job = store.jobs.claim("w", 60)
    assert job is not None
    recipe = Recipe(name="a", edits=(Add(layer=1, vector=Vector([1.0] * 32), strength=0.1),))
    store.jobs.finish(job.id, "w", {}, vectors={"a": recipe})
    body = {"model": made.id, "prompt": "x", "control_settings": {"a": 1.0}, "settings": {"max_new_tokens": 3}}
    assert client.post("/completions", json=body).status_code == 200
    assert "steersman_written_tokens_total 0.0" not in app.state.metrics.text().decode()


def test_a_gate_knows_its_own_address(store: Store, tmp_path: Path) -> None:
    gate = Gate(ServerSettings(folder=tmp_path), store.keys, RateLimiter(1, 1))
    gate.check_page("127.0.0.1:8765", "http://127.0.0.1:8765")
    gate.check_page("[::1]:8765", "http://[::1]:8765")


def test_a_slow_reader_of_much_does_not_hold_others_up() -> None:
    class Lines:
        results: dict[int, Any] = {}  # noqa: RUF012 - a stand-in
        sizes: list[int] = []  # noqa: RUF012

        def pieces(self, pieces: Any) -> bytes:
            self.sizes.append(len(pieces))
            return b"x" * len(pieces)

        def last(self) -> bytes:
            return b"."

    async def turns() -> tuple[int, bytes]:
        taken, sent = 0, b""

        async def others() -> None:
            nonlocal taken
            while True:
                taken += 1
                await asyncio.sleep(0)

        async def send(message: Any) -> None:
            nonlocal sent
            sent += message.get("body", b"")

        feed = Feed(Pump(make_engine(model_of("llama")), max_queue=1), 0)
        lines: Any = Lines()
        stream = EventStream(feed, [(0, Chunk("x"))] * 1000, lines, Metrics(), 0.0)
        task = asyncio.create_task(others())
        await stream({"type": "http"}, asyncio.Event().wait, send)  # type: ignore[arg-type]
        task.cancel()
        return taken, sent

    taken, sent = asyncio.run(turns())
    assert sent == b"x" * 1000 + b"."
    assert max(Lines.sizes) <= 64
    assert taken >= 10


def test_a_wrong_key_is_told_before_a_wrong_body(keys: dict[Scope, str], client: TestClient) -> None:
    error_of(client.post(_CHAT, content=b"\xff", headers=_JSON), 401)
    error_of(client.post(_CHAT, content=b"\xff", headers={**_JSON, **bearer(keys["generate"])}), 400)
