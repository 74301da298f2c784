"""What steers a request: model names, recipes, traits, sets, inline edits, the server's default and its routes."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from tests.engine.rig import push, vector
from tests.tiny import D_MODEL

from steersman.errors import Conflict, NotFound, RecipeError, RequestError
from steersman.models.language_model import LanguageModel, ModelRef
from steersman.server.recipe_wire import inline
from steersman.server.route import Route
from steersman.server.routing import Router
from steersman.server.steering import Steering, public_name
from steersman.server.steering_body import SteeringBody
from steersman.steering.edits import Add
from steersman.steering.recipe import Recipe
from steersman.store.store import Store

OWNER = "ada"
NAME = "tiny-llama"


def named(name: str, seed: int = 0, strength: float = 0.5) -> Recipe:
    """A recipe of one vector, so that what is chosen can be told by its strength."""
    return Recipe(name=name, edits=(Add(layer=1, vector=vector(seed), strength=strength),))


TRAITS = {"calm": named("calm", 7), "loud": named("loud", 8)}


def trait(name: str) -> Recipe:
    if name not in TRAITS:
        raise NotFound(f"there is no trait {name!r}")
    return TRAITS[name]


class ToBanking(Router):
    """Routes every prompt that speaks of money."""

    def __init__(self, recipe: str = "calm") -> None:
        self.recipe, self.asked = recipe, list[str]()

    def route(self, prompt: str) -> Route | None:
        self.asked.append(prompt)
        if "money" not in prompt:
            return None
        return Route(
            name="bank", recipe=self.recipe, strength=0.5, score=0.9, threshold=0.4, why="it said money", ms=1.0
        )


def steering(
    store: Store, tiny: LanguageModel, default: Recipe | None = None, router: Router | None = None
) -> Steering:
    return Steering(store, default, tiny.ref, trait, router)


def effects(recipe: Recipe | None, factor: float = 1.0) -> dict[str, float]:
    """Strength of each vector, by the name that the tests know it by."""
    seeds = {vector(seed): seed for seed in range(20)}
    found: dict[str, float] = {}
    for edit in recipe.edits if recipe else ():
        assert isinstance(edit, Add)
        place = str(seeds[edit.vector])
        found[place] = round(found.get(place, 0.0) + factor * edit.strength, 6)
    return found


def ready_set(store: Store, owner: str = OWNER) -> str:
    """A set of two traits that has been fitted."""
    made = store.sets.create(
        owner, "mine", model=NAME, method="lat", dimensions={"kind": {}, "brief": {}}, prompts=None, request={}
    )
    job = store.jobs.claim("w", 60.0)
    assert job is not None
    store.jobs.finish(job.id, "w", {}, vectors={"kind": named("kind", 3, 1.0), "brief": named("brief", 4, 1.0)})
    return made.id


def choose(made: Steering, model: str = NAME, prompt: str = "hello", **body: Any) -> dict[str, float]:
    """What strength each vector has for a request."""
    chosen = made.choose(OWNER, model=model, body=SteeringBody(**body) if body else None, prompt=prompt)
    return effects(chosen.recipe, chosen.strength)


# --- naming


def test_every_way_to_name_a_recipe_names_the_same_one(store: Store, tiny: LanguageModel) -> None:
    recipe_id = store.recipes.add(OWNER, named("pirate", 1)).id
    made, expected = steering(store, tiny), {"1": 0.5}
    for model in (f"{NAME}:pirate", f"default:{recipe_id}", f"{NAME.upper()}:pirate"):
        assert choose(made, model) == expected
    for body in ({"recipe": "pirate"}, {"recipe": recipe_id}, {"recipes": {"pirate": 1.0}}):
        assert choose(made, **body) == expected
    [edit] = inline(named("x", 1))["edits"]
    assert choose(made, edits=[edit]) == expected
    assert choose(made) == choose(made, "default") == {}


def test_a_trait_is_named_like_a_recipe_and_a_recipe_of_ones_own_comes_first(store: Store, tiny: LanguageModel) -> None:
    made = steering(store, tiny)
    for chosen in (choose(made, f"{NAME}:calm"), choose(made, recipe="calm"), choose(made, traits={"calm": 1.0})):
        assert chosen == {"7": 0.5}
    store.recipes.add(OWNER, named("calm", 2))
    assert choose(made, recipe="calm") == {"2": 0.5}
    assert choose(made, traits={"calm": 1.0}) == {"7": 0.5}


def test_what_is_named_adds_up_times_its_factor_and_the_strength(store: Store, tiny: LanguageModel) -> None:
    store.recipes.add(OWNER, named("one", 1))
    store.recipes.add(OWNER, named("two", 2))
    found = choose(
        steering(store, tiny),
        f"{NAME}:one",
        recipe="one",
        recipes={"two": -3, "one": 1.0},
        traits={"calm": 2.0, "loud": 0.0},
        edits=inline(named("x", 5))["edits"],
        strength=0.5,
    )
    assert found == {"1": 0.75, "2": -0.75, "7": 0.5, "5": 0.25}


def test_a_set_is_mixed_by_its_traits_and_what_is_left_out_counts_nothing(store: Store, tiny: LanguageModel) -> None:
    set_id, made = ready_set(store), steering(store, tiny)
    assert choose(made, set_id, traits={"kind": 1.5}) == choose(made, set=set_id, traits={"kind": 1.5}) == {"3": 1.5}
    assert choose(made, set_id, set=set_id, traits={"brief": -1.0, "kind": 0}) == {"4": -1.0}
    assert choose(made, set_id) == {}
    with pytest.raises(RequestError, match="did you mean 'brief'"):
        choose(made, set_id, traits={"breif": 1.0})
    with pytest.raises(RequestError, match="name one"):
        choose(made, set_id, set="another-00000000")


def test_a_set_that_is_not_ready_is_no_model_yet(store: Store, tiny: LanguageModel) -> None:
    made = steering(store, tiny)
    record = store.sets.create(OWNER, "new", model=NAME, method="lat", dimensions={}, prompts=None, request={})
    with pytest.raises(Conflict, match="not ready"):
        choose(made, record.id, traits={"kind": 1.0})
    assert record.id not in [item["id"] for item in made.models(OWNER)]


def test_what_is_somebody_elses_is_not_there(store: Store, tiny: LanguageModel) -> None:
    recipe_id = store.recipes.add("eve", named("secret", 1)).id
    set_id, made = ready_set(store, "eve"), steering(store, tiny)
    for work in (
        lambda: choose(made, recipe="secret"),
        lambda: choose(made, f"{NAME}:{recipe_id}"),
        lambda: choose(made, set_id),
        lambda: choose(made, set=set_id),
        lambda: made.model(OWNER, f"{NAME}:secret"),
    ):
        with pytest.raises(NotFound) as refused:
            work()
        assert "did you mean" not in str(refused.value).replace("did you mean 'tiny-llama'?", "")


@pytest.mark.parametrize(
    ("model", "body", "hint"),
    [
        ("tiny-lama", {}, "did you mean 'tiny-llama'"),
        ("tiny-llama:pirat", {}, "did you mean 'pirate'"),
        ("tiny-llama:", {}, "colon"),
        ("default", {"recipe": "pirat"}, "did you mean 'pirate'"),
        ("default", {"recipe": "nothing-like-it"}, "no trait"),
        ("default", {"traits": {"clam": 1.0}}, "no trait 'clam'"),
        ("default", {"set": "pirate"}, "no set"),
    ],
)
def test_what_is_not_there_is_not_found_with_a_hint(
    store: Store, tiny: LanguageModel, model: str, body: dict[str, Any], hint: str
) -> None:
    store.recipes.add(OWNER, named("pirate", 1))
    with pytest.raises(NotFound, match=hint):
        choose(steering(store, tiny), model, **body)


def test_every_model_that_is_listed_can_be_chosen(
    store: Store, tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = ModelRef(id="other", config_hash="0", weights_hash="0")
    monkeypatch.setitem(TRAITS, "foreign", Recipe(name="foreign", edits=push().edits, model=foreign))
    monkeypatch.setattr("steersman.server.steering.trait_names", lambda: tuple(TRAITS))
    store.recipes.add(OWNER, named("calm", 1))
    set_id, made = ready_set(store), steering(store, tiny)
    listed = [(item["id"], item["kind"]) for item in made.models(OWNER)]
    assert listed == [
        (NAME, "model"),
        (f"{NAME}:calm", "recipe"),
        (f"{NAME}:loud", "trait"),
        (set_id, "set"),
    ]
    for name, _ in listed:
        assert made.choose(OWNER, model=name, body=None, prompt="hello").strength == 1.0
        assert made.model(OWNER, name)["id"] == name
    assert made.model(OWNER, "default")["id"] == NAME
    assert len(made.models("eve")) == 3


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        ("default", "smollm2-135m-instruct"),
        ("org/Some-Model", "some-model"),
        ("/models/Big.Model/", "big.model"),
        ("C:\\models\\Fine.gguf", "fine"),
    ],
)
def test_a_model_has_a_name_that_fits_before_a_colon(ref: str, expected: str) -> None:
    assert public_name(ModelRef(id=ref, config_hash="", weights_hash="")) == expected


# --- the server's default


def test_the_default_is_added_unscaled_or_replaced(store: Store, tiny: LanguageModel) -> None:
    made = steering(store, tiny, default=named("house", 9, 1.0))
    assert choose(made) == {"9": 1.0}
    assert choose(made, recipe="calm", strength=2.0) == {"9": 1.0, "7": 1.0}
    assert choose(made, recipe="calm", strength=0.0) == {"9": 1.0}
    assert choose(made, recipe="calm", strength=2.0, mode="replace") == {"7": 1.0}
    assert choose(made, mode="replace") == {}
    told = made.choose(OWNER, model=NAME, body=SteeringBody(mode="replace"), prompt="hello").told
    assert (told["default"], told["mode"]) == ("house", "replace")


def test_a_factor_on_nothing_is_refused(store: Store, tiny: LanguageModel) -> None:
    with pytest.raises(RequestError, match="strength"):
        choose(steering(store, tiny, default=named("house", 9)), strength=0.5)


# --- routes


def test_only_a_request_that_asks_for_nothing_is_routed(store: Store, tiny: LanguageModel) -> None:
    router = ToBanking()
    made = steering(store, tiny, router=router)
    assert choose(made, prompt="about money") == {"7": 0.25}
    assert choose(made, prompt="about money", guard="warn", strength=2.0) == {"7": 0.5}
    assert choose(made, prompt="about cats") == choose(made, prompt="about cats", strength=2.0) == {}
    asked = len(router.asked)
    assert choose(made, f"{NAME}:loud", "money") == {"8": 0.5}
    assert choose(made, prompt="money", recipe="loud") == {"8": 0.5}
    assert choose(made, prompt="money", mode="replace") == {}
    assert len(router.asked) == asked


def test_the_decision_is_told(store: Store, tiny: LanguageModel) -> None:
    made = steering(store, tiny, default=named("house", 9), router=ToBanking())
    told = made.choose(OWNER, model=NAME, body=None, prompt="money").told
    route: Any = told["route"]
    assert (route["name"], route["recipe"], route["applied"]) == ("bank", "calm", True)
    assert "route" not in made.choose(OWNER, model=NAME, body=None, prompt="cats").told


def test_a_route_to_what_the_caller_does_not_have_changes_nothing(store: Store, tiny: LanguageModel) -> None:
    made = steering(store, tiny, router=ToBanking("somebody-elses"))
    chosen = made.choose(OWNER, model=NAME, body=None, prompt="money")
    route: Any = chosen.told["route"]
    assert chosen.recipe is None
    assert route["applied"] is False


# --- bad bodies

_VECTOR = [1.0] * D_MODEL


@pytest.mark.parametrize(
    "body",
    [
        {"strenght": 1.0},
        {"strength": float("nan")},
        {"strength": float("inf")},
        {"strength": 11},
        {"strength": "1"},
        {"strength": True},
        {"recipe": ""},
        {"recipe": 3},
        {"traits": {"calm": 1e9}},
        {"traits": {"calm": float("-inf")}},
        {"traits": ["calm"]},
        {"recipes": {"calm": None}},
        {"recipes": {f"r{index}": 1.0 for index in range(33)}},
        {"mode": "adds"},
        {"guard": "on"},
        {"edits": [{"kind": "add", "layer": 1, "vector": _VECTOR, "strenght": 1.0}]},
        {"edits": [{"kind": "add", "layer": -1, "vector": _VECTOR}]},
        {"edits": [{"kind": "add", "layer": 1, "vector": [float("nan")] * D_MODEL}]},
        {"edits": [{"kind": "add", "layer": 1, "vector": [0.0] * D_MODEL}]},
        {"edits": [{"kind": "add", "layer": 1, "vector": "vector:" + "0" * 64}]},
        {"edits": []},
        {"edits": {}},
        {"abort": {"kind": "token"}},
        {"abort": {}},
    ],
)
def test_a_body_that_makes_no_sense_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SteeringBody(**body)


def test_a_misspelt_field_of_an_inline_edit_is_found() -> None:
    with pytest.raises(ValidationError, match="did you mean 'strength'"):
        SteeringBody(edits=[{"kind": "add", "layer": 1, "vector": _VECTOR, "strenght": 1.0}])


def test_an_inline_abort_stands_alone_or_beside_edits(store: Store, tiny: LanguageModel) -> None:
    made, abort = steering(store, tiny), {"kind": "token", "token_ids": [5]}
    chosen = made.choose(OWNER, model=NAME, body=SteeringBody(abort=abort, recipe="calm"), prompt="hello")
    assert chosen.recipe is not None
    assert chosen.recipe.abort is not None
    assert effects(chosen.recipe) == {"7": 0.5}
    assert made.choose(OWNER, model=NAME, body=SteeringBody(abort=abort), prompt="").recipe is not None


def test_parts_that_do_not_go_together_are_refused(store: Store, tiny: LanguageModel) -> None:
    narrow = Recipe(name="narrow", edits=(Add(layer=1, vector=vector(0, 8)),))
    store.recipes.add(OWNER, narrow)
    with pytest.raises(RecipeError, match="dimensions"):
        choose(steering(store, tiny), recipes={"narrow": 1.0, "calm": 1.0})
