"""On-policy chats: the right prompts, answers kept whole, an interrupt gone on from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from steersman.errors import DataError
from steersman.models.language_model import LanguageModel, Message
from steersman.sae.corpus import Corpus, open_corpus
from steersman.sae.on_policy import OnPolicySettings, write_chats
from steersman.sae.texts import read_rows


def _corpus(folder: Path, n: int = 10) -> Corpus:
    chats = [
        [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": "theirs"}] for i in range(n)
    ]
    chats += [[{"role": "assistant", "content": "no question"}], [{"role": "user", "content": "long " * 100}], chats[0]]
    rows: list[dict[str, object]] = [{"messages": chat} for chat in chats]
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": "plain"}]))
    return open_corpus([path], held_out=0.0)


def _shout(chats: Sequence[Sequence[Message]]) -> list[str]:
    return [chat[-1]["content"].upper() for chat in chats]


_SETTINGS = OnPolicySettings(tokens=10_000, max_prompt_tokens=50, batch_chats=4)


def test_each_question_is_answered_once(tiny: LanguageModel, tmp_path: Path) -> None:
    done = write_chats(tiny, _corpus(tmp_path), tmp_path / "own.jsonl", _shout, _SETTINGS)
    rows = list(read_rows(tmp_path / "own.jsonl"))
    contents = [row.content for row in rows]
    assert sorted(content[0]["content"] for content in contents) == sorted(f"Question {i}?" for i in range(10))
    assert all(content[1] == {"role": "assistant", "content": content[0]["content"].upper()} for content in contents)
    assert {row.kind for row in rows} == {"on_policy"}
    assert (done.chats, done.tokens) == (10, sum(len(content[1]["content"]) for content in contents))


def test_writing_stops_at_the_tokens_asked_for(tiny: LanguageModel, tmp_path: Path) -> None:
    settings = OnPolicySettings(tokens=50, max_prompt_tokens=50, batch_chats=2)
    done = write_chats(tiny, _corpus(tmp_path), tmp_path / "own.jsonl", _shout, settings)
    assert 50 <= done.tokens < 50 + 2 * len("QUESTION 0?")


def test_an_interrupt_loses_no_row_and_doubles_none(tiny: LanguageModel, tmp_path: Path) -> None:
    corpus, whole, cut = _corpus(tmp_path), tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    write_chats(tiny, corpus, whole, _shout, _SETTINGS)
    asked = 0

    def dies(chats: Sequence[Sequence[Message]]) -> list[str]:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise KeyboardInterrupt
        return _shout(chats)

    with pytest.raises(KeyboardInterrupt):
        write_chats(tiny, corpus, cut, dies, _SETTINGS)
    with cut.open("a") as file:
        file.write('{"kind": "on_pol')
    write_chats(tiny, corpus, cut, _shout, _SETTINGS)
    assert cut.read_bytes() == whole.read_bytes()


def test_texts_without_questions_are_told_so(tiny: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("No chat here.\n")
    with pytest.raises(DataError, match="no chat with a question"):
        write_chats(tiny, open_corpus([tmp_path / "a.txt"]), tmp_path / "own.jsonl", _shout, _SETTINGS)


def test_a_file_of_something_else_is_left_alone(tiny: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("my notes\n")
    with pytest.raises(DataError, match="line 1"):
        write_chats(tiny, _corpus(tmp_path), path, _shout, _SETTINGS)
    assert path.read_text() == "my notes\n"
