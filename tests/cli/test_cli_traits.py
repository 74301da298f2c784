"""`steersman traits` lists, shows and refuses; a new trait is fitted and proven."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.conftest import Run

from steersman.steering.recipe_file import load_recipe
from steersman.steering.traits import load_trait, names


def test_the_list_names_what_ships(run: Run) -> None:
    facts = run("traits", "list", "--json").facts
    assert [trait["name"] for trait in facts["traits"]] == list(names())
    assert all(trait["verdict"] == "proven" and trait["description"] for trait in facts["traits"])
    assert all(trait["products"]["steered"] > trait["products"]["plain"] for trait in facts["traits"])
    assert all(each["reason"] for each in facts["left_out"])
    shown = run("traits", "list")
    assert shown.code == 0
    assert "cheerful" in shown.out


def test_a_trait_is_shown_and_written_to_a_file(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "mine.json"
    facts = run("traits", "show", "Cheerful", "--out", out, "--json").facts
    assert facts["evidence"]["verdict"] == "proven"
    assert set(facts["data"]["multipliers"]) == {"prompt", "-1", "0", "1"}
    assert load_recipe(out) == load_trait("cheerful")
    again = run("traits", "show", "cheerful", "--out", out)
    assert (again.code, "--force" in again.err) == (1, True)
    assert run("traits", "show", "cheerful", "--out", out, "--force").code == 0


def test_a_trait_that_does_not_ship_is_guessed(run: Run) -> None:
    outcome = run("traits", "show", "cheerfull")
    assert outcome.code == 1
    assert "did you mean 'cheerful'" in outcome.err


@pytest.mark.parametrize(
    ("name", "why"), [(" ", "empty"), ("asdfgh", "no word"), ("formal and casual", "exclude each other")]
)
def test_what_is_no_trait_is_refused_before_the_work(
    run: Run, folder: Path, tmp_path: Path, name: str, why: str
) -> None:
    outcome = run("traits", "train", name, "--out", tmp_path / "x.json", "--model", folder)
    assert outcome.code == 1
    assert why in outcome.err
    assert list(tmp_path.glob("x.*")) == []


def test_files_that_cannot_be_written_are_refused_before_the_work(run: Run, tmp_path: Path) -> None:
    taken = tmp_path / "x.safetensors"
    outcome = run("traits", "train", "sarcastic", "--out", taken)
    assert (outcome.code, "x.json" in outcome.err) == (1, True)
    taken.write_bytes(b"")
    outcome = run("traits", "train", "sarcastic", "--out", tmp_path / "x.json")
    assert (outcome.code, "--force" in outcome.err) == (1, True)
    outcome = run("traits", "train", "sarcastic")
    assert outcome.code == 2


@pytest.mark.model
@pytest.mark.slow
def test_a_new_trait_is_fitted_and_proven(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "slang.json"
    outcome = run(
        "traits", "train", "Talk in casual slang, like a teenager who texts a friend.", "--out", out, "--json"
    )
    assert outcome.code in (0, 3), outcome.err
    recipe = load_recipe(out)
    assert recipe.evidence is not None
    assert (recipe.evidence["verdict"] == "proven") == (outcome.code == 0)
