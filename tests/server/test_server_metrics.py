"""What is counted: requests by route and status, times, tokens, the queue and jobs; each server for itself."""

from __future__ import annotations

import re

from fastapi.testclient import TestClient
from tests.server.rig import app_over, asking, bearer

from steersman.models.language_model import LanguageModel
from steersman.server.metrics import STATES, Metrics
from steersman.store.facts import Scope
from steersman.store.store import Store

CHAT = {"model": "default", "max_tokens": 3, "messages": [{"role": "user", "content": "Hello"}]}


def _values(text: str) -> dict[str, float]:
    """Every sample by its name and labels."""
    samples = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in samples}


def _read(client: TestClient) -> dict[str, float]:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return _values(answer.text)


def test_requests_are_counted_by_route_and_status(client: TestClient) -> None:
    for name in ("one", "other"):
        client.get(f"/v1/recipes/{name}")
    client.get("/nowhere/one")
    client.get("/nowhere/other")
    found = {name: value for name, value in _read(client).items() if name.startswith("steersman_requests_total")}
    by_route = {re.search('route="([^"]*)"', name)[1]: (name, value) for name, value in found.items()}  # type: ignore[index]
    assert by_route["-"][1] == 2
    [(name, value)] = [entry for route, entry in by_route.items() if route.endswith("/{recipe_id}")]
    assert value == 2
    assert 'status="404"' in name
    assert not [route for route in by_route if "one" in route or "other" in route]


def test_methods_that_http_does_not_know_share_a_label(client: TestClient) -> None:
    for method in ("BREW", "FOO", "BAR"):
        client.request(method, "/healthz")
    names = [name for name in _read(client) if 'method="' in name]
    assert not [name for name in names if re.search('method="(BREW|FOO|BAR)"', name)]


def test_tokens_and_times_of_answers_are_counted(client: TestClient) -> None:
    usage = [client.post("/v1/chat/completions", json=CHAT).json()["usage"] for _ in range(2)]
    with client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as stream:
        stream.read()
    found = _read(client)
    assert found["steersman_written_tokens_total"] >= sum(each["completion_tokens"] for each in usage) > 0
    assert found["steersman_prompt_tokens_total"] == 3 * usage[0]["prompt_tokens"]
    assert found["steersman_first_token_seconds_count"] >= 1
    assert found['steersman_request_seconds_count{method="POST",route="/v1/chat/completions"}'] == 3
    assert found["steersman_running_requests"] == found["steersman_waiting_requests"] == 0


def test_jobs_are_counted_by_state(client: TestClient, store: Store) -> None:
    for _ in range(3):
        store.jobs.create("local", "fit", {})
    store.jobs.claim("worker", 60)
    found = _read(client)
    assert {state: found[f'steersman_jobs{{state="{state}"}}'] for state in STATES} == {
        "pending": 2, "running": 1, "ready": 0, "failed": 0, "cancelled": 0,
    }  # fmt: skip


def test_servers_count_for_themselves(tiny: LanguageModel, store: Store) -> None:
    with asking(app_over(tiny, store)) as one, asking(app_over(tiny, store)) as other:
        one.get("/healthz")
        name = 'steersman_requests_total{method="GET",route="/healthz",status="200"}'
        assert _read(one)[name] == 1
        assert name not in _read(other)


def test_only_an_admin_sees_them(keys: dict[Scope, str], client: TestClient) -> None:
    assert client.get("/metrics", headers=bearer(keys["read"])).status_code == 403
    assert client.get("/metrics", headers=bearer(keys["admin"])).status_code == 200


def test_gauges_ask_when_they_are_read() -> None:
    metrics, running = Metrics(), [0]
    metrics.watch(lambda: running[0], lambda: 7)
    running[0] = 5
    found = _values(metrics.text().decode())
    assert found["steersman_running_requests"] == 5
    assert found["steersman_waiting_requests"] == 7
