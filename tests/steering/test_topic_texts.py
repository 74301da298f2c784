"""Texts of a topic from files, and scores to a file in the published form."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from steersman.errors import DataError
from steersman.models.language_model import LanguageModel
from steersman.steering.methods.topic_texts import load_texts, pieces_of, save_scores


def test_the_same_texts_from_every_form_of_file(tmp_path: Path) -> None:
    forms = {
        "a.txt": "one, two\n\n  three four \n",
        "a.csv": ',0\n0,"one, two"\n1,\n2,three four\n',
        "a.jsonl": '{"text": "one, two"}\n{"text": " "}\n{"text": "three four"}\n',
    }
    for name, content in forms.items():
        (tmp_path / name).write_text(content)
        assert load_texts(tmp_path / name) == ["one, two", "three four"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n \n", "holds no text"),
        ("a.csv", b",0\n", "holds no text"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.csv", b',0\n0,"never ends', "no CSV table"),
        ("a.jsonl", b'{"messages": [{"role": "user", "content": "hi"}]}', "line 1: a chat"),
        ("a.jsonl", b'{"txt": "hi"}', "line 1: a row needs"),
        ("a.pdf", b"x", "no known format"),
    ],
)
def test_files_that_hold_no_texts_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_texts(tmp_path / name)


def test_a_file_of_texts_that_is_missing_is_named(tmp_path: Path) -> None:
    for name in ("gone.txt", "gone.csv", "gone.jsonl"):
        with pytest.raises(DataError, match=f"{name}: No such file"):
            load_texts(tmp_path / name)


def test_pieces_hold_every_token_once(tiny: LanguageModel) -> None:
    text = "A ship, a sea, a sailor; and then another ship. " * 3
    pieces = pieces_of(tiny, [text, "short", "short"], "some", 20)
    cut = [piece for piece in pieces if piece.text_number == 0]
    ids = tiny.tokenizer(text.strip())["input_ids"]
    begin = int(ids[0] == tiny.tokenizer.bos_token_id)
    assert [*ids[:begin], *(token for piece in cut for token in piece.ids[begin:])] == ids
    assert [piece.text for piece in pieces if piece.text_number == 1] == ["short"]


def test_exported_scores_leave_what_never_fired_empty(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    save_scores(path, [1.0, 0.0, 0.25, 0.0], [True, True, True, False], "mine")
    assert path.read_text() == ",mine\n0,1.0\n1,0.0\n2,0.25\n3,\n"


def test_published_scores_have_the_form_of_ours(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "topic_alignment" / "medical_scores.csv"
    (heading, *rows) = list(csv.reader(source.read_text(encoding="utf-8").splitlines()))
    scores = [float(cell) if cell else 0.0 for _, cell in rows]
    fired = [bool(cell) for _, cell in rows]
    # One latent has the best score, one the worst, and those without one never fired.
    assert (scores.count(1.0), min(scores), sum(score == 0 for score in scores) - fired.count(False)) == (1, 0.0, 1)
    save_scores(tmp_path / "again.csv", scores, fired, heading[1])
    assert (tmp_path / "again.csv").read_text().split() == source.read_text(encoding="utf-8").split()
    folder = source.parent
    assert len(load_texts(folder / "d_ref_prompts.csv")) == 150
    assert len(load_texts(folder / "d_align_prompts.csv")) == 20
