"""`steersman curves`: its table, its JSON and its folder say the same; answers to harmful requests stay unsaid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Run
from tests.evals.curve_rig import ab_row, requests, write


@pytest.fixture
def files(tmp_path: Path) -> list[object]:
    """A file of every kind, as options."""
    choice = [{"query": f"What is {number}?", "choices": ["a", "b"], "gold": number % 2} for number in range(3)]
    said = [{"statement": f"I like {number}", "match": "Yes" if number % 2 else "No"} for number in range(3)]
    return [
        *("--choices", write(tmp_path / "c.jsonl", choice)),
        *("--ab", write(tmp_path / "kindness" / "test_dataset_ab.json", [ab_row(0), ab_row(1), ab_row(2, "no")])),
        *("--statements", write(tmp_path / "openness.jsonl", said)),
        *("--harmful", write(tmp_path / "h.json", requests(3)), "--shots", "0,1", "--max-tokens", 4),
    ]


def test_json_folder_and_table_say_the_same(
    run: Run, folder: Path, recipe: Path, files: list[object], tmp_path: Path
) -> None:
    into = tmp_path / "out"
    words = ("curves", recipe, "--model", folder, "--multipliers", "-1,0,1", *files)
    facts = run(*words, "--json", "--out", into).facts
    assert [curve["name"] for curve in facts["curves"]] == [
        "c",
        "kindness",
        "openness",
        "h, harmful",
        "h, harmful, 1 shots",
    ]
    assert all([point["multiplier"] for point in curve["points"]] == [-1, 0, 1] for curve in facts["curves"])
    kindness = facts["curves"][1]["points"][0]
    assert (kindness["value"]["n"], kindness["value"]["total"]) == (2, 3)
    assert sum(kindness["missing"].values()) == 1
    assert json.loads((into / "curves.json").read_text())["curves"] == facts["curves"]
    assert (into / "curves.svg").exists()
    assert '"answers":' not in json.dumps(facts)
    refused = run(*words, "--out", into)
    assert refused.code == 1
    assert "--force" in refused.err
    table = run(*words, "--out", into, "--force")  # From the points that are there.
    assert table.code == 0, table.err
    mean = facts["curves"][2]["points"][0]["value"]["mean"]
    assert f"{mean:.3f}" in table.out
    assert "2 of 3" in table.out


def test_a_letter_or_a_text_stands_for_an_answer(run: Run, folder: Path, recipe: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "tea.json", [ab_row(0), ab_row(1)])
    words = ("curves", recipe, "--model", folder, "--multipliers", "1", "--ab", path, "--json")
    letter, text = (run(*words, "--ab-by", by).facts["curves"][0] for by in ("letter", "text"))
    assert letter["measures"] + ", by its text" == text["measures"]
    assert letter["points"][0]["value"]["mean"] != text["points"][0]["value"]["mean"]
    refused = run(*words, "--ab-by", "texts")
    assert refused.code == 2
    assert "text" in refused.err


def test_answers_are_shown_when_asked_for(run: Run, folder: Path, recipe: Path, tmp_path: Path) -> None:
    asked = write(tmp_path / "h.json", requests(2))
    words = ("curves", recipe, "--model", folder, "--multipliers", "0", "--harmless", asked, "--max-tokens", 4)
    bad = run(*words)
    assert bad.code == 0, bad.err
    assert "harmless" in bad.out
    told = run(*words, "--show-answers", "--json").facts
    assert len(told["curves"][0]["points"][0]["answers"]) == 2


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "at least one file"),
        (("--multipliers", "one", "--ab", "x.json"), 2, "multipliers must be numbers"),
        (("--limit", "0", "--ab", "x.json"), 2, "--limit"),
        (("--shots", "many", "--ab", "x.json"), 2, "whole numbers"),
        (("--ab", "none.json"), 1, "cannot read items"),
    ],
)
def test_wrong_words_are_refused(
    run: Run, folder: Path, recipe: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    outcome = run("curves", recipe, "--model", folder, *words)
    assert outcome.code == code
    assert said in " ".join(outcome.err.replace("│", " ").split())
