"""Behaviours from names and files; what is wrong with a file is said with the place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steersman.errors import DataError
from steersman.evals.behaviours import NEUTRAL_PROMPT, behaviour_of, instruction, known_behaviours, load_behaviour
from steersman.steering.pairs import named_sets

GOOD: dict[str, Any] = {
    "name": "anger",
    "positive": ["I am furious!", "My blood boils", "How dare you"],
    "negative": ["I am calm.", "All is well", "Never mind"],
    "score_criterion": "The text contains angry words.",
}


def test_texts_become_answers_to_a_neutral_prompt_in_their_order() -> None:
    found = behaviour_of(GOOD)
    assert (found.items[0].positive, found.items[0].negative) == ("I am furious!", "I am calm.")
    assert {item.prompt for item in found.items} == {NEUTRAL_PROMPT}
    assert found.description == "Write an answer that contains angry words."
    assert found.criterion == "The text contains angry words."
    assert len(found.pairs) == 3


def test_criteria_become_orders() -> None:
    assert (
        instruction("Mentions London or anything like it.")
        == "Write an answer that mentions London or anything like it."
    )
    assert instruction("Angry words").startswith("Write an answer of which this is true: Angry words")


def test_sides_of_unequal_length_use_every_text() -> None:
    found = behaviour_of({**GOOD, "negative": ["I am calm.", "All is well"]})
    assert len(found.items) == 3
    assert {item.negative for item in found.items} == {"I am calm.", "All is well"}


def test_repeated_texts_are_left_out_and_counted() -> None:
    found = behaviour_of({**GOOD, "positive": [*GOOD["positive"], "i am FURIOUS"]})
    assert found.duplicates == 1
    assert [item.positive for item in found.items] == GOOD["positive"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positive": None}, "'positive' must be a list"),
        ({"positive": ["one"]}, "'positive' has 1 different texts; give at least 2"),
        ({"positive": ["one", "One!"]}, "'positive' has 1 different texts"),
        ({"positive": []}, "'positive' has 0"),
        ({"positive": ["one", " "]}, "'positive', text 2"),
        ({"positive": ["one", 2]}, "'positive', text 2"),
        ({"positive": ["All is well", "How dare you"]}, "stands on both sides"),
        ({"name": ""}, "'name' must be a text"),
        ({"score_criterium": "x"}, "did you mean 'score_criterion'"),
    ],
)
def test_wrong_behaviours_are_refused_with_the_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        behaviour_of({**GOOD, **change})


@pytest.mark.parametrize("key", ["name", "positive", "negative"])
def test_missing_keys_are_named(key: str, tmp_path: Path) -> None:
    path = tmp_path / "anger.json"
    path.write_text(json.dumps({k: v for k, v in GOOD.items() if k != key}))
    with pytest.raises(DataError, match=f"anger.json.*misses '{key}'"):
        load_behaviour(path)


def test_a_behaviour_says_what_it_is() -> None:
    nameless = {key: value for key, value in GOOD.items() if key != "score_criterion"}
    with pytest.raises(DataError, match="neither 'description' nor 'score_criterion'"):
        behaviour_of(nameless)
    assert behaviour_of(nameless, "Be angry.").criterion == "Be angry."


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        load_behaviour(tmp_path / "none.json")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        load_behaviour(tmp_path / "a.json")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(DataError, match="no valid JSON"):
        load_behaviour(tmp_path / "b.json")
    (tmp_path / "c.json").write_text("[1]")
    with pytest.raises(DataError, match="JSON object"):
        load_behaviour(tmp_path / "c.json")


def test_a_sentence_too_long_to_be_a_path_is_an_unknown_name() -> None:
    with pytest.raises(DataError, match="there is no behaviour"):
        load_behaviour("be kind and " * 40)


def test_files_of_pairs_need_a_description(tmp_path: Path) -> None:
    path = tmp_path / "pirate.jsonl"
    pair = {"prompt": "What is rain?", "positive": "Arr, water!", "negative": "Water."}
    path.write_text("\n".join(json.dumps({**pair, "prompt": prompt}) for prompt in ("a", "b", "b")))
    with pytest.raises(DataError, match="describe the behaviour"):
        load_behaviour(path)
    found = load_behaviour(path, "Talk like a pirate.")
    assert (len(found.items), found.duplicates, found.name) == (2, 1, "pirate")
    path.write_text(json.dumps(pair) + "\n")
    with pytest.raises(DataError, match="only one pair"):
        load_behaviour(path, "Talk like a pirate.")


def test_shipped_names() -> None:
    assert set(named_sets()) <= set(known_behaviours())
    for name in known_behaviours():
        found = load_behaviour(name)
        assert bool(found.items) == (name in named_sets())
    assert load_behaviour("angry").items == ()
    with pytest.raises(DataError, match="did you mean 'pirate'"):
        load_behaviour("pirat")


def test_few_examples_train_and_validate_on_the_same() -> None:
    few = behaviour_of(GOOD).contrast
    assert few.train == few.validation
    many = load_behaviour("pirate").contrast
    assert not set(many.train) & set(many.validation)


def test_the_public_task_files_are_all_read(shared_data: Path) -> None:
    files = sorted((shared_data / "behaviours" / "sae_ts_tasks").glob("*.json"))
    assert len(files) == 9
    for path in files:
        found = load_behaviour(path)
        assert len(found.items) >= 10
        assert found.duplicates == 0
