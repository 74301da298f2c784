"""`fit optimised`, `fit direction` and `fit condition` write recipes that run, and explain what they cannot use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import PAIRS, Run

from steersman.steering.condition import Not, Since
from steersman.steering.edits import Ablate
from steersman.steering.recipe_file import load_recipe

EIGHT = PAIRS + [
    {"prompt": f"What is {word}?", "positive": f"Arr, {word} for me ship!", "negative": f"A kind of {word}."}
    for word in ("bread", "snow", "iron", "tea", "glass")
]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in EIGHT))
    return path


@pytest.fixture
def kinds(tmp_path: Path) -> tuple[Path, Path]:
    """Prompts of two kinds, in two forms."""
    one, other = tmp_path / "one.txt", tmp_path / "other.json"
    one.write_text("".join(f"zzzz how do I zzzz number {n} zzzz\n" for n in range(16)))
    other.write_text(json.dumps([{"instruction": f"AAA, tell me of AAA {n} AAA"} for n in range(16)]))
    return one, other


def test_an_optimised_vector_steers(run: Run, many: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.json"
    made = run(
        *("fit", "optimised", many, "--out", out, "--model", folder, "--layer", 1, "--layer", 2),
        *("--steps", 8, "--preference", "bipo", "--json"),
    )
    assert made.facts["method"] == "optimised"
    assert made.facts["data"]["training"]["preference"] == "bipo"
    assert set(made.facts["data"]["history"]) == {"1", "2"}
    again = run("fit", "optimised", many, "--out", out, "--model", folder, "--layer", 1)
    assert (again.code, "--force" in again.err) == (1, True)
    (answer,) = run("generate", "--recipe", out, "--model", folder, "--max-tokens", 4, "--json", "-p", "Hi").facts[
        "answers"
    ]
    assert answer


def test_an_optimised_vector_needs_more_than_three_pairs(run: Run, pairs: Path, folder: Path, tmp_path: Path) -> None:
    outcome = run("fit", "optimised", pairs, "--out", tmp_path / "o.json", "--model", folder)
    assert outcome.code == 1
    assert "3 different pairs" in outcome.err
    outcome = run("fit", "optimised", pairs, "--out", tmp_path / "o.json", "--preference", "dpo")
    assert "use reps or bipo" in outcome.err
    assert not (tmp_path / "o.json").exists()


def test_a_direction_is_ablated_at_every_layer(
    run: Run, kinds: tuple[Path, Path], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "d.json"
    made = run(
        *("fit", "direction", "--trigger", kinds[0], "--other", kinds[1], "--out", out, "--model", folder),
        *("--choose", "separation"),
    )
    assert made.code == 0, made.err
    assert "held-out prompts" in made.out
    edits = load_recipe(out).edits
    assert [edit.layer for edit in edits] == [0, 1, 2, 3]
    assert all(isinstance(edit, Ablate) for edit in edits)


def test_a_condition_goes_into_a_recipe(
    run: Run, recipe: Path, kinds: tuple[Path, Path], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "c.json"
    common = ("fit", "condition", "--trigger", kinds[0], "--other", kinds[1], "--model", folder)
    made = run(*common, "--recipe", recipe, "--out", out, "--json")
    assert made.facts["condition"]["held_out"]["f1"]["mean"] == 1.0
    (edit,) = load_recipe(out).edits
    assert isinstance(edit.when, Since)
    told = run(*common, "--recipe", recipe, "--out", tmp_path / "n.json", "--negate")
    assert "F1 1.00" in told.out
    assert "steers unless" in told.out
    (edit,) = load_recipe(tmp_path / "n.json").edits
    assert isinstance(edit.when, Not)

    def answers(*more: object) -> list[str]:
        facts = run(
            *("generate", "--model", folder, "--max-tokens", 8, "--json", *more),
            *("-p", "AAA, tell me of AAA 99 AAA", "-p", "zzzz how do I zzzz number 99 zzzz"),
        ).facts
        return [json.dumps(answer) for answer in facts["answers"]]

    assert answers("--recipe", out) != answers("--recipe", tmp_path / "n.json")


def test_prompts_that_cannot_be_used_are_explained(
    run: Run, recipe: Path, kinds: tuple[Path, Path], folder: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few.txt"
    few.write_text("one\ntwo\n")
    common = (
        "fit",
        "condition",
        "--other",
        kinds[1],
        "--recipe",
        recipe,
        "--model",
        folder,
        "--out",
        tmp_path / "c.json",
    )
    for path, message in ((few, "2 different prompts that should trigger"), (kinds[1], "stand in both sets")):
        outcome = run(*common, "--trigger", path)
        assert outcome.code == 1
        assert message in outcome.err
    outcome = run(*common, "--trigger", tmp_path / "none.txt")
    assert "cannot read prompts" in outcome.err
    assert run(*common, "--trigger", kinds[0], "--join", "xor").code == 2
    outcome = run(*common, "--trigger", kinds[0], "--layer", 3)
    assert "cannot wait for a condition at layer 3" in outcome.err
