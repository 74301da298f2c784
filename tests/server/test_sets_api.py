"""The steering API, asked in exactly the words of its published client and examples, over a real port."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.server.rig import Served, app_over, asking, bearer, error_of, key_for, serving, settings_in

from steersman.models.language_model import LanguageModel
from steersman.store.store import Store

PROMPTS = [
    "You discover a hidden compartment in your car.",
    "You find a book in your library you don't remember buying.",
    "You stumble upon a shortcut on your regular walking route.",
]
DIMENSIONS = {
    "materialistic": {
        "positive_examples": ["materialistic", "consumerist", "acquisitive"],
        "negative_examples": ["spiritual", "altruistic", "ascetic"],
    },
    "optimistic": {
        "positive_examples": ["optimistic", "happy go lucky", "cheerful"],
        "negative_examples": ["pessimistic", "gloomy", "negative"],
    },
}
SETTINGS = {"max_new_tokens": 24}


class Script:
    """Speaks as the published client does: the same bodies and headers, a new connection for each request."""

    def __init__(self, url: str, token: str = "any-token") -> None:
        self.url, self.token = url, token

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "*/*", "User-Agent": "python-requests/2.32.3"}
        data = None
        if body is not None:
            data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def create(self, label: str, dimensions: Any, prompts: Any = None) -> Any:
        body = {"model_label": label, "control_dimensions": dimensions, "prompt_list": prompts}
        status, made = self.ask("POST", "/steerable-model", body)
        assert status == 202, made
        return made

    def complete(self, model: str, prompt: str, control: Any = None, settings: Any = None) -> str:
        body = {
            "model": model,
            "prompt": prompt,
            "control_settings": control if control is not None else {},
            "settings": settings if settings is not None else SETTINGS,
        }
        status, answer = self.ask("POST", "/completions", body)
        assert status == 200, answer
        return str(answer["content"])

    def wait(self, model: str) -> str:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            status, told = self.ask("GET", f"/steerable-model/{model}/status")
            assert status == 200
            if told["status"] in ("ready", "failed"):
                return str(told["status"])
            assert told["status"] in ("pending", "training")
            time.sleep(0.05)
        raise AssertionError("never ready")


@pytest.fixture
def busy(tiny: LanguageModel, store: Store) -> Iterator[Served]:
    """A server that does its jobs."""
    changes = {"job_workers": 1, "max_tokens": 256}
    with serving(app_over(tiny, store, **changes), settings_in(store.folder, **changes)) as made:
        yield made


@pytest.mark.parametrize("base", ["", "/v1"])
def test_the_published_quickstart_runs_unchanged(busy: Served, base: str) -> None:
    script = Script(busy.url + base)
    made = script.create("testmodel", DIMENSIONS, PROMPTS)
    assert made["object"] == "steerable_model"
    assert made["status"] == "pending"
    assert made["model_label"] == "testmodel"
    assert made["control_dimensions"] == DIMENSIONS
    assert abs(made["created_at"] - time.time()) < 60
    assert isinstance(made["created_at"], int)
    assert made["id"].startswith("testmodel-")
    assert script.wait(made["id"]) == "ready"
    status, listed = script.ask("GET", "/steerable-model?limit=20&offset=0")
    assert status == 200
    wanted = {key: made[key] for key in ("id", "object", "created_at", "model", "control_dimensions")}
    assert listed["data"] == [{**wanted, "status": "ready"}]
    status, details = script.ask("GET", f"/steerable-model/{made['id']}")
    assert (status, details) == (200, listed["data"][0])
    answers = [
        script.complete(made["id"], "Your pet goes missing but returns.", control)
        for control in ({}, {"materialistic": 2, "optimistic": 2}, {"materialistic": -2, "optimistic": -2})
    ]
    assert len(set(answers)) == 3
    status, gone = script.ask("DELETE", f"/steerable-model/{made['id']}")
    assert (status, gone) == (200, {"id": made["id"], "object": "steerable_model", "deleted": True})
    assert script.ask("GET", f"/steerable-model/{made['id']}")[0] == 404


def test_the_documented_completion_has_the_documented_form(busy: Served) -> None:
    script = Script(busy.url)
    sentences = {
        "positivity": {
            "positive_examples": ["This is great!", "I love it!"],
            "negative_examples": ["This is terrible.", "I hate it."],
        }
    }
    made = script.create("positive_sentiment", sentences, ["Write a product review:", "Describe your day:"])
    assert script.wait(made["id"]) == "ready"
    body = {
        "model": made["id"],
        "prompt": "Write a product review:",
        "control_settings": {"positivity": 0.8},
        "settings": {"max_new_tokens": 100},
    }
    status, answer = script.ask("POST", "/completions", body)
    assert status == 200
    assert set(answer) == {"model_id", "object", "created", "model", "content"}
    assert answer["model_id"] == answer["model"] == made["id"]
    assert answer["object"] == "text_completion"
    assert datetime.fromisoformat(answer["created"]).tzinfo is None


def test_no_prompt_list_and_empty_prompts_are_fine(busy: Served) -> None:
    script = Script(busy.url)
    trait = {"kind": {"positive_examples": ["kind"], "negative_examples": ["cruel", "cold"]}}
    for prompts in (None, ["", "That game", "I can see"]):
        assert script.wait(script.create("kind", trait, prompts)["id"]) == "ready"


def test_the_older_form_of_traits_is_taken(busy: Served) -> None:
    script = Script(busy.url)
    older = {name: [each["positive_examples"], each["negative_examples"]] for name, each in DIMENSIONS.items()}
    made = script.create("older", older, PROMPTS[:1])
    assert made["control_dimensions"] == DIMENSIONS
    assert script.wait(made["id"]) == "ready"


def test_a_trait_left_out_counts_nothing(busy: Served) -> None:
    script = Script(busy.url)
    made = script.create("two", DIMENSIONS, PROMPTS[:1])["id"]
    assert script.wait(made) == "ready"
    alone = script.complete(made, "Tell me a joke.", {"optimistic": 2})
    assert alone == script.complete(made, "Tell me a joke.", {"optimistic": 2, "materialistic": 0})
    assert alone != script.complete(made, "Tell me a joke.", {"optimistic": 2, "materialistic": 2})
    plain = script.complete(made, "Tell me a joke.", {})
    assert plain == script.complete(made, "Tell me a joke.", {"optimistic": 0})
    assert plain != alone


def test_the_server_says_hello(busy: Served) -> None:
    for path in ("/", "/v1/"):
        status, told = Script(busy.url).ask("GET", path)
        assert status == 200
        assert told["status"] == "success"
        assert told["message"]


def test_sampling_is_repeatable_with_a_seed(busy: Served) -> None:
    script = Script(busy.url)
    made = script.create("one", {"a": {"positive_examples": ["a"], "negative_examples": ["b"]}}, ["Well,", "So,"])["id"]
    assert script.wait(made) == "ready"
    one, same, other = (
        script.complete(made, "Go on.", {"a": 1}, {"do_sample": True, "seed": seed, "max_new_tokens": 16})
        for seed in (1, 1, 2)
    )
    assert one == same != other


def test_sets_survive_a_restart(tiny: LanguageModel, store: Store) -> None:
    changes = {"job_workers": 1}
    answers = []
    made = ""
    for _ in range(2):
        with serving(app_over(tiny, store, **changes), settings_in(store.folder, **changes)) as served:
            script = Script(served.url)
            made = made or script.create("kept", DIMENSIONS, PROMPTS[:1])["id"]
            assert script.wait(made) == "ready"
            answers.append(script.complete(made, "Go on.", {"optimistic": 2}))
    assert answers[0] == answers[1]


# --- refusals; no job runs here


def _body(**changes: Any) -> dict[str, Any]:
    return {"model_label": "a", "control_dimensions": DIMENSIONS, "prompt_list": None, **changes}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"control_dimensions": DIMENSIONS}, "model_label"),
        ({"model_label": "a"}, "control_dimensions"),
        (_body(model_label=""), "model_label"),
        (_body(control_dimensions={}), "control_dimensions"),
        (_body(control_dimensions={"a": {"positive_examples": ["a"]}}), "negative_examples"),
        (_body(control_dimensions={"a": [["a"], []]}), "negative_examples"),
        (_body(control_dimensions={"a": [["same"], ["same"]]}), "shows the trait or does not"),
        (_body(control_dimensions={"a": [[" "], ["b"]]}), "empty"),
        (_body(prompt_list=["", " "]), "prompt"),
        (_body(promt_list=[]), "did you mean 'prompt_list'"),
        (_body(method="lta"), "method"),
        (_body(layers=[99]), "there is no layer 99"),
    ],
)
def test_a_set_that_cannot_be_fitted_is_refused(client: TestClient, body: Any, says: str) -> None:
    assert says in error_of(client.post("/steerable-model", json=body), 400)["message"]
    assert client.get("/steerable-model").json() == {"data": []}


def test_what_is_not_ready_does_not_answer(client: TestClient) -> None:
    made = client.post("/steerable-model", json=_body()).json()["id"]
    for prompt_and_more in ({"prompt": "Go on."}, {"prompt": "Go on.", "control_settings": {"optimistic": 1}}):
        error = error_of(client.post("/completions", json={"model": made, **prompt_and_more}), 400)
        assert "not ready" in error["message"]
    assert client.get(f"/steerable-model/{made}/status").json() == {"id": made, "status": "pending"}


@pytest.mark.parametrize("method", ["get", "delete"])
def test_what_is_not_there_is_not_found(client: TestClient, method: str) -> None:
    error_of(getattr(client, method)("/steerable-model/nobody-01234567"), 404)
    error_of(client.get("/steerable-model/nobody-01234567/status"), 404)
    error_of(client.post("/completions", json={"model": "nobody-01234567", "prompt": "a"}), 404)


def test_pages_are_cut_by_limit_and_offset(client: TestClient) -> None:
    ids = [client.post("/steerable-model", json=_body(model_label=f"s{n}")).json()["id"] for n in range(12)]
    newest_first = ids[::-1]
    assert [each["id"] for each in client.get("/steerable-model").json()["data"]] == newest_first[:10]
    page = client.get("/v1/steerable-model", params={"limit": 3, "offset": 2}).json()["data"]
    assert [each["id"] for each in page] == newest_first[2:5]
    for wrong in ({"limit": 0}, {"limit": -1}, {"offset": -1}, {"limit": "x"}):
        error_of(client.get("/steerable-model", params=wrong), 400)


def test_labels_of_any_kind_give_an_address(client: TestClient) -> None:
    for label in ("my set", "a/b", "../../etc", "émotions", "'; DROP TABLE sets; --", "😀"):
        made = client.post("/steerable-model", json=_body(model_label=label)).json()
        assert made["model_label"] == label
        assert client.get(f"/steerable-model/{made['id']}").json()["id"] == made["id"]


def test_nobody_sees_or_deletes_the_sets_of_another(tiny: LanguageModel, store: Store) -> None:
    ada, bob = (key_for(store, owner=owner) for owner in ("ada", "bob"))
    with asking(app_over(tiny, store)) as client:
        made = client.post("/steerable-model", json=_body(), headers=bearer(ada)).json()["id"]
        assert client.get("/steerable-model", headers=bearer(bob)).json() == {"data": []}
        error_of(client.get(f"/steerable-model/{made}", headers=bearer(bob)), 404)
        error_of(client.delete(f"/steerable-model/{made}", headers=bearer(bob)), 404)
        error_of(client.post("/completions", json={"model": made, "prompt": "a"}, headers=bearer(bob)), 404)
        error_of(client.get("/steerable-model"), 401)
        assert client.get(f"/steerable-model/{made}", headers=bearer(ada)).status_code == 200


def test_deleting_a_set_cancels_its_job(client: TestClient, store: Store) -> None:
    made = client.post("/steerable-model", json=_body()).json()["id"]
    job_id = store.sets.get("local", made).job_id
    assert client.delete(f"/steerable-model/{made}").status_code == 200
    assert store.jobs.get("local", job_id).state == "cancelled"


@pytest.fixture
def ready(tiny: LanguageModel, store: Store) -> Iterator[tuple[TestClient, str]]:
    """A client and the id of a set that is ready."""
    with asking(app_over(tiny, store, job_workers=1)) as client:
        made = client.post("/steerable-model", json=_body(prompt_list=["Well,"])).json()["id"]
        until = time.monotonic() + 30
        while client.get(f"/steerable-model/{made}/status").json()["status"] != "ready":
            assert time.monotonic() < until
            time.sleep(0.02)
        yield client, made


REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"control_settings": {"optimistc": 1}}, "did you mean 'optimistic'"),
    ({"control_settings": {"optimistic": 1e9}}, "less than or equal to 10"),
    ({"control_settings": {"optimistic": "much"}}, "control_settings.optimistic"),
    ({"settings": {"max_new_token": 5}}, "did you mean 'max_new_tokens'"),
    ({"settings": {"max_new_tokens": 100_000}}, "64 at most"),
    ({"settings": {"max_new_tokens": 0}}, "max_new_tokens"),
    ({"settings": {"repetition_penalty": 0}}, "repetition_penalty"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": "   "}, "prompt is empty"),
    ({"prompt": "x" * 5000}, "token"),
    ({"temperature": 1}, "unknown field 'temperature'"),
)


def test_a_completion_that_makes_no_sense_is_refused(ready: tuple[TestClient, str]) -> None:
    client, made = ready
    for changes, says in REFUSED:
        body = {"model": made, "prompt": "Go on.", "control_settings": {"optimistic": 1}, **changes}
        assert says in error_of(client.post("/completions", json=body), 400)["message"]
    for number in ("NaN", "Infinity", "1e999"):
        text = f'{{"model": "{made}", "prompt": "a", "control_settings": {{"optimistic": {number}}}}}'
        error_of(client.post("/completions", content=text, headers={"Content-Type": "application/json"}), 400)


def test_a_set_that_failed_says_why(client: TestClient, store: Store) -> None:
    made = client.post("/steerable-model", json=_body()).json()["id"]
    asked = store.jobs.list("local")[0][0]
    assert store.jobs.claim("somebody", 30, model=asked.model)
    assert client.get(f"/steerable-model/{made}/status").json()["status"] == "training"
    store.jobs.fail(store.sets.get("local", made).job_id, "somebody", "the pairs do not differ")
    told = {"id": made, "status": "failed", "error": "the pairs do not differ"}
    assert client.get(f"/steerable-model/{made}/status").json() == told
    error = error_of(client.post("/completions", json={"model": made, "prompt": "a"}), 400)
    assert "the pairs do not differ" in error["message"]


def test_a_folder_is_left_clean(ready: tuple[TestClient, str], store: Store) -> None:
    jobs: Path = store.folder / "jobs"
    until = time.monotonic() + 5
    while jobs.is_dir() and list(jobs.iterdir()):
        assert time.monotonic() < until
        time.sleep(0.02)
