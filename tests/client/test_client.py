"""Everything a server does, through the client: over a real port, on the tiny model, by both clients alike."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import FastAPI
from pydantic import BaseModel, ValidationError
from safetensors.torch import load_file
from tests.client.conftest import Do
from tests.server.rig import Served, key_for
from tests.tiny import D_MODEL

import steersman
from steersman.client import answers, facts, feature_facts, features, jobs, recipes, sets
from steersman.client.client import Client
from steersman.client.facts import JobEvent
from steersman.client.steps import Send
from steersman.errors import ApiError, RequestError
from steersman.models.language_model import LanguageModel
from steersman.server import features_answers, jobs_bodies, recipes_bodies, sets_bodies
from steersman.server.job_kinds import KINDS
from steersman.server.job_kinds.desk import Desk, Done
from steersman.steering.edits import Add
from steersman.steering.recipe import Recipe
from steersman.steering.recipe_file import save_recipe, to_wire
from steersman.steering.vector import Vector
from steersman.store.facts import JobRecord
from steersman.store.store import Store

_DIMENSIONS = {
    "cheerful": {"positive_examples": ["cheerful", "sunny"], "negative_examples": ["gloomy", "bitter"]},
    "brave": {"positive_examples": ["brave"], "negative_examples": ["timid"]},
}
_PAIRS = [
    {"prompt": f"What is {word}?", "positive": f"Ahoy, {word}!", "negative": f"It is {word}."}
    for word in ("rain", "snow", "wind", "hail", "fog", "dew", "ice", "sun")
]
_CHAT = {"max_tokens": 12, "temperature": 0.0}


def made_recipe(model: LanguageModel, name: str = "odd", seed: int = 0) -> Recipe:
    numbers = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed)).tolist()
    return Recipe(
        name=name,
        description="random",
        edits=(Add(layer=1, vector=Vector(numbers), strength=0.8),),
        model=model.ref,
        method="by hand",
        evidence={"n": 3},
    )


# --- answers


def test_answers_steered_and_plain(do: Do, tiny: LanguageModel) -> None:
    do(lambda client: client.recipes.upload(made_recipe(tiny)))
    plain = do(lambda client: client.chat("What is money?", **_CHAT))
    assert plain.choices[0].finish_reason in {"stop", "length"}
    assert plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens
    steered = do(lambda client: client.chat("What is money?", recipe="odd", compare=True, **_CHAT))
    assert steered.text != plain.text
    assert steered.plain.text == plain.text
    nothing = do(lambda client: client.chat("What is money?", recipes={"odd": 0.0}, **_CHAT))
    assert nothing.text == plain.text
    by_name = do(lambda client: client.chat("What is money?", model="default:odd", **_CHAT))
    assert by_name.text == steered.text
    edits = to_wire(made_recipe(tiny))[0]["edits"]
    edits[0]["vector"] = made_recipe(tiny).edits[0].vector.tensor.tolist()
    inline = do(lambda client: client.chat("What is money?", edits=edits, **_CHAT))
    assert inline.text == steered.text
    chat = [{"role": "user", "content": "What is money?"}]
    assert do(lambda client: client.chat(chat, strength=2.0, recipe="odd", **_CHAT)).text not in (
        steered.text,
        plain.text,
    )


def test_several_answers_with_seeds_and_logprobs(do: Do) -> None:
    asked = {"max_tokens": 5, "temperature": 1.0, "seed": 3}
    several = do(lambda client: client.chat("Hello", n=3, logprobs=True, top_logprobs=2, **asked))
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert all(choice.logprobs for choice in several.choices)
    assert (
        do(lambda client: client.chat("Hello", **asked)).text == do(lambda client: client.chat("Hello", **asked)).text
    )


def test_text_goes_on(do: Do) -> None:
    answer = do(lambda client: client.complete("Once upon a time", **_CHAT))
    assert answer.text
    assert answer.model


def test_models_name_the_recipes(do: Do, tiny: LanguageModel) -> None:
    do(lambda client: client.recipes.upload(made_recipe(tiny)))
    names = [model.id for model in do(lambda client: client.models())]
    assert any(name.endswith(":odd") for name in names)


def test_a_stream_is_the_answer_in_pieces(server: Served, tiny: LanguageModel) -> None:
    with Client(server.url) as client:
        client.recipes.upload(made_recipe(tiny))
        whole = client.chat("What is money?", recipe="odd", **_CHAT)
        with client.stream("What is money?", recipe="odd", **_CHAT) as pieces:
            found = list(pieces)
    assert "".join(piece.text for piece in found) == whole.text
    assert found[-1].usage == whole.usage
    assert [c.finish_reason for piece in found for c in piece.choices if c.finish_reason] == [
        whole.choices[0].finish_reason
    ]


def test_an_unknown_option_is_refused_before_it_is_sent(do: Do) -> None:
    with pytest.raises(RequestError, match="did you mean 'strength'"):
        do(lambda client: client.chat("Hello", strenght=2.0))


@pytest.mark.parametrize(
    ("ask", "status", "says"),
    [
        (lambda client: client.chat("Hello", recipe="nobody"), 404, "nobody"),
        (lambda client: client.chat("Hello", model="gpt-4"), 404, "gpt-4"),
        (lambda client: client.chat("Hello", temperature=-1.0), 400, "temperature"),
        (lambda client: client.chat("Hello", recipes={"x": 1e9}), 400, "steering"),
        (lambda client: client.chat([]), 400, "messages"),
        (lambda client: client.recipes.get("no such?recipe"), 400, "recipe"),
        (lambda client: client.recipes.delete("none"), 404, "none"),
        (lambda client: client.jobs.get("none"), 404, "none"),
        (lambda client: client.jobs.create("dance", {}), 400, "dance"),
        (lambda client: client.sets.get("none"), 404, "none"),
        (lambda client: client.features.get(10**6), 404, "1000000"),
    ],
)
def test_refusals_say_what_the_server_says(do: Do, ask: Callable[[Any], Any], status: int, says: str) -> None:
    with pytest.raises(ApiError, match=says) as found:
        do(ask)
    assert found.value.status == status
    assert found.value.kind
    assert found.value.request_id
    assert found.value.request_id in str(found.value)


# --- recipes


def test_a_recipe_goes_there_and_back(do: Do, tiny: LanguageModel, tmp_path: Path) -> None:
    recipe = made_recipe(tiny)
    kept = do(lambda client: client.recipes.upload(recipe, tags=["a", "b"]))
    assert (kept.name, kept.tags, kept.method, kept.evidence) == ("odd", ("a", "b"), "by hand", {"n": 3})
    assert do(lambda client: client.recipes.download("odd")) == recipe
    shown = do(lambda client: client.recipes.get(kept.id))
    assert shown.edits[0].layer == 1
    assert do(lambda client: client.recipes.tag("odd", ["c"])).tags == ("c",)
    exported = do(lambda client: client.recipes.export("odd", "safetensors", tmp_path / "x.safetensors"))
    [vector] = load_file(exported).values()
    assert torch.cosine_similarity(vector.float().flatten(), recipe.edits[0].vector.tensor, dim=0) > 0.999
    save_recipe(recipe, tmp_path / "file.json")
    other = do(lambda client: client.recipes.upload(tmp_path / "file.json", name="other", description="d"))
    assert (other.name, other.description) == ("other", "d")
    total = do(lambda client: client.recipes.from_parts("both", {"odd": 0.5, "other": 0.25}))
    assert do(lambda client: client.recipes.list(limit=2)).total == 3
    assert [entry.id for entry in do(lambda client: client.recipes.list(tag="c")).data] == [kept.id]
    assert do(lambda client: client.recipes.delete(total.id)) is None
    with pytest.raises(ApiError, match="both"):
        do(lambda client: client.recipes.get("both"))
    with pytest.raises(ApiError) as taken:
        do(lambda client: client.recipes.upload(recipe))
    assert taken.value.status == 409


def test_results_are_frozen(do: Do, tiny: LanguageModel) -> None:
    kept = do(lambda client: client.recipes.upload(made_recipe(tiny)))
    with pytest.raises(ValidationError, match="frozen"):
        kept.name = "other"


# --- features


def test_features_are_found_shown_contrasted_and_made_recipes(do: Do) -> None:
    hits = do(lambda client: client.features.search("ship", limit=2))
    assert hits[0].label in {"ships", "pirates"}
    assert do(lambda client: client.features.get(0)).label.text == "ships"
    told = do(lambda client: client.features.contrast(["ahoy matey", "arr"], ["dear sir", "yours"], limit=3))
    assert (told.n_positive, told.n_negative) == (2, 2)
    chat = [{"role": "user", "content": "who are you?"}, {"role": "assistant", "content": "a pirate!"}]
    seen = do(lambda client: client.features.inspect(chat, top_k=2))
    assert seen.tokens
    assert all(len(token.features) <= 2 for token in seen.tokens)
    made = do(lambda client: client.recipes.from_features("ships", {0: 1.0, 2: -0.5}, strength=0.2))
    assert made.method == "features"
    assert do(lambda client: client.recipes.get("ships")).data["features"] == {"0": 1.0, "2": -0.5}


def test_traits_have_names(do: Do) -> None:
    assert all(trait.name for trait in do(lambda client: client.traits()))


# --- sets


def test_a_set_is_fitted_used_and_deleted(do: Do) -> None:
    made = do(lambda client: client.sets.create("mood", _DIMENSIONS, layers=[1, 2]))
    assert made.id.startswith("mood-")
    ready = do(lambda client: client.sets.wait(made.id))
    assert ready.status == "ready"
    assert set(ready.control_dimensions) == set(_DIMENSIONS)
    plain = do(lambda client: client.sets.complete(made.id, "Hello", max_new_tokens=8))
    steered = do(lambda client: client.sets.complete(made.id, "Hello", {"cheerful": 2.0}, max_new_tokens=8))
    assert plain.content != steered.content
    assert plain.model_id == made.id
    chat = do(
        lambda client: client.chat(
            "Hello", set=made.id, traits={"cheerful": 2.0}, max_tokens=8, temperature=0.0, repetition_penalty=1.1
        )
    )
    assert chat.text.strip() == steered.content
    with pytest.raises(ApiError, match="did you mean 'cheerful'") as found:
        do(lambda client: client.sets.complete(made.id, "Hello", {"cheerfull": 1.0}))
    assert found.value.status == 400
    assert made.id in [entry.id for entry in do(lambda client: client.sets.list()).data]
    do(lambda client: client.sets.delete(made.id))
    with pytest.raises(ApiError):
        do(lambda client: client.sets.get(made.id))


# --- jobs


def test_a_job_is_begun_followed_and_leaves_a_recipe(do: Do) -> None:
    seen: list[JobEvent] = []
    job = do(lambda client: client.jobs.create("fit", {"name": "talk", "pairs": _PAIRS, "layers": [1]}))
    ended = do(lambda client: client.jobs.wait(job.id, seen.append))
    assert (ended.state, ended.error, ended.has_ended) == ("ready", None, True)
    assert [event.number for event in seen] == list(range(1, len(seen) + 1))
    assert {event.kind for event in seen} >= {"progress"}
    assert do(lambda client: client.recipes.get("talk")).method == "caa"
    assert do(lambda client: client.jobs.list(kind="fit", state="ready")).total == 1
    with pytest.raises(ApiError) as found:
        do(lambda client: client.jobs.cancel(job.id))
    assert found.value.status == 409


class _Pirate:
    """An auto-steering that ends at once."""

    def run(self, job: JobRecord, desk: Desk) -> Done:
        if job.request["behaviour"] == "Fail.":
            raise RequestError("too few of the answers showed it")
        for step in range(5):
            desk.tell("step", {"step": step})
            time.sleep(0.05)
        scores: Any = {"plain": {"product": 0.1}, "steered": {"product": 0.5}}
        name = str(job.request["name"])
        recipe = made_recipe(desk.engine.model, name)
        return Done({"verdict": "proven", "why": "it does", "recipe": name, "scores": scores}, recipes={name: recipe})


def test_auto_steering_ends_in_a_recipe_with_its_evidence(do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "autosteer", _Pirate())
    seen: list[Any] = []
    found = do(
        lambda client: client.autosteer(
            "Talk like a pirate.", name="pirate", progress=lambda event: seen.append(event.data)
        )
    )
    assert (found.recipe, found.verdict, found.why) == ("pirate", "proven", "it does")
    assert found.evidence["scores"]["steered"] == {"product": 0.5}
    assert [data["step"] for data in seen if "step" in data] == [0, 1, 2, 3, 4]
    assert do(lambda client: client.chat("Hello", recipe=found.recipe, **_CHAT)).steersman["steering"]["recipes"] == {
        "pirate": 1.0
    }
    with pytest.raises(ApiError, match="too few of the answers") as failed:
        do(lambda client: client.autosteer("Fail."))
    assert failed.value.kind == "job_failed"


def test_events_go_on_where_one_left_them(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "autosteer", _Pirate())
    with Client(server.url) as client:
        job = client.jobs.create("autosteer", {"behaviour": "Talk.", "name": "p"})
        with client.jobs.events(job.id) as events:
            first = [next(events), next(events)]
        rest = list(client.jobs.events(job.id, after=first[-1].number))
        assert [event.number for event in (*first, *rest)] == list(range(1, len(first) + len(rest) + 1))
        assert list(client.jobs.events(job.id)) == [*first, *rest]  # Afterwards too.
        assert client.jobs.get(job.id).state == "ready"


# --- keys


def test_keys_say_who_one_is(server_store: Store, request: pytest.FixtureRequest, tiny: LanguageModel) -> None:
    ann, bob = key_for(server_store, owner="ann"), key_for(server_store, owner="bob")
    reader = key_for(server_store, "read", owner="ann")
    url = request.getfixturevalue("server").url
    with (
        Client(url, ann) as mine,
        Client(url, bob) as theirs,
        Client(url, reader) as only,
        Client(url, "ssm_x_y") as nobody,
    ):
        mine.recipes.upload(made_recipe(tiny))
        assert theirs.recipes.list().data == ()
        assert only.recipes.get("odd").name == "odd"
        for client, status in ((theirs, 404), (nobody, 401)):
            with pytest.raises(ApiError) as found:
                client.recipes.get("odd")
            assert found.value.status == status
            assert ann not in str(found.value)
        with pytest.raises(ApiError) as found:
            only.chat("Hello")
        assert found.value.status == 403
        assert ann not in repr(mine)


# --- the same as the server's own


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (facts.RecipeInfo, recipes_bodies.RecipeOut),
        (facts.RecipeDetails, recipes_bodies.RecipeWhole),
        (facts.EditInfo, recipes_bodies.EditOut),
        (facts.TraitInfo, features_answers.TraitOut),
        (facts.SetInfo, sets_bodies.SetAnswer),
        (facts.SetProgress, sets_bodies.SetStatus),
        (facts.SetAnswer, sets_bodies.SteeredCompletion),
        (facts.Job, jobs_bodies.JobView),
        (facts.JobEvent, jobs_bodies.EventView),
        (feature_facts.FeatureHit, features_answers.HitOut),
        (feature_facts.Feature, features_answers.FeatureOut),
        (feature_facts.Label, features_answers.LabelOut),
        (feature_facts.Neighbour, features_answers.NeighbourOut),
        (feature_facts.Difference, features_answers.DifferenceOut),
        (feature_facts.Contrast, features_answers.ContrastOut),
        (feature_facts.Inspection, features_answers.InspectOut),
    ],
)
def test_facts_are_what_the_server_tells(ours: type[BaseModel], theirs: type[BaseModel]) -> None:
    assert set(ours.model_fields) <= set(theirs.model_fields)


def _flows(recipe: Recipe) -> list[Generator[Any, Any, Any]]:
    return [
        answers.chat("x"), answers.complete("x"), answers.stream("x"), answers.models(),
        recipes.upload(recipe), recipes.from_features("x", {1: 1.0}), recipes.list_recipes(), recipes.get("x"),
        recipes.download("x"), recipes.tag("x", []), recipes.delete("x"),
        sets.create("x", _DIMENSIONS), sets.list_sets(), sets.get("x"), sets.wait("x"), sets.complete("x", "y"), sets.delete("x"),
        jobs.create("fit", {}), jobs.list_jobs(), jobs.get("x"), jobs.cancel("x"), jobs.events("x"), jobs.autosteer("x"),
        features.search("x"), features.get(1), features.contrast(["x"], ["y"]), features.inspect("x"), features.traits(),
    ]  # fmt: skip


def test_every_address_is_in_the_servers_description(server: Served, tiny: LanguageModel) -> None:
    app: FastAPI = server.app
    paths = app.openapi()["paths"]
    for flow in _flows(made_recipe(tiny)):
        step = next(flow)
        assert isinstance(step, Send)
        call = step.call
        parts = call.path.split("/")
        fitting = [
            path
            for path, operations in paths.items()
            if call.method.lower() in operations
            and len(path.split("/")) == len(parts)
            and all(
                theirs == ours or theirs.startswith("{") for theirs, ours in zip(path.split("/"), parts, strict=True)
            )
        ]
        assert fitting, f"{call.method} {call.path}"
        assert call.is_harmless or call.method != "GET"
        json.dumps(call.body)


def test_the_front_door_has_both_clients() -> None:
    assert steersman.Client is Client
    assert steersman.ApiError is ApiError
