"""The mix keeps its shares, the shuffle its seed, and the held-out part its distance; sequences keep their beginnings."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_model, tiny_tokenizer

from steersman.errors import DataError
from steersman.models.language_model import LanguageModel
from steersman.sae import corpus as module
from steersman.sae.corpus import Corpus, open_corpus, pack
from steersman.sae.texts import Row


def _file(path: Path, kind: str, n: int, size: int = 40) -> Path:
    rows = [{"text": f"{kind} {number} ".ljust(size + number % 7, "x"), "kind": kind} for number in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _texts(rows: Iterator[Row]) -> list[str]:
    return [str(row.content) for row in rows]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [_file(tmp_path / "web.jsonl", "web", 800), _file(tmp_path / "chat.jsonl", "chat", 400, size=90)]


def test_every_row_comes_once_shuffled_and_the_same_each_time(files: list[Path]) -> None:
    corpus = open_corpus(files, seed=3, held_out=0.0)
    texts = _texts(corpus.rows())
    assert len(texts) == len(set(texts)) == 1200
    assert texts == _texts(open_corpus(files, seed=3, held_out=0.0).rows())
    other = _texts(open_corpus(files, seed=4, held_out=0.0).rows())
    assert texts != other
    assert sorted(texts) == sorted(other)
    # Well mixed: both kinds and late rows stand near the beginning.
    kinds = Counter(text.split()[0] for text in texts[:300])
    assert 60 < kinds["chat"] < 140
    assert max(int(text.split()[1]) for text in texts[:300] if text.startswith("web")) > 600


def test_a_shuffle_in_many_buckets_is_the_shuffle_in_one(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = open_corpus(files)
    whole = _texts(corpus.rows())
    monkeypatch.setattr(module, "_BUCKET_CHARS", 5_000)
    assert _texts(corpus.rows()) == whole


@pytest.mark.parametrize("names", [("web", "chat"), ("web.jsonl", "ch*.jsonl"), ("*/web.jsonl", "chat")])
def test_the_mix_holds_at_every_point(files: list[Path], names: tuple[str, str]) -> None:
    corpus = open_corpus(files, mix={names[0]: 1.0, names[1]: 3.0}, held_out=0.0)
    drawn: Counter[str] = Counter()
    for row in islice(corpus.rows(), 300):
        drawn[row.kind] += row.n_chars
        assert abs(drawn["chat"] - 3 * drawn["web"]) <= 3 * 200
    # The smaller part runs out; the rest still comes.
    assert len(list(corpus.rows())) == 1200


def test_the_held_out_part_is_never_in_training_whatever_the_seed_and_the_copies(tmp_path: Path) -> None:
    one = _file(tmp_path / "one.jsonl", "web", 2000)
    two = tmp_path / "two.jsonl"
    two.write_text("".join(reversed(one.read_text().splitlines(keepends=True))))
    kept, held = (
        {seed: set(_texts(open_corpus([one, two], seed=seed, held_out=0.1).rows(held_out=side))) for seed in (0, 1)}
        for side in (False, True)
    )
    assert held[0] == held[1]
    assert kept[0] == kept[1]
    assert not kept[0] & held[0]
    assert len(kept[0] | held[0]) == 2000
    assert 140 < len(held[0]) < 260


def test_rows_outside_the_mix_are_left_out(files: list[Path]) -> None:
    corpus = open_corpus(files, mix={"chat": 1.0}, held_out=0.0)
    assert {row.kind for row in corpus.rows()} == {"chat"}
    assert [(group.name, group.n_rows, len(group.files)) for group in corpus.groups] == [("chat", 400, 1)]


def test_the_contents_are_in_the_hash(files: list[Path]) -> None:
    before = open_corpus(files).sha256
    assert open_corpus(files, seed=7).sha256 == before
    files[0].write_text(files[0].read_text().replace("web 7 ", "web 8 "))
    assert open_corpus(files).sha256 != before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"mix": {"chta": 1.0}}, "did you mean 'chat'"),
        ({"mix": {"poems": 1.0}}, r"no text for 'poems' \(kinds and sources: web, chat\)"),
        ({"mix": {"web": 0.0}}, "above 0"),
        ({"mix": {"web": float("nan")}}, "above 0"),
        ({"mix": {}}, "empty"),
        ({"mix": {"web": 1.0, "*.jsonl": 1.0}}, "line 1 fits 'web' and"),
        ({"held_out": 1.0}, "held-out share"),
    ],
)
def test_a_bad_mix_is_refused(files: list[Path], arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        open_corpus(files, **arguments)
    with pytest.raises(DataError, match="no texts"):
        open_corpus([])


# --- sequences


def _chats(tmp_path: Path, n: int, **extra: str) -> Corpus:
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"Answer {n}."}], **extra}
        for n in range(n)
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_corpus([path], held_out=0.0)


def test_long_texts_are_cut_and_short_ones_never_joined(tmp_path: Path, tiny: LanguageModel) -> None:
    path = tmp_path / "a.jsonl"
    texts = ["abcdefghij" * 3, "short", "z", "0123456789"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    pieces = list(pack(tiny, open_corpus([path], held_out=0.0).rows(), context_tokens=10))
    found = sorted(tiny.decode(piece.ids) for piece in pieces)
    assert found == sorted(["abcdefghij"] * 3 + ["short", "0123456789"])  # One token alone leaves nothing to read.
    assert {piece.skip for piece in pieces} == {1}


def test_a_begin_token_stands_before_every_piece_where_the_tokenizer_writes_one(
    tmp_path: Path, tiny: LanguageModel
) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    model = LanguageModel(tiny.hf, tokenizer, "begins")
    path = tmp_path / "a.txt"
    path.write_text("abcdefgh")
    pieces = list(pack(model, open_corpus([path], held_out=0.0).rows(), context_tokens=4))
    assert [model.decode(piece.ids) for piece in pieces] == ["abc", "def", "gh"]
    assert {piece.ids[0] for piece in pieces} == {1}


def test_chats_go_through_the_template_and_its_opening_is_read_rarely(tmp_path: Path, tiny: LanguageModel) -> None:
    pieces = list(pack(tiny, _chats(tmp_path, 400).rows()))
    assert len(pieces) == 400
    texts = {tiny.decode(piece.ids) for piece in pieces}
    assert "[user]7?\n[assistant]Answer 7.\n" in texts
    opening = len(tiny.tokenizer("<s>[user]", add_special_tokens=False)["input_ids"])
    skips = Counter(piece.skip for piece in pieces)
    assert set(skips) == {1, opening}
    assert 8 <= skips[1] <= 50  # One in sixteen.


def test_a_chat_that_the_template_refuses_is_left_out_and_logged(
    tmp_path: Path, tiny: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "[{{", "{% if '3' in m['content'] %}{{ raise_exception('no threes') }}{% endif %}[{{"
    )
    model = LanguageModel(tiny.hf, tokenizer, "fussy")
    assert len(list(pack(model, _chats(tmp_path, 10).rows()))) == 9
    assert "line 4 is left out: the chat template of fussy refuses this chat: no threes" in caplog.text


def test_sequences_that_no_model_can_read_are_refused(tmp_path: Path, tiny: LanguageModel) -> None:
    corpus = _chats(tmp_path, 3)
    for context_tokens in (1, tiny.context_tokens + 1):
        with pytest.raises(DataError, match="context_tokens must lie between 2 and the 512"):
            list(pack(tiny, corpus.rows(), context_tokens=context_tokens))
    plain = tiny_model("gpt2")
    plain.tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"chats.jsonl, line \d: tiny-gpt2 has no chat template"):
        list(pack(plain, corpus.rows()))
