"""Keys and values of many sequences in one slab: row `i` is a sequence, column `p` its token at position `p`.

Rows are aligned on the left, so a token is always computed against the same columns, whatever else is in the batch. The
slab grows with the longest sequence and gives a row back by moving the last one into its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_GROW_TOKENS = 128


@dataclass(slots=True)
class _Slab:
    """What the layers of a cache share: how large they must be, and where the next pass writes.

    An object of its own, so that layers need not know their cache: a cycle would keep whole slabs until the garbage collector,
    which does not see how large they are, comes by.
    """

    capacity_rows: int = 1
    capacity_tokens: int = 0
    used_rows: int = 0
    length: int = 0
    start: int | None = None
    row_index: Tensor | None = None
    columns: Tensor | None = None


class KVCache(Cache):  # type: ignore[misc]
    """A slab that grows with its rows and their length, handed to transformers as `past_key_values`.

    Before each forward pass, `aim` says where its tokens go; the pass then writes them and attends to columns up to `length`.
    """

    def __init__(self, n_layers: int, tokens: int = 0) -> None:
        """An empty slab, with room for that many tokens a row at its first pass."""
        self.slab = _Slab(capacity_tokens=tokens)
        super().__init__(layers=[_SlabLayer(self.slab) for _ in range(n_layers)])

    def aim(self, positions: Tensor, length: int, start: int | None) -> None:
        """Say where the next pass writes.

        Args:
            positions: `(rows, seq)` position of each token; rows 0 to `rows - 1` of the slab take part.
            length: columns to attend to, at least the largest position + 1.
            start: the common first position, when all rows write the columns from there on; None when each row writes the
                columns of its own positions.
        """
        slab = self.slab
        slab.used_rows, slab.length, slab.start = len(positions), length, start
        slab.capacity_rows = max(slab.capacity_rows, len(positions))
        if start is None:
            slab.row_index = torch.arange(len(positions), device=positions.device)[:, None]
            slab.columns = positions
        if length > slab.capacity_tokens:
            slab.capacity_tokens = _rounded(length)

    @torch.inference_mode()
    def fit(self, rows: int, tokens: int) -> None:
        """Make room for `rows` sequences of `tokens`; what exceeds twice that is given back."""
        slab, tokens = self.slab, _rounded(tokens)
        if slab.capacity_rows > 2 * rows or slab.capacity_tokens > 2 * tokens:
            slab.capacity_rows, slab.capacity_tokens = min(slab.capacity_rows, rows), min(slab.capacity_tokens, tokens)
            for layer in self.layers:
                layer.shrink()
        slab.capacity_rows = max(slab.capacity_rows, rows)

    @torch.inference_mode()
    def copy_row(self, source: KVCache, source_row: int, row: int, length: int) -> None:
        """Copy the first `length` columns of another slab's row into `row` of this one; the rest of it becomes zero."""
        self.slab.capacity_rows = max(self.slab.capacity_rows, row + 1)
        self.slab.capacity_tokens = max(self.slab.capacity_tokens, _rounded(length))
        for mine, other in zip(self.layers, source.layers, strict=True):
            mine.reserve(other.keys, other.values)
            mine.keys[row, :, :length] = other.keys[source_row, :, :length]
            mine.values[row, :, :length] = other.values[source_row, :, :length]
            mine.clear(row, length)

    @torch.inference_mode()
    def spread(self, times: int) -> None:
        """Give every row to that many, one after the other."""
        for layer in self.layers:
            layer.keys, layer.values = (each.repeat_interleave(times, 0) for each in (layer.keys, layer.values))
        self.slab.capacity_rows *= times

    @torch.inference_mode()
    def take_rows(self, source: KVCache, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Fill an empty slab: row `i` becomes the first `lengths[i]` columns of another slab's row `rows[i]`."""
        self.slab.capacity_rows = max(self.slab.capacity_rows, len(rows))
        self.slab.capacity_tokens = max(self.slab.capacity_tokens, *lengths)
        for mine, other in zip(self.layers, source.layers, strict=True):
            mine.reserve(other.keys, other.values)
            mine.take(other, rows, lengths)

    @torch.inference_mode()
    def move_row(self, source: int, target: int, length: int) -> None:
        """Move a row within the slab; the rest of the target becomes zero."""
        for layer in self.layers:
            layer.keys[target, :, :length] = layer.keys[source, :, :length]
            layer.values[target, :, :length] = layer.values[source, :, :length]
            layer.clear(target, length)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns attended to, as transformers asks for it."""
        return self.slab.length


class _SlabLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values `(rows, heads, columns, head_dim)` of one decoder block; made at the first pass, when shapes are known."""

    keys: Any
    values: Any
    is_sliding = False

    def __init__(self, slab: _Slab) -> None:
        super().__init__()
        self.slab = slab

    def reserve(self, keys: Tensor, values: Tensor) -> None:
        """Make the slab as large as it must be, keeping what it holds. Zeros, as a masked NaN would still spread."""
        for name, like in (("keys", keys), ("values", values)):
            old = getattr(self, name)
            rows, tokens = self.slab.capacity_rows, self.slab.capacity_tokens
            if old is None or old.shape[0] < rows or old.shape[2] < tokens:
                new = like.new_zeros(rows, like.shape[1], tokens, like.shape[3])
                if old is not None:
                    new[: old.shape[0], :, : old.shape[2]] = old
                setattr(self, name, new)
        self.is_initialized = True

    def take(self, other: _SlabLayer, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Copy rows of another slab into the first ones, each up to its length; what the other holds behind it stays there."""
        longest, device = max(lengths), other.keys.device
        chosen = torch.tensor(rows, device=device)
        behind = torch.arange(longest, device=device) >= torch.tensor(lengths, device=device)[:, None]
        for mine, its in ((self.keys, other.keys), (self.values, other.values)):
            mine[: len(rows), :, :longest] = its[chosen, :, :longest].masked_fill(behind[:, None, :, None], 0)

    def shrink(self) -> None:
        """Give back rows and columns beyond the slab's capacity."""
        if self.keys is not None:
            rows, tokens = self.slab.capacity_rows, self.slab.capacity_tokens
            self.keys, self.values = self.keys[:rows, :, :tokens].clone(), self.values[:rows, :, :tokens].clone()

    def clear(self, row: int, start: int) -> None:
        """Forget a row from a column on: what a former request left there, if not finite, would spread through the mask."""
        self.keys[row, :, start:] = 0
        self.values[row, :, start:] = 0

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the pass's keys and values, and return all that it attends to."""
        slab = self.slab
        self.reserve(key_states, value_states)
        keys, values = self.keys[: slab.used_rows], self.values[: slab.used_rows]
        if slab.start is None:
            keys[slab.row_index, :, slab.columns] = key_states.transpose(1, 2)
            values[slab.row_index, :, slab.columns] = value_states.transpose(1, 2)
        else:
            stop = slab.start + key_states.shape[2]
            keys[:, :, slab.start : stop] = key_states
            values[:, :, slab.start : stop] = value_states
        return keys[:, :, : slab.length], values[:, :, : slab.length]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Part of transformers' protocol."""
        self.reserve(key_states, value_states)

    def get_seq_length(self) -> int:
        """Part of transformers' protocol: columns attended to."""
        return self.slab.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Part of transformers' protocol; the runner brings its own masks."""
        return self.slab.length, 0

    def get_max_length(self) -> int:
        """Part of transformers' protocol: no limit of its own."""
        return -1


def _rounded(tokens: int) -> int:
    return -(-tokens // _GROW_TOKENS) * _GROW_TOKENS
