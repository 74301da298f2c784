"""Features over HTTP say what the library says, in bounds, and stand in nobody's way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tests.sae.index.toy_index import WordEncoder
from tests.server.feature_rig import toy_lookup
from tests.server.rig import app_over, asking, bearer, error_of, key_for

from steersman.errors import Busy
from steersman.models.language_model import LanguageModel, Message
from steersman.sae.index.contrast import contrast
from steersman.sae.index.inspect import inspect
from steersman.sae.index.search import neighbours, search
from steersman.server.feature_lookup import FeatureLookup
from steersman.server.features_bodies import MOST_CHARACTERS, MOST_TEXTS
from steersman.steering.traits import load_trait, names
from steersman.store.store import Store

_CHAT: list[Message] = [{"role": "user", "content": "who are you?"}, {"role": "assistant", "content": "a pirate!"}]
_ONE, _OTHER = ["ahoy matey", "arr, the sea", "set sail"], ["dear sir", "kind regards", "yours truly"]


@pytest.fixture
def lookup(tiny: LanguageModel, tmp_path: Path) -> FeatureLookup:
    return toy_lookup(tiny, tmp_path / "cache")


@pytest.fixture
def client(app: FastAPI, lookup: FeatureLookup) -> Iterator[TestClient]:
    with asking(app) as made:
        app.state.features = lookup
        yield made


# --- the same as the library


def test_a_search_finds_what_the_library_finds(client: TestClient, lookup: FeatureLookup) -> None:
    found = client.get("/v1/features", params={"query": "ship", "limit": 2}).json()
    hits = search(lookup.shelf.index, "ship", WordEncoder(), n=2)
    assert [(hit["feature"], hit["score"], hit["label"]) for hit in found["data"]] == [
        (hit.feature, pytest.approx(hit.score), hit.label) for hit in hits
    ]
    assert (found["sae"], found["layer"], found["query"]) == ("toy", 2, "ship")


def test_one_feature_in_full(client: TestClient, lookup: FeatureLookup) -> None:
    shown = client.get("/v1/features/0").json()
    shelf = lookup.shelf
    assert shown["label"]["text"] == "ships"
    assert shown["decoder_norm"] == pytest.approx(float(shelf.sae.W_dec[0].norm()))
    assert shown["density"] == pytest.approx(float(shelf.index.density[0]))
    assert ["".join(context["tokens"]) for context in shown["contexts"]] == ["the ship at sea", "a ship"]
    assert all(len(context["tokens"]) == len(context["activations"]) for context in shown["contexts"])
    near = neighbours(shelf.index, 0)
    assert [(other["feature"], other["label"]) for other in shown["neighbours"]] == [(n.feature, n.label) for n in near]
    assert client.get("/v1/features/5").json()["label"] is None
    error_of(client.get("/v1/features/60"), 404)


def test_contrast_and_inspection_are_the_librarys(client: TestClient, lookup: FeatureLookup) -> None:
    model, shelf = lookup.model, lookup.shelf
    body = {"positive": _ONE, "negative": _OTHER, "limit": 3}
    found, whole = (
        client.post("/v1/features/contrast", json=body).json(),
        contrast(model, shelf.sae, _ONE, _OTHER, n=3, index=shelf.index),
    )
    assert [(d["feature"], d["auc"]) for d in found["positive"]] == [(d.feature, d.auc) for d in whole.positive]
    assert [d["score"] for d in found["negative"]] == pytest.approx([d.score for d in whole.negative])
    assert (found["n_positive"], found["n_negative"]) == (3, 3)
    for sent, content in (({"text": "ahoy matey"}, "ahoy matey"), ({"messages": _CHAT, "read": "answer"}, _CHAT)):
        told = client.post("/v1/inspect", json={**sent, "top_k": 2}).json()
        read = "answer" if "read" in sent else "all"
        seen = inspect(model, shelf.sae, content, n_per_token=2, read=read, index=shelf.index)  # type: ignore[arg-type]
        assert [token["token"] for token in told["tokens"]] == list(seen.texts)
        assert [[f["feature"] for f in token["features"]] for token in told["tokens"]] == [
            list(t.features) for t in seen
        ]
        assert told["totals"][0]["sum"] == pytest.approx(seen.totals[0].sum)


def test_a_contrast_takes_chats(client: TestClient) -> None:
    chats = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": answer}] for answer in _ONE + _OTHER]
    found = client.post("/v1/features/contrast", json={"positive": chats[:3], "negative": chats[3:]}).json()
    assert found["positive"]


def test_traits_are_those_that_ship(client: TestClient, tiny: LanguageModel) -> None:
    listed = client.get("/v1/traits").json()["data"]
    assert [trait["name"] for trait in listed] == list(names())
    for trait in listed[:2]:
        recipe = load_trait(trait["name"])
        assert trait["description"] == recipe.description
        assert trait["evidence"] == recipe.evidence
        assert not trait["fits"]


# --- what is refused


@pytest.mark.parametrize(
    "query",
    [{}, {"query": ""}, {"query": "  "}, {"query": "x" * 501}]
    + [{"query": "x", "limit": limit} for limit in (0, 101, -1, "many", 10**30)]
    + [{"query": "x", "max_density": density} for density in (-0.1, 1.1, "nan", "inf")],
)
def test_searches_that_make_no_sense_are_refused(client: TestClient, query: dict[str, Any]) -> None:
    error_of(client.get("/v1/features", params=query), 400)


@pytest.mark.parametrize("feature", ["-1", "x", "1.5", str(10**30), "%2e%2e", "0x1"])
def test_odd_features_are_refused(client: TestClient, feature: str) -> None:
    response = client.get(f"/v1/features/{feature}")
    assert response.status_code in (400, 404)
    error_of(response, response.status_code)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"text": ""}, "text"),
        ({"text": " "}, "empty"),
        ({"text": "a"}, "longer"),
        ({"text": "x" * 20_001}, "text"),
        ({"text": "x" * 2_000}, "cut it"),  # The tiny model reads 512 tokens.
        ({"text": "ab", "messages": _CHAT}, "either"),
        ({}, "either"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "pirate", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "name"),
        ({"text": "ab", "top_k": 0}, "top_k"),
        ({"text": "ab", "top_k": 1e9}, "top_k"),
        ({"text": "ab", "topk": 1}, "did you mean 'top_k'"),
        ({"text": 5}, "text"),
    ],
)
def test_texts_that_cannot_be_inspected_are_refused(client: TestClient, body: Any, says: str) -> None:
    assert says in error_of(client.post("/v1/inspect", json=body), 400)["message"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"positive": _ONE}, "negative"),
        ({"positive": _ONE, "negative": _ONE}, "same texts"),
        ({"positive": ["a b", "a b"], "negative": _ONE}, "different texts"),
        ({"positive": ["a b"], "negative": _ONE}, "positive"),
        ({"positive": ["x"] * (MOST_TEXTS + 1), "negative": _ONE}, "positive"),
        ({"positive": ["x" * 20_000] * (MOST_CHARACTERS // 20_000), "negative": _ONE}, "characters"),
        ({"positive": _ONE, "negative": [1, 2]}, "negative"),
        ({"positive": "ahoy", "negative": _ONE}, "positive"),
    ],
)
def test_lists_that_cannot_be_compared_are_refused(client: TestClient, body: Any, says: str) -> None:
    assert says in error_of(client.post("/v1/features/contrast", json=body), 400)["message"]


def test_a_model_without_an_sae_is_told_so(app: FastAPI) -> None:
    with asking(app) as client:
        for response in (
            client.get("/v1/features", params={"query": "sea"}),
            client.get("/v1/features/1"),
            client.post("/v1/inspect", json={"text": "ahoy"}),
            client.post("/v1/features/contrast", json={"positive": _ONE, "negative": _OTHER}),
        ):
            assert "steersman sae train" in error_of(response, 409)["message"]


def test_looking_needs_read_and_running_the_model_generate(
    tiny: LanguageModel, store: Store, lookup: FeatureLookup
) -> None:
    reads, generates = key_for(store, "read"), key_for(store, "generate")
    app = app_over(tiny, store)
    with asking(app) as client:
        app.state.features = lookup
        contrasted = {"positive": _ONE, "negative": _OTHER}
        for method, path, body, needed, other in (
            ("GET", "/v1/features?query=sea", None, reads, generates),
            ("GET", "/v1/features/1", None, reads, generates),
            ("GET", "/v1/traits", None, reads, generates),
            ("POST", "/v1/inspect", {"text": "ahoy"}, generates, reads),
            ("POST", "/v1/features/contrast", contrasted, generates, reads),
        ):
            assert client.request(method, path, json=body, headers=bearer(needed)).status_code == 200
            error_of(client.request(method, path, json=body, headers=bearer(other)), 403)


# --- in nobody's way


def test_everything_is_loaded_once_whoever_asks_first(tiny: LanguageModel, tmp_path: Path) -> None:
    made: list[WordEncoder] = []

    def encoder() -> WordEncoder:
        made.append(WordEncoder())
        return made[-1]

    toy_lookup(tiny, tmp_path)
    lookup = FeatureLookup(tiny, cache=tmp_path, encoder=encoder)
    shelves: list[Any] = []

    def ask() -> None:
        lookup.search("ship", 3, None)
        shelves.append(lookup.shelf)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(shelves) == 8
    assert len({id(shelf) for shelf in shelves}) == 1


def test_what_failed_to_load_is_tried_again(tiny: LanguageModel, tmp_path: Path) -> None:
    lookup = FeatureLookup(tiny, cache=tmp_path, encoder=WordEncoder)
    with pytest.raises(Exception, match="steersman sae train"):
        _ = lookup.shelf
    toy_lookup(tiny, tmp_path)
    assert lookup.shelf.name == "toy"


def test_too_much_at_once_is_refused_and_the_rest_is_done(tiny: LanguageModel, tmp_path: Path) -> None:
    async def race() -> tuple[int, int, int]:
        lookup = FeatureLookup(tiny, cache=tmp_path, at_once=1, most_waiting=2)
        held, done, refused, answered = threading.Event(), [], [], 0

        async def one() -> None:
            try:
                done.append(await lookup.run(lambda: held.wait(10)))
            except Busy:
                refused.append(1)

        async with anyio.create_task_group() as group:
            for _ in range(6):
                group.start_soon(one)
            while len(refused) < 3:
                await anyio.sleep(0.001)
                answered += 1  # The loop itself is free.
            held.set()
        await lookup.run(lambda: None)
        return len(done), len(refused), answered

    done, refused, answered = anyio.run(race)
    assert (done, refused) == (3, 3)
    assert answered


def test_a_search_does_not_wait_for_the_model(client: TestClient, tiny: LanguageModel) -> None:
    assert client.get("/v1/features", params={"query": "ship"}).status_code == 200
    answers: list[int] = []
    with tiny.lock:  # As if a long pass were running.
        thread = threading.Thread(
            target=lambda: answers.append(client.get("/v1/features", params={"query": "sea"}).status_code)
        )
        thread.start()
        thread.join(20)
    assert answers == [200]
