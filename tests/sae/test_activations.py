"""Collection keeps what the model computes, survives interrupts and full disks, and ends with the same shards."""

from __future__ import annotations

import json
import logging
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_model

from steersman.errors import DataError, ModelError, StorageError
from steersman.models.language_model import LanguageModel
from steersman.models.residuals import read_residuals
from steersman.sae.activations import CollectProgress, CollectSettings, collect
from steersman.sae.corpus import Corpus, open_corpus, pack
from steersman.sae.shards import INDEX, ActivationStore

_SETTINGS = CollectSettings(layer=2, tokens=3_000, context_tokens=32, shard_tokens=1_000, batch_tokens=256)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    path = tmp_path / "texts.jsonl"
    rows = [
        {"text": f"{number} " + "some words that differ ".ljust(20 + number % 50, str(number % 10))}
        for number in range(150)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_corpus([path], seed=5, held_out=0.2)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_rows_are_the_residuals_of_their_tokens(tmp_path: Path, tiny: LanguageModel, corpus: Corpus) -> None:
    store = collect(tiny, corpus, tmp_path / "a", _SETTINGS)
    assert 3_000 <= store.tokens < 3_032
    assert [1_000 <= shard.tokens < 1_032 for shard in store.index.shards] == [True, True, False]
    pieces = pack(tiny, corpus.rows(), context_tokens=32)
    norms = []
    for number, shard in enumerate(store.index.shards):
        rows, (ids, owners) = store.read(number), store.read_tokens(number)
        assert rows.dtype == torch.float16
        for owner in range(shard.pieces):
            piece = next(pieces)
            mine = owners == owner
            assert ids[mine].tolist() == list(piece.ids[piece.skip :])
            expected = read_residuals(tiny, [piece.ids], [2])[0][2][piece.skip - 1 :]
            torch.testing.assert_close(rows[mine].float(), expected, atol=2e-3, rtol=2e-3)
        norms.append(rows.float().norm(dim=-1))
    assert store.mean_norm == pytest.approx(float(torch.cat(norms).mean()), rel=1e-4)
    assert ActivationStore.open(tmp_path / "a").index == store.index


def test_held_out_texts_are_others(tmp_path: Path, tiny: LanguageModel, corpus: Corpus) -> None:
    store = collect(tiny, corpus, tmp_path / "a", replace(_SETTINGS, tokens=200), held_out=True)
    ids, owners = store.read_tokens(0)
    text = tiny.decode(ids[owners == 0].tolist())
    assert any(str(row.content).startswith(text, 1) for row in corpus.rows(held_out=True))
    assert not any(str(row.content).startswith(text, 1) for row in corpus.rows())
    with pytest.raises(DataError, match="another side"):
        collect(tiny, corpus, tmp_path / "a", replace(_SETTINGS, tokens=200))


def _interrupt_at(tokens: int, error: type[BaseException] = KeyboardInterrupt) -> Callable[[CollectProgress], None]:
    def progress(now: CollectProgress) -> None:
        if now.tokens >= tokens:
            raise error

    return progress


def test_an_interrupted_collection_ends_with_the_same_shards(
    tmp_path: Path, tiny: LanguageModel, corpus: Corpus
) -> None:
    collect(tiny, corpus, tmp_path / "whole", _SETTINGS)
    for tokens in (100, 1_500, 2_900):
        with pytest.raises(KeyboardInterrupt):
            collect(tiny, corpus, tmp_path / "parts", _SETTINGS, progress=_interrupt_at(tokens))
    seen: list[CollectProgress] = []
    collect(tiny, corpus, tmp_path / "parts", _SETTINGS, progress=seen.append)
    assert _contents(tmp_path / "parts") == _contents(tmp_path / "whole")
    assert seen[0].tokens > 2_000
    assert seen[-1].tokens >= seen[-1].total_tokens == 3_000


def test_a_finished_collection_does_nothing_and_a_larger_one_adds_shards(
    tmp_path: Path, tiny: LanguageModel, corpus: Corpus
) -> None:
    store = collect(tiny, corpus, tmp_path / "a", replace(_SETTINGS, tokens=1_000))
    before = _contents(tmp_path / "a")
    assert collect(tiny, corpus, tmp_path / "a", replace(_SETTINGS, tokens=500)) == store
    assert _contents(tmp_path / "a") == before
    more = collect(tiny, corpus, tmp_path / "a", replace(_SETTINGS, tokens=2_000))
    assert len(more.index.shards) == 2
    assert _contents(tmp_path / "a")["shard-00000.safetensors"] == before["shard-00000.safetensors"]


def test_texts_that_end_early_are_no_failure(
    tmp_path: Path, tiny: LanguageModel, corpus: Corpus, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        store = collect(tiny, corpus, tmp_path / "a", replace(_SETTINGS, tokens=10**6, shard_tokens=2_000))
    assert "the texts ended after" in caplog.text
    assert store.tokens == sum(len(piece.ids) - piece.skip for piece in pack(tiny, corpus.rows(), context_tokens=32))


@pytest.mark.parametrize(
    ("change", "said"),
    [({"layer": 1}, "layer"), ({"context_tokens": 16}, "context tokens"), ({"shard_tokens": 999}, "shard tokens")],
)
def test_a_folder_of_something_else_is_refused(
    tmp_path: Path, tiny: LanguageModel, corpus: Corpus, change: dict[str, int], said: str
) -> None:
    collect(tiny, corpus, tmp_path / "a", replace(_SETTINGS, tokens=100))
    before = _contents(tmp_path / "a")
    with pytest.raises(DataError, match=f"activations of another {said}"):
        collect(tiny, corpus, tmp_path / "a", replace(_SETTINGS, tokens=100, **change))
    with pytest.raises(DataError, match="activations of another model"):
        collect(tiny_model(seed=1), corpus, tmp_path / "a", _SETTINGS)
    assert _contents(tmp_path / "a") == before


def test_what_does_not_fit_on_the_disk_is_refused_before_it_begins(
    tmp_path: Path, tiny: LanguageModel, corpus: Corpus
) -> None:
    with pytest.raises(StorageError, match="free some space"):
        collect(tiny, corpus, tmp_path / "new" / "a", replace(_SETTINGS, tokens=10**14))
    assert not (tmp_path / "new").exists()


def test_a_disk_that_fills_up_loses_nothing(tmp_path: Path, tiny: LanguageModel, corpus: Corpus) -> None:
    collect(tiny, corpus, tmp_path / "whole", _SETTINGS)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(now: CollectProgress) -> None:
        if now.tokens > 1_100:  # The first shard is whole, the second is not.
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

    try:
        with pytest.raises(StorageError, match="cannot write"):
            collect(tiny, corpus, tmp_path / "parts", _SETTINGS, progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(_contents(tmp_path / "parts")) == [INDEX, "shard-00000.safetensors"]
    collect(tiny, corpus, tmp_path / "parts", _SETTINGS)
    assert _contents(tmp_path / "parts") == _contents(tmp_path / "whole")


def test_residuals_that_float16_cannot_hold_are_clamped_and_broken_ones_refused(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(seed=3)
    with torch.no_grad():
        model.hf.get_input_embeddings().weight.mul_(1e7)
    store = collect(model, corpus, tmp_path / "large", replace(_SETTINGS, layer=0, tokens=100))
    assert store.read(0).abs().max() == 65504
    with torch.no_grad():
        model.hf.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        collect(model, corpus, tmp_path / "broken", replace(_SETTINGS, layer=0, tokens=100))


def test_bad_settings_are_refused(tmp_path: Path, tiny: LanguageModel, corpus: Corpus) -> None:
    with pytest.raises(ModelError, match="layer 4 does not exist"):
        collect(tiny, corpus, tmp_path / "a", replace(_SETTINGS, layer=4))
    with pytest.raises(DataError, match="tokens must be 1 or more"):
        CollectSettings(layer=0, tokens=0)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / INDEX).unlink(), "holds no activations"),
        (lambda folder: (folder / INDEX).write_text("{"), "is damaged"),
        (
            lambda folder: (folder / INDEX).write_text((folder / INDEX).read_text().replace('"seed"', '"sed"')),
            r"is damaged \(seed",
        ),
        (lambda folder: (folder / "shard-00000.safetensors").unlink(), "cannot read activations"),
        (lambda folder: (folder / "shard-00000.safetensors").write_bytes(b"no"), "cannot read activations"),
        (
            lambda folder: (folder / "shard-00001.safetensors").rename(folder / "shard-00000.safetensors"),
            "not the shard",
        ),
    ],
)
def test_a_damaged_folder_is_named(
    tmp_path: Path, tiny: LanguageModel, corpus: Corpus, damage: Callable[[Path], Any], said: str
) -> None:
    collect(tiny, corpus, tmp_path / "a", replace(_SETTINGS, tokens=1_500))
    damage(tmp_path / "a")
    with pytest.raises(DataError, match=said):
        ActivationStore.open(tmp_path / "a").read(0)
