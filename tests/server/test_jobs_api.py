"""Jobs over HTTP: asked for, watched, cancelled; what can be seen to be wrong is refused before it is a job."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from tests.server.rig import Served, app_over, asking, bearer, error_of, key_for, serving, settings_in
from tests.tiny import tiny_model

from steersman.models.language_model import LanguageModel
from steersman.server import parts
from steersman.server.job_kinds.desk import Desk, Done
from steersman.server.steering import public_name
from steersman.store.facts import JobRecord
from steersman.store.store import Store

PAIRS = [
    {"prompt": f"What is {word}?", "positive": f"Ahoy, {word}!", "negative": f"It is {word}."}
    for word in ("rain", "snow", "wind", "hail")
]
FIT = {"kind": "fit", "name": "ahoy", "pairs": PAIRS}


@pytest.fixture
def busy(tiny: LanguageModel, store: Store) -> Iterator[Served]:
    """A server that does its jobs."""
    with serving(app_over(tiny, store, job_workers=1), settings_in(store.folder, job_workers=1)) as made:
        yield made


def events_of(response: httpx2.Response) -> Iterator[tuple[int | None, str, Any]]:
    """Server-sent events: id, kind, data."""
    number, kind = None, ""
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if name == "id":
            number = int(value)
        elif name == "event":
            kind = value
        elif name == "data":
            yield number, kind, json.loads(value)
            number = None


def watch(served: Served, job_id: str, **headers: str) -> list[tuple[int | None, str, Any]]:
    with served.client() as client, client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return list(events_of(response))


def test_a_recipe_is_fitted_and_belongs_to_its_owner(busy: Served, store: Store) -> None:
    with busy.client() as client:
        asked = client.post("/v1/jobs", json=FIT)
        assert asked.status_code == 202
        job = asked.json()
        assert (job["object"], job["kind"], job["state"]) == ("job", "fit", "pending")
        *told, (_, last, ended) = watch(busy, job["id"])
        assert last == "ended"
        assert ended["state"] == "ready"
        assert {kind for _, kind, _ in told} == {"progress"}
        recipe = store.recipes.load("local", ended["result"]["recipes"]["ahoy"])
        assert recipe.name == "ahoy"
        assert recipe.method == "caa"
        assert client.get(f"/v1/jobs/{job['id']}").json() == ended
        listed = client.get("/v1/jobs", params={"kind": "fit", "state": "ready"}).json()
        assert (listed["total"], listed["data"]) == (1, [ended])
        error_of(client.post("/v1/jobs", json=FIT), 409)
        error_of(client.delete(f"/v1/jobs/{job['id']}"), 409)


def test_watching_goes_on_behind_the_last_event_seen(busy: Served) -> None:
    with busy.client() as client:
        job = client.post("/v1/jobs", json=FIT).json()["id"]
        whole = watch(busy, job)
        numbers = [number for number, _, _ in whole[:-1]]
        assert numbers == list(range(1, len(whole)))
        assert watch(busy, job, **{"Last-Event-ID": "1"}) == whole[1:]
        assert watch(busy, job, **{"Last-Event-ID": "999"}) == whole[-1:]
        error_of(client.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": "x"}), 400)
        error_of(client.get("/v1/jobs/job_nobody/events"), 404)


class Waits:
    """A job that goes on until it is stopped."""

    def __init__(self) -> None:
        self.began, self.left = threading.Event(), threading.Event()

    def run(self, job: JobRecord, desk: Desk) -> Done:
        try:
            while True:
                desk.tell("step", {"labels": ["one\ntwo", "ü"]})
                self.began.set()
                time.sleep(0.02)
        finally:
            self.left.set()


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> Waits:
    kind = Waits()
    monkeypatch.setattr(parts, "KINDS", {"fit": kind, "fit-set": kind})
    return kind


def test_events_come_while_the_job_runs_and_end_when_it_is_cancelled(endless: Waits, busy: Served) -> None:
    with busy.client() as client:
        job = client.post("/v1/jobs", json=FIT).json()["id"]
        with client.stream("GET", f"/v1/jobs/{job}/events") as response:
            seen = []
            for number, kind, data in events_of(response):
                seen.append(kind)
                if kind == "step":
                    assert data["data"] == {"labels": ["one\ntwo", "ü"]}
                if number == 3:
                    with busy.client() as other:
                        assert other.delete(f"/v1/jobs/{job}").json()["state"] == "cancelled"
            assert seen[-1] == "ended"
            assert data["state"] == "cancelled"
    assert endless.left.wait(5)


def test_deleting_a_set_stops_the_work_on_it(endless: Waits, busy: Served) -> None:
    with busy.client() as client:
        body = {"model_label": "a", "control_dimensions": {"a": [["a", "c"], ["b"]]}, "prompt_list": None}
        made = client.post("/steerable-model", json=body).json()["id"]
        assert endless.began.wait(10)
        assert client.delete(f"/steerable-model/{made}").status_code == 200
    assert endless.left.wait(5)


def test_a_server_that_ends_gives_its_job_back(endless: Waits, tiny: LanguageModel, store: Store) -> None:
    with serving(app_over(tiny, store, job_workers=1), settings_in(store.folder)) as served:
        with served.client() as client:
            job = client.post("/v1/jobs", json=FIT).json()["id"]
        assert endless.began.wait(10)
    given_back = store.jobs.get("local", job)
    assert (given_back.state, given_back.attempts) == ("pending", 0)


def test_a_job_waits_for_a_server_with_the_model_that_it_was_asked_of(
    endless: Waits, tiny: LanguageModel, store: Store
) -> None:
    with asking(app_over(tiny, store)) as client:
        asked = client.post("/v1/jobs", json=FIT).json()
    assert asked["model"] == {
        "id": public_name(tiny.ref),
        "config_hash": tiny.ref.config_hash,
        "weights_hash": tiny.ref.weights_hash,
    }
    with asking(app_over(tiny_model(seed=7), store, job_workers=1)) as client:
        assert not endless.began.wait(1.5)
        assert client.get(f"/v1/jobs/{asked['id']}").json() == asked
    with asking(app_over(tiny, store, job_workers=1)):
        assert endless.began.wait(10)


# --- refusals; no job runs here


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"name": "a"}, "kind", "'kind' is missing"),
        ({"kind": "fitt", "name": "a"}, "kind", "'autosteer'"),
        ({"kind": "fit-set"}, "kind", "'autosteer'"),
        ({"kind": "fit", "pairs": PAIRS}, "name", "'name' is missing"),
        ({"kind": "fit", "name": "a"}, None, "give one of"),
        ({**FIT, "contrast_set": "pirate"}, None, "give one of"),
        ({**FIT, "layrs": [3]}, "layrs", "did you mean 'layers'"),
        ({**FIT, "layers": [99]}, None, "no layer 99"),
        ({**FIT, "name": "../../a"}, "name", "name"),
        ({**FIT, "method": "cca"}, "method", "method"),
        ({**FIT, "strength": 1e300}, "strength", "strength"),
        ({"kind": "fit", "name": "a", "contrast_set": "pirat"}, None, "did you mean 'pirate'"),
        ({"kind": "fit", "name": "a", "contrast_set": "../pirate"}, None, "no contrast set"),
        ({"kind": "fit", "name": "a", "pairs": [{"positive": "a", "negative": "a"}] * 2}, None, "the same"),
        ({"kind": "fit", "name": "a", "pairs": PAIRS[:1]}, "pairs", "pairs"),
        ({"kind": "fit", "name": "a", "personas": {"positive_examples": ["a"]}}, None, "negative_examples"),
        ({"kind": "autosteer", "behaviour": ""}, "behaviour", "behaviour"),
        ({"kind": "autosteer", "behaviour": "Be formal and casual."}, None, "exclude each other"),
        ({"kind": "autosteer", "behaviour": "Be kind.", "opposite": "be kind"}, None, "says the same"),
        ({"kind": "autosteer", "behaviour": "Be kind.", "optimiser": "gradiant"}, None, "did you mean 'gradient'"),
        ({"kind": "autosteer", "behaviour": "Be kind.", "sae": "/etc"}, "sae", "unknown field 'sae'"),
        ({"kind": "evaluate"}, None, "give either"),
        ({"kind": "evaluate", "behaviour": "/etc/passwd"}, None, "no behaviour"),
        ({"kind": "evaluate", "behaviour": "pirate", "methods": ["cca"]}, None, "did you mean 'caa'"),
        ({"kind": "evaluate", "behaviour": "pirate", "methods": ["plain"]}, None, "no method that steers"),
        ({"kind": "evaluate", "behaviour": "pirate", "judge": "locl"}, None, "unknown judge"),
        ({"kind": "evaluate", "behaviour": "pirate", "strengths": [0.1, 0.1]}, None, "twice"),
    ],
)
def test_a_job_that_cannot_be_done_is_refused(client: TestClient, body: Any, param: str | None, says: str) -> None:
    error = error_of(client.post("/v1/jobs", json=body), 400)
    assert says in error["message"]
    if param is not None:
        assert error["param"] == param
    assert client.get("/v1/jobs").json()["total"] == 0


@pytest.mark.parametrize("more", [{"judge": "llm"}, {"optimiser": "textgrad"}, {"expand": True}])
def test_a_job_that_needs_a_language_model_says_that_there_is_none(client: TestClient, more: dict[str, Any]) -> None:
    error = error_of(client.post("/v1/jobs", json={"kind": "autosteer", "behaviour": "Be kind.", **more}), 409)
    assert "no language model" in error["message"]
    body = {"kind": "evaluate", "behaviour": "pirate", "judge": "local+llm"}
    error_of(client.post("/v1/jobs", json=body), 409)


def test_nobody_sees_watches_or_cancels_the_jobs_of_another(tiny: LanguageModel, store: Store) -> None:
    ada, bob = (key_for(store, owner=owner) for owner in ("ada", "bob"))
    reader = key_for(store, "read", owner="ada")
    with asking(app_over(tiny, store)) as client:
        job = client.post("/v1/jobs", json=FIT, headers=bearer(ada)).json()["id"]
        assert client.get("/v1/jobs", headers=bearer(bob)).json()["total"] == 0
        for path in (f"/v1/jobs/{job}", f"/v1/jobs/{job}/events"):
            error_of(client.get(path, headers=bearer(bob)), 404)
        error_of(client.delete(f"/v1/jobs/{job}", headers=bearer(bob)), 404)
        error_of(client.delete(f"/v1/jobs/{job}", headers=bearer(reader)), 403)
        assert client.get(f"/v1/jobs/{job}", headers=bearer(reader)).json()["state"] == "pending"
        assert client.delete(f"/v1/jobs/{job}", headers=bearer(ada)).json()["state"] == "cancelled"
