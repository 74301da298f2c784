"""Recipes over HTTP: kept, listed, tagged, sent back and forth, exported; nobody reaches another's."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from safetensors.torch import save
from tests.server.feature_rig import toy_lookup
from tests.server.rig import app_over, asking, bearer, error_of, key_for
from tests.tiny import D_MODEL

from steersman.models.language_model import LanguageModel
from steersman.server.recipe_wire import MOST_LISTED, inline, untrusted_recipe
from steersman.steering.edits import Ablate, Add, Rotate
from steersman.steering.export import from_gguf, from_safetensors, raw_vectors
from steersman.steering.features import feature_vector
from steersman.steering.recipe import Recipe
from steersman.steering.recipe_file import load_recipe, to_wire
from steersman.steering.target import Direction
from steersman.steering.vector import Vector
from steersman.steering.where import Where
from steersman.store.store import Store


def _vector(seed: int, width: int = D_MODEL) -> Vector:
    return Vector(torch.randn(width, generator=torch.Generator().manual_seed(seed)))


def _recipe(name: str = "one", seed: int = 0, **more: Any) -> Recipe:
    return Recipe(name=name, edits=(Add(layer=2, vector=_vector(seed), strength=0.5),), **more)


def _keep(client: TestClient, recipe: Recipe | None = None, **more: Any) -> dict[str, Any]:
    response = client.post("/v1/recipes", json={"recipe": inline(recipe or _recipe()), **more})
    assert response.status_code == 201, response.text
    return dict(response.json())


@pytest.fixture
def client(app: FastAPI, tiny: LanguageModel, tmp_path: Path) -> Iterator[TestClient]:
    with asking(app) as made:
        app.state.features = toy_lookup(tiny, tmp_path / "cache")
        yield made


# --- there and back


def test_a_recipe_is_kept_shown_and_downloaded_the_same(client: TestClient, tmp_path: Path) -> None:
    recipe = _recipe(description="says ahoy", data={"pairs": 3}, evidence={"score": 0.5})
    kept = _keep(client, recipe, tags=["b", "a", "b"])
    assert (kept["name"], kept["description"], kept["tags"]) == ("one", "says ahoy", ["a", "b"])
    assert kept["evidence"] == {"score": 0.5}
    whole = client.get(f"/v1/recipes/{kept['id']}").json()
    assert whole["edits"] == [{"kind": "add", "layer": 2, "strength": 0.5, "is_conditional": False}]
    assert whole["data"] == {"pairs": 3}
    response = client.get("/v1/recipes/one/file")
    assert response.headers["content-disposition"] == 'attachment; filename="one.json"'
    path = tmp_path / "one.json"
    path.write_bytes(response.content)
    assert load_recipe(path) == recipe == untrusted_recipe(response.json())


def test_what_was_downloaded_can_be_sent_back(client: TestClient) -> None:
    recipe = Recipe(
        name="many",
        edits=(Ablate(layer=1, target=Direction(vector=_vector(1))), Rotate(layer=2, vector=_vector(2), degrees=9.0)),
    )
    _keep(client, recipe)
    facts = client.get("/v1/recipes/many/file").json()
    again = client.post("/v1/recipes", json={"recipe": facts, "name": "again"}).json()
    back = untrusted_recipe(client.get(f"/v1/recipes/{again['id']}/file").json())
    assert back == dataclasses.replace(recipe, name="again")


def test_a_recipe_is_sent_with_its_tensor_file(client: TestClient) -> None:
    recipe = _recipe()
    facts, tensors = to_wire(recipe)
    data = save(tensors)
    body = {
        "recipe": facts,
        "tensors": base64.b64encode(data).decode(),
        "tensors_sha256": hashlib.sha256(data).hexdigest(),
    }
    assert client.post("/v1/recipes", json=body).status_code == 201
    assert untrusted_recipe(client.get("/v1/recipes/one/file").json()) == recipe


def test_a_control_vector_holds_what_the_recipe_adds(client: TestClient, tmp_path: Path) -> None:
    recipe = _recipe()
    _keep(client, recipe)
    added = raw_vectors(recipe, client.app.state.context.engine.profile)  # type: ignore[attr-defined]
    for kind, read in (("gguf", from_gguf), ("safetensors", from_safetensors)):
        response = client.get("/v1/recipes/one/file", params={"format": kind})
        assert response.headers["content-type"] == "application/octet-stream"
        path = tmp_path / f"one.{kind}"
        path.write_bytes(response.content)
        back = read(path)  # type: ignore[operator]
        assert {edit.layer: edit.vector for edit in back.edits} == added


def test_what_no_control_vector_can_hold_is_refused_by_name(client: TestClient) -> None:
    _keep(client, Recipe(name="no", edits=(Ablate(layer=1, target=Direction(vector=_vector(1))),)))
    for kind in ("gguf", "safetensors"):
        assert "ablate" in error_of(client.get("/v1/recipes/no/file", params={"format": kind}), 400)["message"]
    assert list(client.app.state.context.store.folder.glob("tmp*")) == []  # type: ignore[attr-defined]


# --- from features, and sums


def test_a_recipe_of_features_adds_their_decoder_rows(client: TestClient) -> None:
    body = {"name": "sea", "features": {"0": 1.0, "2": -0.5}, "strength": 0.25}
    kept = client.post("/v1/recipes", json=body).json()
    assert kept["method"] == "features"
    recipe = untrusted_recipe(client.get("/v1/recipes/sea/file").json())
    lookup = client.app.state.features  # type: ignore[attr-defined]
    (edit,) = recipe.edits
    assert isinstance(edit, Add)
    assert edit.vector == feature_vector(lookup.shelf.sae, {0: 1.0, 2: -0.5})
    assert (edit.strength, [feature.label for feature in edit.features]) == (0.25, ["ships", "pirates"])
    assert recipe.model == lookup.model.ref
    assert recipe.sae == lookup.shelf.ref


@pytest.mark.parametrize(
    ("features", "status", "says"),
    [
        ({"999": 1.0}, 400, "does not exist"),
        ({"0": 0.0}, 400, "add up to nothing"),
        ({"0": 1.0, "00": 1.0}, 400, "twice"),
        ({}, 400, "features"),
        ({"-1": 1.0}, 400, "features"),
        ({"x": 1.0}, 400, "features"),
        ({"0": "1"}, 400, "features"),
        ({"0": 1e9}, 400, "features"),
        ([1], 400, "features"),
    ],
)
def test_features_that_make_no_recipe_are_refused(client: TestClient, features: Any, status: int, says: str) -> None:
    assert says in error_of(client.post("/v1/recipes", json={"name": "x", "features": features}), status)["message"]


def test_features_need_an_sae_of_the_model(client: TestClient, tiny: LanguageModel, tmp_path: Path) -> None:
    client.app.state.features = None  # type: ignore[attr-defined]  # Back to the library that the settings name.
    error = error_of(client.post("/v1/recipes", json={"name": "x", "features": {"1": 1.0}}), 409)
    assert "steersman sae train" in error["message"]


def test_a_sum_adds_what_its_parts_add(client: TestClient) -> None:
    one, two = _recipe("one", 1), _recipe("two", 2)
    kept = [_keep(client, recipe) for recipe in (one, two)]
    body = {"name": "both", "parts": {"one": 2.0, kept[1]["id"]: -0.5}, "tags": ["mixed"]}
    assert client.post("/v1/recipes", json=body).json()["method"] == "sum"
    both = untrusted_recipe(client.get("/v1/recipes/both/file").json())
    assert both.edits == (2.0 * one).edits + (-0.5 * two).edits
    assert both.data["parts"] == [
        {"recipe": "one", "name": "one", "factor": 2.0, "method": "manual"},
        {"recipe": kept[1]["id"], "name": "two", "factor": -0.5, "method": "manual"},
    ]
    # A sum of sums keeps its facts as small.
    assert client.post("/v1/recipes", json={"name": "more", "parts": {"both": 1.0, "one": 1.0}}).status_code == 201
    assert (
        "nobody" in error_of(client.post("/v1/recipes", json={"name": "x", "parts": {"nobody": 1.0}}), 404)["message"]
    )


def test_a_sum_grows_no_larger_than_a_recipe_may_be(client: TestClient) -> None:
    edits = tuple(Add(layer=1, vector=_vector(number)) for number in range(100))
    for name in ("a", "b", "c"):
        _keep(client, Recipe(name=name, edits=edits))
    error = error_of(client.post("/v1/recipes", json={"name": "x", "parts": {"a": 1, "b": 1, "c": 1}}), 400)
    assert "300 edits" in error["message"]


# --- lists, tags, deleting


def test_lists_are_paged_and_filtered(client: TestClient) -> None:
    for number in range(5):
        _keep(client, _recipe(f"r{number}", number), tags=["odd"] if number % 2 else [])
    page = client.get("/v1/recipes", params={"limit": 2, "offset": 1}).json()
    assert (page["total"], page["limit"], page["offset"], len(page["data"])) == (5, 2, 1, 2)
    every = [recipe["name"] for recipe in client.get("/v1/recipes").json()["data"]]
    assert sorted(every) == [f"r{number}" for number in range(5)]
    assert [recipe["name"] for recipe in page["data"]] == every[1:3]
    odd = client.get("/v1/recipes", params={"tag": "odd"}).json()
    assert {recipe["name"] for recipe in odd["data"]} == {"r1", "r3"}
    assert client.get("/v1/recipes", params={"offset": 10**9}).json()["data"] == []
    for wrong in ({"limit": 0}, {"limit": 101}, {"offset": -1}, {"offset": 10**30}, {"tag": "a b"}):
        error_of(client.get("/v1/recipes", params=wrong), 400)
    assert "did you mean 'tag'" in error_of(client.get("/v1/recipes", params={"tga": "x"}), 400)["message"]


def test_tags_are_replaced(client: TestClient) -> None:
    _keep(client, tags=["old"])
    assert client.patch("/v1/recipes/one", json={"tags": ["new", "also"]}).json()["tags"] == ["also", "new"]
    assert client.get("/v1/recipes", params={"tag": "old"}).json()["data"] == []
    for wrong in (
        {"tags": ["a b"]},
        {"tags": "new"},
        {"tags": [""]},
        {"tags": [f"t{n}" for n in range(99)]},
        {"name": "x"},
        {},
    ):
        error_of(client.patch("/v1/recipes/one", json=wrong), 400)
    assert client.get("/v1/recipes/one").json()["tags"] == ["also", "new"]


def test_a_deleted_recipe_is_gone_and_its_name_free(client: TestClient) -> None:
    kept = _keep(client)
    assert "one" in error_of(client.post("/v1/recipes", json={"recipe": inline(_recipe())}), 409)["message"]
    gone = client.delete("/v1/recipes/one").json()
    assert gone == {"id": kept["id"], "object": "recipe", "deleted": True}
    for call in (client.get, client.delete):
        error_of(call(f"/v1/recipes/{kept['id']}"), 404)
    error_of(client.get("/v1/recipes/one/file"), 404)
    _keep(client)


# --- what is refused


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "exactly one"),
        ({"recipe": {}, "features": {"1": 1.0}, "name": "x"}, "exactly one"),
        ({"recipe": {"name": "x"}}, "steersman_recipe"),
        ({"recipe": []}, "recipe"),
        ({"recipe": {}, "strength": 1.0}, "strength"),
        ({"features": {"1": 1.0}}, "name"),
        ({"features": {"1": 1.0}, "name": "x", "tensors": "AAAA"}, "tensors"),
        ({"features": {"1": 1.0}, "name": "x", "strength": 11}, "strength"),
        ({"features": {"1": 1.0}, "name": "x", "stength": 1}, "did you mean 'strength'"),
        ({"features": {"1": 1.0}, "name": "../x"}, "name"),
        ({"features": {"1": 1.0}, "name": "x'; DROP TABLE recipes; --"}, "name"),
        ({"parts": {}, "name": "x"}, "parts"),
        ({"parts": {"a": True}, "name": "x"}, "parts"),
        ({"parts": {"../a": 1.0}, "name": "x"}, "parts"),
        ({"recipe": inline(_recipe("a b"))}, "name"),
        ({"recipe": inline(_recipe()), "tensors": "%"}, "base64"),
        ({"recipe": inline(_recipe()), "tensors_sha256": "0" * 64}, "tensors"),
        ([], "JSON object"),
    ],
)
def test_bodies_that_are_no_recipe_are_refused(client: TestClient, body: Any, says: str) -> None:
    assert says in error_of(client.post("/v1/recipes", json=body), 400)["message"]
    assert client.get("/v1/recipes").json()["total"] == 0


def test_recipes_that_could_never_run_are_refused(client: TestClient, tiny: LanguageModel) -> None:
    wide = Recipe(name="wide", edits=(Add(layer=1, vector=_vector(0, D_MODEL + 1)),))
    deep = Recipe(name="deep", edits=(Add(layer=99, vector=_vector(0)),))
    other = _recipe(model=dataclasses.replace(tiny.ref, weights_hash="0" * 64))
    for recipe in (wide, deep, other):
        error_of(client.post("/v1/recipes", json={"recipe": inline(recipe)}), 409)
    many = Recipe(
        name="many", edits=(Add(layer=1, vector=_vector(0), where=Where(positions=tuple(range(MOST_LISTED + 1)))),)
    )
    error_of(client.post("/v1/recipes", json={"recipe": inline(many)}), 400)


@pytest.mark.parametrize(
    "name", ["..%2F..%2Fetc%2Fpasswd", "%2e%2e", "a%20b", "x' OR '1'='1", "%00", "é", "a" * 101, "%ff"]
)
def test_odd_ids_are_nothing_to_be_found(client: TestClient, name: str) -> None:
    _keep(client)
    for response in (client.get(f"/v1/recipes/{name}"), client.delete(f"/v1/recipes/{name}")):
        assert response.status_code in (400, 404)
        error_of(response, response.status_code)
    assert client.get("/v1/recipes").json()["total"] == 1


# --- who may what


def test_nobody_reaches_another_owners_recipes(tiny: LanguageModel, store: Store) -> None:
    ada, eve = key_for(store), key_for(store, owner="eve")
    with asking(app_over(tiny, store), ada) as client:
        kept = _keep(client, tags=["mine"])
        for name in (kept["id"], "one"):
            for method, path, body in (
                ("GET", "", None),
                ("GET", "/file", None),
                ("PATCH", "", {"tags": []}),
                ("DELETE", "", None),
            ):
                response = client.request(method, f"/v1/recipes/{name}{path}", json=body, headers=bearer(eve))
                error_of(response, 404)
            sum_of = client.post("/v1/recipes", json={"name": "x", "parts": {name: 1}}, headers=bearer(eve))
            error_of(sum_of, 404)
        assert client.get("/v1/recipes", headers=bearer(eve)).json()["total"] == 0
        assert client.get("/v1/recipes/one").json()["tags"] == ["mine"]
        _keep_as_eve = client.post("/v1/recipes", json={"recipe": inline(_recipe())}, headers=bearer(eve))
        assert _keep_as_eve.status_code == 201  # Names are each owner's own.


def test_reading_needs_read_and_changing_needs_train(tiny: LanguageModel, store: Store) -> None:
    reads, trains, generates = (key_for(store, scope) for scope in ("read", "train", "generate"))  # type: ignore[arg-type]
    with asking(app_over(tiny, store)) as client:
        body = {"recipe": inline(_recipe())}
        assert client.post("/v1/recipes", json=body, headers=bearer(trains)).status_code == 201
        for secret, refused in (
            (reads, ["POST", "PATCH", "DELETE"]),
            (trains, ["GET"]),
            (generates, ["GET", "POST", "DELETE"]),
        ):
            for method in refused:
                path = "/v1/recipes" if method == "POST" else "/v1/recipes/one"
                sent = body if method == "POST" else {"tags": []} if method == "PATCH" else None
                error_of(client.request(method, path, json=sent, headers=bearer(secret)), 403)
        assert client.get("/v1/recipes/one", headers=bearer(reads)).status_code == 200
        error_of(client.get("/v1/recipes/one"), 401)


def test_refusals_come_before_the_body_is_read(tiny: LanguageModel, store: Store) -> None:
    key_for(store)
    with asking(app_over(tiny, store)) as client:
        error_of(client.post("/v1/recipes", json={"nonsense": json.dumps("x")}), 401)
