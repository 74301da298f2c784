"""The traits that ship are what they say; names are found as people write them, and what is not there is explained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

from steersman.auto.facts import Evidence
from steersman.auto.prompts import split_prompts
from steersman.auto.writing import asking, write
from steersman.engine.engine import Engine
from steersman.errors import DataError, NotFound
from steersman.models.language_model import LanguageModel
from steersman.steering.edits import Add
from steersman.steering.recipe import Recipe
from steersman.steering.recipe_file import save_recipe
from steersman.steering.traits import LEFT_OUT, described, left_out, load_trait, names, shipped_folder, trait_name
from steersman.steering.vector import Vector

_MOST_BYTES = 1_500_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two traits, and one that was left out."""
    for name in ("child-friendly", "pirate"):
        edit = Add(layer=1, vector=Vector(torch.arange(1.0, 9.0)), strength=0.2)
        save_recipe(Recipe(name=name, edits=(edit,), description=f"Be {name}."), tmp_path / f"{name}.json")
    tried = {"honest": {"description": "Be honest.", "reason": "not proven: no clear difference"}}
    (tmp_path / LEFT_OUT).write_text(json.dumps(tried))
    return tmp_path


def test_traits_of_a_folder_are_its_recipes_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    assert names(folder) == ("child-friendly", "pirate")
    assert load_trait("pirate", folder).name == "pirate"
    assert names(tmp_path / "absent") == ()
    assert left_out(tmp_path / "absent") == {}


@pytest.mark.parametrize("said", ["child-friendly", "Child Friendly", " child  friendly", "CHILD-FRIENDLY"])
def test_a_trait_is_found_however_it_is_written(folder: Path, said: str) -> None:
    assert load_trait(said, folder).name == "child-friendly"


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("pirat", "did you mean 'pirate'"),
        ("honest", "no clear difference"),
        ("zen", "child-friendly, pirate"),
        ("", "there are"),
    ],
)
def test_a_trait_that_is_not_there_is_explained(folder: Path, said: str, hint: str) -> None:
    with pytest.raises(NotFound, match=hint) as caught:
        load_trait(said, folder)
    assert "steersman traits train" in str(caught.value)


@pytest.mark.parametrize("said", ["../pirate", "left-out", "pirate.json", "/etc/passwd", "x" * 10_000])
def test_no_name_leads_out_of_the_folder(folder: Path, said: str) -> None:
    with pytest.raises(NotFound) as caught:
        load_trait(said, folder)
    assert len(str(caught.value)) < 1000


def test_sentences_are_known_of_what_ships_and_of_what_was_left_out(folder: Path) -> None:
    assert described("Pirate", folder) == "Be pirate."
    assert described("honest", folder) == "Be honest."
    assert described("sarcastic", folder) is None


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"honest": {"description": "x"}}', '{"honest": {"description": "x", "why": "y"}}']
)
def test_a_damaged_list_of_what_was_left_out_is_refused(folder: Path, text: str) -> None:
    (folder / LEFT_OUT).write_text(text)
    with pytest.raises(DataError, match="damaged"):
        left_out(folder)


def test_names_of_traits_are_words_and_dashes() -> None:
    assert [trait_name(text) for text in ("Child Friendly", "news/reporter!", " ?! ")] == [
        "child-friendly",
        "news-reporter",
        "",
    ]


# --- what ships


@pytest.mark.parametrize("name", names())
def test_a_shipped_trait_has_proven_itself(name: str) -> None:
    recipe = load_trait(name)
    assert (recipe.name, trait_name(name)) == (name, name)
    assert recipe.model is not None
    assert recipe.description
    assert all(isinstance(edit, Add) and 0 < edit.strength < 1 for edit in recipe.edits)
    evidence = TypeAdapter(Evidence).validate_python(recipe.evidence, strict=False)
    assert evidence.verdict == "proven"
    assert min(evidence.against_plain.low or 0.0, evidence.against_random.low or 0.0) > 0
    assert set(evidence.scores) == {"plain", "steered", "prompted", "random"}
    assert len({recipe.data["multipliers"][each] for each in ("-1", "0", "1")}) > 1  # type: ignore[call-overload, index]


@pytest.mark.parametrize("name", names())
def test_a_shipped_trait_was_proven_on_prompts_that_it_was_not_fitted_on(name: str) -> None:
    recipe = load_trait(name)
    settings = recipe.data["settings"]
    assert isinstance(settings, dict)
    sizes = [int(str(settings[each])) for each in ("seed", "train", "validation", "test")]
    prompts = split_prompts(*sizes)
    evidence = TypeAdapter(Evidence).validate_python(recipe.evidence, strict=False)
    assert {example.prompt for example in evidence.examples} <= set(prompts.test)
    assert all(scores.product.total == len(prompts.test) for scores in evidence.scores.values())


def test_the_shipped_traits_are_small_and_for_one_model() -> None:
    assert len(names()) >= 20
    assert sum(path.stat().st_size for path in shipped_folder().iterdir()) < _MOST_BYTES
    assert len({replace(ref, id="") for name in names() if (ref := load_trait(name).model)}) == 1
    assert not set(names()) & set(left_out())


@pytest.mark.model
def test_shipped_traits_fit_the_bundled_model_and_change_what_it_says(bundled: LanguageModel) -> None:
    recipes = [load_trait(name) for name in names()]
    for recipe in recipes:
        recipe.check_fits(bundled)
    requests = [asking("What is money?", recipe, tokens=16) for recipe in [None, *recipes]]
    plain, *steered = write(Engine(bundled), requests)
    assert all(text.strip() and text != plain for text in steered)
