"""Reading texts: every known form, and one clear line for everything else."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from steersman.errors import DataError
from steersman.sae.texts import read_rows

_CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy"}]


def _write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_texts_and_chats_are_read_in_order(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "a.jsonl", {"text": "one", "kind": "web", "other": 1}, {"messages": _CHAT}, {"text": "ü\u2028b"}
    )
    rows = list(read_rows(path))
    assert [row.content for row in rows] == ["one", tuple(_CHAT), "ü\u2028b"]
    assert [(row.kind, row.line, row.n_chars) for row in rows] == [("web", 1, 3), ("", 2, 6), ("", 3, 3)]


def test_compressed_files_hold_the_same_rows(tmp_path: Path) -> None:
    plain = _write(tmp_path / "a.jsonl", {"text": "one"}, {"messages": _CHAT})
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert [row.digest for row in read_rows(plain)] == [row.digest for row in read_rows(packed)]


def test_empty_rows_are_left_out(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", {"text": " \n"}, {"messages": []}, {"text": "kept"})
    path.write_text("\n\n" + path.read_text())
    assert [row.content for row in read_rows(path)] == ["kept"]
    nothing = tmp_path / "empty.txt"
    nothing.touch()
    assert list(read_rows(nothing)) == []


def test_plain_text_comes_in_passages_of_whole_paragraphs(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {number}. " + "word " * 100 for number in range(40)]
    path = tmp_path / "book.txt"
    path.write_text("\ufeff" + "\n\n".join(paragraphs), encoding="utf-8")
    texts = [str(row.content) for row in read_rows(path)]
    assert "".join(texts) == "\n\n".join(paragraphs)
    assert all(text.startswith("Paragraph") and 2_000 <= len(text) < 3_000 for text in texts[:-1])
    assert [row.line for row in read_rows(path)][:2] == [1, 1 + 2 * texts[0].count("Paragraph")]


def test_text_without_paragraphs_is_cut_at_a_line(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("a line without end of paragraph\n" * 2_000)
    assert 16_000 <= max(row.n_chars for row in read_rows(path)) < 16_100


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"text": "a"}\n{"text": "caf\xe9"}\n', "line 2: not UTF-8"),
        ('{"text": "a"}\n'.encode("utf-16"), "line 1: not UTF-8"),
        (b'{"text": "a"}\nplain words\n', "line 2: no valid JSON"),
        (b'{"text": "a"}\n["b"]\n', "line 2: not a JSON object"),
        (b'{"txt": "a"}\n', "line 1: a row needs either 'text' or 'messages'"),
        (b'{"text": 3}\n', "line 1: 'text' must be a text"),
        (b'{"messages": "hi"}\n', "line 1: 'messages' must be a list"),
        (b'{"messages": [{"role": "user"}]}\n', "line 1: a message must be"),
        (b'{"text": "half \\ud83d"}\n', "line 1: half a character"),
        (b"[" * 100_000 + b"\n", "line 1: no valid JSON"),
    ],
)
def test_what_cannot_be_read_is_named_by_file_and_line(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(data)
    with pytest.raises(DataError, match=said) as caught:
        list(read_rows(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_absent_and_unknown_files_are_refused(tmp_path: Path) -> None:
    torn = tmp_path / "torn.jsonl.gz"
    torn.write_bytes(gzip.compress(b'{"text": "a"}\n' * 9_999)[:-20])
    fake = tmp_path / "fake.jsonl.gz"
    fake.write_bytes(b"not compressed")
    for path, said in [
        (torn, "damaged after line"),
        (fake, "damaged after line 0"),
        (tmp_path / "none.jsonl", "No such file"),
        (tmp_path / "table.parquet", "no known format"),
    ]:
        with pytest.raises(DataError, match=said):
            list(read_rows(path))
