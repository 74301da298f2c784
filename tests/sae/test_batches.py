"""Batches are random over shards, the same for the same seed, and the same from any step on."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import pytest
import torch

from steersman.errors import DataError
from steersman.models.language_model import ModelRef
from steersman.sae.batches import ShuffledBatches
from steersman.sae.shards import ActivationStore, StoreIndex


def _store(folder: Path, sizes: tuple[int, ...], *, start: int = 0, layer: int = 1) -> ActivationStore:
    """Rows that hold their own number, so that each can be told from the others."""
    index = StoreIndex(
        model=ModelRef(id="m", config_hash="c", weights_hash="w"), layer=layer, d_model=2, context_tokens=8, shard_tokens=100,
        batch_tokens=8, side="train", held_out=0.0, mix={"everything": 1.0}, seed=0, corpus_sha256="s",
    )  # fmt: skip
    store = ActivationStore(folder, index)
    for size in sizes:
        numbers = torch.arange(start, start + size)
        rows = torch.stack([numbers, -numbers], 1).half()
        store = store.appended({"activations": rows, "tokens": numbers.int(), "pieces": numbers.int() * 0}, pieces=1)
        start += size
    return store


def _numbers(batches: list[torch.Tensor]) -> list[list[int]]:
    return [batch[:, 0].int().tolist() for batch in batches]


def test_an_epoch_deals_out_every_row_once(tmp_path: Path) -> None:
    batches = ShuffledBatches((_store(tmp_path / "a", (100, 60, 40)),), batch_tokens=20, window_tokens=1000)
    dealt = _numbers(list(islice(batches.read(), 20)))
    assert sorted(chain(*dealt[:10])) == list(range(200))
    assert sorted(chain(*dealt[10:])) == list(range(200))
    assert dealt[:10] != dealt[10:]
    assert all(len({number // 100 for number in batch}) == 2 for batch in dealt)  # Drawn over shards.


def test_windows_bound_what_is_held_and_lose_less_than_a_batch_each(tmp_path: Path) -> None:
    batches = ShuffledBatches((_store(tmp_path / "a", (50,) * 9),), batch_tokens=32, window_tokens=100)
    dealt = _numbers(list(islice(batches.read(), 4 * 3 + 1)))
    assert all(len({number // 50 for number in batch}) <= 2 for batch in dealt)
    numbers = list(chain(*dealt))
    assert len(set(numbers)) == len(numbers) == 13 * 32


def test_the_seed_decides_and_any_step_can_be_the_first(tmp_path: Path) -> None:
    store = _store(tmp_path / "a", (70, 50, 30, 90))
    batches = ShuffledBatches((store,), batch_tokens=16, seed=4, window_tokens=100)
    dealt = _numbers(list(islice(batches.read(), 40)))
    assert dealt != _numbers(list(islice(replace(batches, seed=5).read(), 40)))
    for first in (0, 1, 7, 13, 20, 31):
        assert _numbers(list(islice(batches.read(first), 5))) == dealt[first : first + 5]


def test_stores_are_mixed(tmp_path: Path) -> None:
    stores = (_store(tmp_path / "a", (40, 40)), _store(tmp_path / "b", (40,), start=1000))
    batches = ShuffledBatches(stores, batch_tokens=40, window_tokens=1000)
    dealt = chain(*_numbers(list(islice(batches.read(), 3))))
    assert sorted(dealt) == [*range(80), *range(1000, 1040)]
    assert batches.d_model == 2


def test_what_cannot_be_dealt_out_is_refused(tmp_path: Path) -> None:
    store = _store(tmp_path / "a", (10,))
    for batches, said in [
        (lambda: ShuffledBatches((store,), batch_tokens=11, window_tokens=20), "too few activations"),
        (lambda: ShuffledBatches((store,), batch_tokens=8, window_tokens=4), "do not fit a window"),
        (
            lambda: ShuffledBatches((store, _store(tmp_path / "b", (10,), layer=2)), batch_tokens=8),
            "one model and layer",
        ),
        (lambda: ShuffledBatches((), batch_tokens=8), "need activations"),
    ]:
        with pytest.raises(DataError, match=said):
            batches()
