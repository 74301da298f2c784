"""Prompts from files, in parts that share none, and read at the tokens that are meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_model

from steersman.errors import DataError
from steersman.models.language_model import LanguageModel, chat
from steersman.models.residuals import read_residuals
from steersman.steering.methods.prompt_sets import (
    at_positions,
    behind_the_prompt,
    load_prompts,
    split,
    steered,
    tokens_of,
    turn_end,
)

ONE = [f"trigger number {n}" for n in range(12)]
OTHER = [f"other, rather longer, number {n}" for n in range(20)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "first\n\n  second \n"),
        ("a.json", json.dumps(["first", {"instruction": "second", "category": "x"}])),
        ("a.jsonl", '{"prompt": "first"}\n"second"\n'),
    ],
)
def test_files_of_every_form_hold_the_same_prompts(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert load_prompts(tmp_path / name) == ["first", "second"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"\n \n", "holds no prompts"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.json", b'{"train": []}', "no list of prompts"),
        ("a.json", b"[1]", "prompt 1: no text"),
        ("a.jsonl", b'{"prompt": "x"}\n{"promt": "y"}', "prompt 2: no text"),
        ("a.jsonl", b"{", "no valid JSON"),
        ("a.json", b"[]", "holds no prompts"),
    ],
)
def test_files_that_hold_none_are_refused(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        load_prompts(tmp_path / name)
    with pytest.raises(DataError, match="cannot read prompts"):
        load_prompts(tmp_path / "missing.txt")


def test_parts_share_nothing_and_leave_nothing_out() -> None:
    parts = split([*ONE, ONE[0]], OTHER, seed=3)
    three = (parts.train, parts.validation, parts.test)
    assert sorted(prompt for part in three for prompt in part.trigger) == sorted(ONE)
    assert sorted(prompt for part in three for prompt in part.other) == sorted(OTHER)
    assert [len(part.trigger) for part in three] == [6, 3, 3]
    assert parts.duplicates_dropped == 1
    assert parts == split([*ONE, ONE[0]], OTHER, seed=3)
    assert parts.train != split(ONE, OTHER, seed=4).train
    assert three[0].truth == [True] * 6 + [False] * 10


def test_prompts_that_cannot_be_split_are_refused() -> None:
    with pytest.raises(DataError, match=r"1 prompts stand in both sets"):
        split(ONE, [*OTHER, ONE[2]], seed=0)
    with pytest.raises(DataError, match=r"5 different prompts that should trigger; give at least 8"):
        split(ONE[:5], OTHER, seed=0)
    with pytest.raises(DataError, match="a prompt is empty"):
        split([*ONE, " "], OTHER, seed=0)


def test_what_stands_behind_a_prompt_is_what_the_template_writes(tiny: LanguageModel) -> None:
    behind = behind_the_prompt(tiny)
    assert tiny.decode(behind) == "\n[assistant]"
    for prompt in ("Hello", "Why 1?"):
        assert tuple(tiny.encode(chat(prompt))[-len(behind) :]) == behind
    assert tiny.decode(turn_end(tiny)) == "]"


def test_a_model_without_turns_reads_plain_text() -> None:
    model = tiny_model("gpt2")
    model.tokenizer.chat_template = None
    assert behind_the_prompt(model) == turn_end(model) == ()
    assert tokens_of(model, ["ab"]) == [tuple(model.encode("ab"))]


def test_positions_count_from_the_end(tiny: LanguageModel) -> None:
    tokens = tokens_of(tiny, ["a", "a longer prompt"])
    found = at_positions(tiny, tokens, [2], [-1, -3])
    alone = [read_residuals(tiny, [ids], [2])[0][2] for ids in tokens]
    for position in (-1, -3):
        expected = torch.stack([rows[position] for rows in alone])
        torch.testing.assert_close(found[2, position], expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(DataError, match="position -400 does not exist"):
        at_positions(tiny, tokens, [2], [-400])
    with pytest.raises(DataError, match="position 0 does not exist"):
        at_positions(tiny, tokens, [2], [0])


def test_prompts_run_as_the_model_runs_them(tiny: LanguageModel) -> None:
    tokens = tokens_of(tiny, ["a", "a longer prompt", "x" * 200] * 9)
    seen: dict[int, torch.Tensor] = {}

    def see(rows: object, output: object) -> None:
        for place, row in enumerate(rows):  # type: ignore[var-annotated,arg-type]
            seen[row] = output.logits[place, len(tokens[row]) - 1]  # type: ignore[attr-defined]

    steered(tiny, [1.0] * 4, None, tokens, see)
    assert set(seen) == set(range(len(tokens)))
    for row in (0, 1, 2, 26):
        alone = tiny.hf(input_ids=torch.tensor([tokens[row]])).logits[0, -1]
        torch.testing.assert_close(seen[row], alone, rtol=1e-3, atol=1e-3)
