"""The best few windows of every feature, kept while blocks of text go by. Knows nothing of what makes a window good."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from steersman.sae.index.facts import NO_TOKEN
from steersman.sae.index.firings import Block, Firings, Ints, Peaks, cut

_FEATURES_AT_ONCE = 8192
_NONE = -np.inf


class Keeper:
    """For every feature the `places` windows of highest priority, best first.

    Of windows that are twins only the best stays. What is kept is exactly what sorting all windows at the end would keep,
    whatever the blocks; of equal priorities the earlier stays. Memory: `8 * width + 32` bytes a place.
    """

    def __init__(self, features: int, places: int, width: int) -> None:
        shape = (features, places)
        self.priority = np.full(shape, _NONE)
        self.tokens = np.full((*shape, width), NO_TOKEN, dtype=np.int32)
        self.activations = np.zeros((*shape, width), dtype=np.float32)
        self.pieces = np.full(shape, -1, dtype=np.int64)
        self.starts = np.zeros(shape, dtype=np.int32)
        self._twins = np.zeros(shape, dtype=np.uint64)

    def offer(
        self, block: Block, firings: Firings, peaks: Peaks, priority: NDArray[np.float64], twins: NDArray[np.uint64]
    ) -> None:
        """Take what is better than what is there.

        Args:
            block: whole pieces.
            firings: its pairs by feature.
            peaks: tokens around which windows may be cut.
            priority: of each peak; finite.
            twins: of each peak; two of a feature with the same number are twins.
        """
        places = self.priority.shape[1]
        better: Ints = np.flatnonzero(priority > self.priority[peaks.features, -1])
        chosen, ranks = _best(better, peaks.features[better], priority[better], twins[better], places)
        features = np.unique(peaks.features[chosen])
        for part in np.split(features, range(_FEATURES_AT_ONCE, len(features), _FEATURES_AT_ONCE)):
            if not len(part):
                continue
            low, high = np.searchsorted(peaks.features[chosen], [part[0], part[-1] + 1])
            offered = np.full((len(part), places), -1, dtype=np.int64)
            rows = np.searchsorted(part, peaks.features[chosen[low:high]])
            offered[rows, ranks[low:high]] = chosen[low:high]
            self._merge(part, offered, (block, firings, peaks), priority, twins)

    def _merge(
        self,
        features: Ints,
        offered: Ints,
        source: tuple[Block, Firings, Peaks],
        priority: NDArray[np.float64],
        twins: NDArray[np.uint64],
    ) -> None:
        """Work the peaks numbered in `offered` (features, places; -1 for none) into what is kept of `features`."""
        places = self.priority.shape[1]
        merged = np.hstack([self.priority[features], np.where(offered < 0, _NONE, priority[offered])])
        names = np.hstack([self._twins[features], twins[offered]])
        order = np.argsort(-merged, axis=1, kind="stable")
        merged, names = (np.take_along_axis(part, order, 1) for part in (merged, names))
        earlier = np.tri(2 * places, k=-1, dtype=bool)
        is_twin = (names[:, :, None] == names[:, None, :]) & earlier & (merged[:, None, :] > _NONE)
        merged[is_twin.any(2)] = _NONE
        again = np.argsort(-merged, axis=1, kind="stable")[:, :places]
        merged, names, order = (np.take_along_axis(part, again, 1) for part in (merged, names, order))

        old = np.minimum(order, places - 1)
        is_new = (order >= places) & (merged > _NONE)
        block, firings, peaks = source
        new = np.take_along_axis(offered, np.maximum(order - places, 0), 1)[is_new]
        windows = cut(block, firings, peaks.features[new], peaks.rows[new], self.tokens.shape[2])
        for kept, fresh, nothing in (
            (self.tokens, windows.tokens, NO_TOKEN),
            (self.activations, windows.activations, 0),
            (self.starts, windows.starts, 0),
            (self.pieces, block.pieces[peaks.rows[new]], -1),
        ):
            at = old[..., None] if kept.ndim == 3 else old
            moved = np.take_along_axis(kept[features], at, 1)
            moved[is_new] = fresh
            moved[merged == _NONE] = nothing
            kept[features] = moved
        self.priority[features], self._twins[features] = merged, names


def _best(
    chosen: Ints, features: Ints, priority: NDArray[np.float64], twins: NDArray[np.uint64], places: int
) -> tuple[Ints, Ints]:
    """Of the peaks numbered in `chosen`: the best `places` of each feature without twins, by feature, and their ranks."""
    order = np.lexsort((-priority, twins, features))
    is_first = np.ones(len(order), dtype=bool)
    same = (features[order][1:] == features[order][:-1]) & (twins[order][1:] == twins[order][:-1])
    is_first[1:] = ~same
    kept = np.sort(order[is_first])  # Back in the order of the text, which decides between equals.
    kept = kept[np.lexsort((-priority[kept], features[kept]))]
    ranks = np.arange(len(kept)) - np.searchsorted(features[kept], features[kept])
    return chosen[kept[ranks < places]], ranks[ranks < places]
