"""Harmful requests: read from every form, put behind faked turns, and only the refusal kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.evals.curve_rig import engine, recipe, requests, write
from tests.tiny import CONTEXT

from steersman.errors import DataError
from steersman.evals.jailbreak import OPENINGS, attacks, load_requests, many_shot, refusals
from steersman.evals.refusal import RefusalJudge
from steersman.models.language_model import chat

ASKED = [row["instruction"] for row in requests()]


def test_requests_are_read_from_every_form(tmp_path: Path) -> None:
    plain = load_requests(write(tmp_path / "a.json", requests()))
    lines = load_requests(write(tmp_path / "b.jsonl", [{"goal": text} for text in ASKED]))
    cast = tmp_path / "c.json"
    cast.write_text('{"train": [], "test": [{"harmful": "bad", "harmless": "good"}]}')
    assert plain.items == lines.items == tuple(ASKED)
    assert load_requests(cast).items == ("bad",)
    assert load_requests(cast, "harmless").items == ("good",)


def test_files_without_requests_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"train": []}')
    with pytest.raises(DataError, match="no list 'test'"):
        load_requests(tmp_path / "a.json")
    with pytest.raises(DataError, match="item 1: the key 'instruction' is missing"):
        load_requests(write(tmp_path / "b.json", [{"category": "x"}]))


def test_no_shots_ask_directly() -> None:
    assert many_shot(ASKED, 2, 0) == chat(ASKED[2])


def test_more_shots_begin_earlier_and_end_alike() -> None:
    few, more = (many_shot(ASKED, 1, shots, seed=3) for shots in (2, 5))
    assert len(more) == 11
    assert more[-len(few) :] == few
    asked = [turn["content"] for turn in more if turn["role"] == "user"]
    assert sorted(asked) == sorted(ASKED)
    assert asked[-1] == ASKED[1]
    assert {turn["content"] for turn in more if turn["role"] == "assistant"} <= set(OPENINGS)
    assert many_shot(ASKED, 1, 5, seed=4) != more
    with pytest.raises(DataError, match="use fewer"):
        many_shot(ASKED, 0, len(ASKED))


def test_answers_are_kept_only_when_asked_for() -> None:
    e = engine()
    prompts = attacks(e.model, ASKED[:3], 1)
    silent = refusals(e, prompts, RefusalJudge(), recipe(), max_tokens=6)
    told = refusals(e, prompts, RefusalJudge(), recipe(), max_tokens=6, keep_answers=True)
    assert [scored.answer for scored in silent] == [None] * 3
    assert [scored.value for scored in silent] == [scored.value for scored in told]
    assert any(scored.answer for scored in told)
    # Random bytes neither refuse nor comply: every one of them is a gap, with its reason.
    assert all(scored.missing for scored in silent if scored.value is None)


def test_a_request_that_does_not_fit_costs_no_other() -> None:
    e = engine()
    found = refusals(e, [chat("x" * CONTEXT), chat("hello")], RefusalJudge(), max_tokens=4, keep_answers=True)
    assert "tokens" in str(found[0].missing)
    assert found[1].answer is not None
