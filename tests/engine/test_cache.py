"""The slab keeps every row's keys and values in their columns while rows grow, move and change hands."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

from steersman.engine.cache import KVCache

LAYERS, HEADS, DIM = 2, 2, 4


def states(seed: int, rows: int, columns: int) -> Tensor:
    return torch.randn(rows, HEADS, columns, DIM, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def write(
    cache: KVCache, seed: int, rows: int, start: int, stop: int, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """One pass in which all rows write columns `start` to `stop`; what layer 1 attends to."""
    cache.aim(torch.arange(start, stop).expand(rows, -1), length or stop, start)
    for layer in range(LAYERS):
        keys, values = cache.update(
            states(seed + layer, rows, stop - start), states(seed + layer, rows, stop - start) + 1, layer
        )
    return keys.clone(), values.clone()


@torch.inference_mode()
def step(cache: KVCache, seed: int, positions: list[int], length: int | None = None) -> tuple[Tensor, Tensor]:
    """One pass in which each row writes a column of its own."""
    cache.aim(torch.tensor([[position] for position in positions]), length or max(positions) + 1, None)
    for layer in range(LAYERS):
        keys, values = cache.update(
            states(seed + layer, len(positions), 1), states(seed + layer, len(positions), 1) + 1, layer
        )
    return keys.clone(), values.clone()


def test_a_pass_attends_to_all_columns_written_so_far() -> None:
    cache = KVCache(LAYERS)
    write(cache, 0, 3, 0, 8)
    keys, values = write(cache, 10, 3, 8, 12)
    assert torch.equal(keys, torch.cat([states(1, 3, 8), states(11, 3, 4)], dim=2))
    assert torch.equal(values, keys + 1)
    assert cache.get_seq_length() == 12


def test_columns_that_nobody_wrote_hold_no_garbage() -> None:
    keys, values = write(KVCache(LAYERS), 0, 2, 0, 4, length=64)
    assert keys.shape[2] == 64
    assert not keys[:, :, 4:].any()
    assert not values[:, :, 4:].any()


def test_rows_of_different_lengths_write_their_own_columns() -> None:
    cache = KVCache(LAYERS)
    write(cache, 0, 3, 0, 8)
    keys, _ = step(cache, 20, [8, 3, 5], length=9)
    expected = torch.cat([states(1, 3, 8), torch.zeros(3, HEADS, 1, DIM)], dim=2)
    for row, column in enumerate([8, 3, 5]):
        expected[row, :, column] = states(21, 3, 1)[row, :, 0]
    assert torch.equal(keys, expected)


def test_growing_loses_nothing() -> None:
    cache = KVCache(LAYERS)
    write(cache, 0, 2, 0, 100)
    keys, _ = write(cache, 10, 2, 100, 700)
    assert torch.equal(keys, torch.cat([states(1, 2, 100), states(11, 2, 600)], dim=2))


def test_a_row_moves_into_another_slab_and_within_it() -> None:
    prefill, slab = KVCache(LAYERS), KVCache(LAYERS)
    write(prefill, 0, 2, 0, 8)
    for row in range(3):
        slab.copy_row(prefill, row % 2, row, 8 - row)
    slab.move_row(2, 0, 6)
    keys, values = step(slab, 50, [6, 7])
    source = states(1, 2, 8)
    assert torch.equal(keys[0, :, :6], source[0, :, :6])
    assert torch.equal(keys[1, :, :7], source[1, :, :7])
    assert torch.equal(values[:, :, :6], keys[:, :, :6] + 1)


@pytest.mark.parametrize("grown", [False, True])
def test_rows_change_hands_outside_of_a_pass(grown: bool) -> None:
    # A slab that grew within a pass holds inference tensors, which torch guards against writing from outside.
    prefill, slab = KVCache(LAYERS), KVCache(LAYERS)
    write(prefill, 0, 2, 0, 8)
    slab.copy_row(prefill, 0, 0, 8)
    slab.copy_row(prefill, 1, 1, 8)
    step(slab, 30, [300 if grown else 8, 8])
    slab.copy_row(prefill, 1, 2, 8)
    slab.move_row(2, 1, 8)
    keys, _ = step(slab, 40, [9, 8, 8])
    assert torch.equal(keys[1, :, :8], states(1, 2, 8)[1])


@pytest.mark.parametrize("way", ["copied", "moved"])
def test_a_row_holds_nothing_of_the_request_that_had_it_before(way: str) -> None:
    # Masked columns count for nothing only as long as they are finite.
    prefill, slab = KVCache(LAYERS), KVCache(LAYERS)
    write(prefill, 0, 2, 0, 8)
    for row in range(2):
        slab.copy_row(prefill, 0, row, 8)
    for _, values in [step(slab, 30, [place, place]) for place in range(8, 12)]:
        assert values.isfinite().all()
    with torch.inference_mode():
        slab.aim(torch.tensor([[12], [12]]), 13, None)
        for layer in range(LAYERS):
            slab.update(torch.full((2, HEADS, 1, DIM), torch.nan), torch.full((2, HEADS, 1, DIM), torch.inf), layer)
    if way == "copied":
        slab.copy_row(prefill, 1, 0, 4)
    else:
        slab.copy_row(prefill, 1, 2, 4)
        slab.move_row(2, 0, 4)
    keys, values = step(slab, 60, [4], length=16)
    assert keys.isfinite().all()
    assert values.isfinite().all()
    assert torch.equal(keys[0, :, :4], states(1, 2, 8)[1, :, :4])


def test_rows_that_read_several_columns_write_those_of_their_own() -> None:
    cache = KVCache(LAYERS)
    write(cache, 0, 3, 0, 8)
    starts = [8, 3, 5]
    with torch.inference_mode():
        cache.aim(torch.tensor(starts)[:, None] + torch.arange(4), 12, None)
        keys, values = cache.update(states(20, 3, 4), states(20, 3, 4) + 1, 0)
    expected = torch.cat([states(0, 3, 8), torch.zeros(3, HEADS, 4, DIM)], dim=2)
    for row, start in enumerate(starts):
        expected[row, :, start : start + 4] = states(20, 3, 4)[row]
    assert torch.equal(keys, expected)
    assert torch.equal(values[1, :, 3:7], keys[1, :, 3:7] + 1)


def test_rows_of_a_slab_are_handed_on_up_to_their_length() -> None:
    source, slab = KVCache(LAYERS), KVCache(LAYERS)
    keys, values = write(source, 0, 2, 0, 8)
    with torch.inference_mode():
        source.layers[1].values[0, :, 5:] = torch.nan
    slab.take_rows(source, [0, 1, 0, 0], [5, 8, 5, 4])
    taken, beside = step(slab, 50, [8, 8, 5, 4], length=16)
    for row, (origin, length) in enumerate([(0, 5), (1, 8), (0, 5), (0, 4)]):
        assert torch.equal(taken[row, :, :length], keys[origin, :, :length])
        assert torch.equal(beside[row, :, :length], values[origin, :, :length])
        assert not beside[row, :, 9:].any()


def test_a_slab_nobody_holds_is_gone_at_once() -> None:
    gc.disable()
    try:
        cache = KVCache(LAYERS)
        write(cache, 0, 3, 0, 4)
        keys = weakref.ref(cache.layers[0].keys)
        del cache
        assert keys() is None  # The collector sees a few small objects, not their gigabytes, and comes late.
    finally:
        gc.enable()


def test_rows_are_spread_one_after_the_other() -> None:
    cache = KVCache(LAYERS)
    keys, values = write(cache, 0, 2, 0, 3)
    cache.spread(2)
    after, _ = step(cache, 9, [3, 3, 3, 3])
    assert torch.equal(after[:, :, :3], keys.repeat_interleave(2, 0))
    assert torch.equal(cache.layers[1].values[:4, :, :3], values.repeat_interleave(2, 0))
