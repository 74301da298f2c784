"""`steersman score`: texts from everywhere in one batch, the same numbers for people and programs, wrong input told in a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Run
from tests.sae.index.toy_index import WordEncoder

from steersman.cli import main, score


@pytest.fixture(autouse=True)
def _command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "load_encoder", WordEncoder)
    monkeypatch.setattr(main.app, "registered_commands", [*main.app.registered_commands])
    if not any(each.name == "score" for each in main.app.registered_commands):
        main.app.command("score")(score.score)


def test_texts_of_all_places_are_scored_in_order(run: Run, folder: Path, tmp_path: Path) -> None:
    lines, objects = tmp_path / "texts.txt", tmp_path / "texts.jsonl"
    lines.write_text("fourth of all texts\n\n  fifth of all texts \n")
    objects.write_text(json.dumps({"text": "two\nlines here", "prompt": "Why?"}) + "\n")
    words = ("--word", "sad", "--word", " like  a pirate ", "--word", "sad")
    given = ("score", "first of all texts", "-", *words, "--model", folder, "--json")
    found = run(*given, "--file", lines, stdin=b"second of all\n\nthird of all\n").facts
    assert found["words"] == ["sad", "like a pirate"]
    assert [each["text"].split()[0] for each in found["texts"]] == ["first", "second", "third", "fourth", "fifth"]
    assert all(0 <= each["score"] <= 10 for text in found["texts"] for each in text["scores"])
    again = run("score", "--file", objects, *words, "--model", folder, "--json").facts
    assert [(each["text"], each["prompt"]) for each in again["texts"]] == [("two\nlines here", "Why?")]


def test_people_see_the_same_scores(run: Run, folder: Path) -> None:
    given = (
        "score",
        "it \x1b[2J rains a lot " * 9,
        "-w",
        "sad",
        "-w",
        "like a pirate",
        "-w",
        "formal",
        "--model",
        folder,
    )
    [scored] = run(*given, "--json").facts["texts"]
    shown = run(*given)
    assert (shown.code, shown.err) == (0, "")
    for each in scored["scores"]:
        assert each["word"] in shown.out
        assert f" {each['score']:.1f} " in shown.out
    assert "\x1b[2J" not in shown.out


def test_doubts_are_told_on_standard_error(run: Run, folder: Path) -> None:
    outcome = run("score", "雨", "--word", "sad", "--model", folder, "--json")
    assert "English" in outcome.err
    assert "English" in outcome.facts["texts"][0]["scores"][0]["note"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("fine",), 2, "--word"),
        (("fine", "--word", " "), 2, "the word is empty"),
        (("fine", "--word", "Be cheerful in whatever you say."), 2, "sentence"),
        (("fine", "--word", "42"), 2, "no letter"),
        (("--word", "sad"), 1, "no text"),
        (("", "--word", "sad"), 1, "text 1 is empty"),
        (("fine", "  ", "--word", "sad"), 1, "text 2 is empty"),
        (("-", "--word", "sad"), 1, "no text"),
        (("x" * 600, "--word", "sad"), 1, "text 1 has 600 tokens"),
        (("fine", "--word", "sad", "--prompt", " "), 2, "--prompt"),
        (("--word", "sad", "--file", "none.txt"), 1, "none.txt"),
        (("--word", "sad", "--file", "bytes.txt"), 1, "UTF-8"),
        (("--word", "sad", "--file", "bad.jsonl"), 1, "bad.jsonl, line 2"),
        (("--word", "sad", "--file", "typo.jsonl"), 1, "did you mean 'prompt'"),
        (("--word", "sad", "--file", "."), 1, "cannot read"),
    ],
)
def test_texts_and_words_that_cannot_be_scored(
    run: Run,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bytes.txt").write_bytes(b"\xff\xfe")
    Path("bad.jsonl").write_text('{"text": "fine"}\nnone\n')
    Path("typo.jsonl").write_text('{"text": "fine", "promt": "x"}\n')
    outcome = run("score", *arguments, "--model", folder)
    assert (outcome.code, outcome.out) == (code, "")
    assert says in " ".join(outcome.err.split())


def test_input_that_is_no_text_is_refused(run: Run, folder: Path) -> None:
    for stdin, says in ((b"\xff\xfe", "UTF-8"), (b"x" * (2 << 20), "million")):
        outcome = run("score", "-", "--word", "sad", "--model", folder, stdin=stdin)
        assert outcome.code == 1
        assert says in outcome.err
