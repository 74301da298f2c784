"""Which features fire where in a block of texts: by feature, at their strongest in each text, and in windows cut around that.

A block is a run of whole texts ("pieces") with every (token, feature) pair that fires. All arrays are numpy: what is done
here is sorting, reducing over runs and looking up, with no loop over tokens or pairs. Knows nothing of SAEs or files.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steersman.sae.index.facts import NO_TOKEN

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.float32]

CORE = 8
"""Tokens around the strongest one that make two windows near-identical when they are the same."""


class Block(NamedTuple):
    """Whole pieces, and what fires in them, token after token."""

    tokens: Ints
    """(rows,) token ids."""
    first: Ints
    """(rows,) where each row's piece begins."""
    last: Ints
    """(rows,) where it ends, the row behind it."""
    pieces: Ints
    """(rows,) number of the piece among all that are read."""
    rows: Ints
    """(pairs,) the row at which a feature fires; ascending."""
    features: Ints
    """(pairs,)"""
    values: Floats
    """(pairs,) activations, all above 0."""


class Firings(NamedTuple):
    """The pairs of a block sorted by feature, then by row."""

    rows: Ints
    features: Ints
    values: Floats
    keys: Ints
    """`feature * rows of the block + row`, ascending: what is looked up."""


class Peaks(NamedTuple):
    """Each feature at its strongest token (the first of equals) of each piece in which it fires; by feature, then by row."""

    features: Ints
    rows: Ints
    values: Floats


class Windows(NamedTuple):
    """Stretches of pieces with the activations of one feature each."""

    tokens: Ints
    """(windows, width), int32; `NO_TOKEN` behind the end of a short piece."""
    activations: Floats
    """(windows, width); 0 where the feature does not fire."""
    starts: Ints
    """(windows,) how many tokens of the piece come before."""


def by_feature(block: Block, n_features: int) -> Firings:
    """The pairs of a block, sorted by feature; each feature's rows stay ascending."""
    # numpy sorts 16-bit integers by radix, several times faster than wider ones.
    narrow = block.features.astype(np.uint16 if n_features <= 1 << 16 else np.int32)
    order = np.argsort(narrow, kind="stable")
    rows, features = block.rows[order], block.features[order].astype(np.int64)
    return Firings(rows, features, block.values[order], features * len(block.tokens) + rows)


def peaks(block: Block, firings: Firings) -> Peaks:
    """Where each feature is at its strongest in each piece."""
    starts = _run_starts(firings.features, block.first[firings.rows])
    if not len(starts):
        return Peaks(firings.features, firings.rows, firings.values)
    strongest = np.maximum.reduceat(firings.values, starts)
    runs = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(firings.rows)))
    hits = np.flatnonzero(firings.values == strongest[runs])
    hits = hits[_run_starts(runs[hits])]
    return Peaks(firings.features[hits], firings.rows[hits], firings.values[hits])


def placed(block: Block, rows: Ints, width: int) -> tuple[Ints, NDArray[np.bool_]]:
    """Which rows a window of `width` takes: the given row two thirds into it, shifted where it would reach over the piece.

    What comes before says more of why a feature fires than what comes after, which the model has not seen there.

    Returns:
        (windows, width) rows, those outside the piece set to some row inside; and which are inside.
    """
    first, last = block.first[rows], block.last[rows]
    starts = np.maximum(first, np.minimum(rows - 2 * width // 3, last - width))
    taken = starts[:, None] + np.arange(width)
    inside = taken < last[:, None]
    return np.where(inside, taken, starts[:, None]), inside


def cut(block: Block, firings: Firings, features: Ints, rows: Ints, width: int) -> Windows:
    """The window around each of `rows`, with the activations of the feature beside it."""
    taken, inside = placed(block, rows, width)
    tokens = np.where(inside, block.tokens[taken], NO_TOKEN).astype(np.int32)
    wanted = features[:, None] * len(block.tokens) + taken
    found = np.minimum(np.searchsorted(firings.keys, wanted), len(firings.keys) - 1)
    fires = inside & (firings.keys[found] == wanted)
    activations = np.where(fires, firings.values[found], np.float32(0))
    return Windows(tokens, activations, taken[:, 0] - block.first[rows])


def cores(block: Block, rows: Ints, width: int = CORE) -> NDArray[np.uint64]:
    """A 64-bit hash of the tokens around each row: equal tokens, equal hash.

    Two thirds of them come before the row; what lies outside the piece counts as a token of its own.
    """
    hashed = np.zeros(len(rows), dtype=np.uint64)
    before = 2 * width // 3
    for shift in range(-before, width - before):
        there = rows + shift
        inside = (there >= block.first[rows]) & (there < block.last[rows])
        tokens = np.where(inside, block.tokens[np.where(inside, there, 0)], NO_TOKEN)
        hashed = mixed(hashed ^ tokens.astype(np.int64).view(np.uint64))
    return hashed


def mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit integers one by one, each to another one (splitmix64, Steele et al. 2014)."""
    mixing = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixing = (mixing ^ (mixing >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixing = (mixing ^ (mixing >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixing ^ (mixing >> np.uint64(31))


def firing_within(block: Block, rows: Ints, width: int) -> tuple[Ints, Ints, Floats]:
    """Every feature that fires in the window around each of `rows`, once, with its largest activation there.

    Returns:
        Numbers of the windows (places in `rows`, ascending), features, activations.
    """
    taken, inside = placed(block, rows, width)
    bounds = np.searchsorted(block.rows, np.stack([taken[:, 0], taken[:, 0] + inside.sum(1)]))
    counts = bounds[1] - bounds[0]
    windows = np.repeat(np.arange(len(rows)), counts)
    pairs = np.arange(counts.sum()) + np.repeat(bounds[0] - (counts.cumsum() - counts), counts)
    order = np.lexsort((block.features[pairs], windows))
    pairs, windows = pairs[order], windows[order]
    features, values = block.features[pairs], block.values[pairs]
    starts = _run_starts(windows, features)
    return windows[starts], features[starts], np.maximum.reduceat(values, starts) if len(starts) else values


def _run_starts(*columns: Ints) -> Ints:
    """Where a row differs from the one before."""
    changes = np.ones(len(columns[0]), dtype=bool)
    if len(changes):
        changes[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return np.flatnonzero(changes)
