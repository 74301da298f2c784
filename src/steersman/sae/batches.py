"""Deal out stored activations in random batches, from any step on. Knows nothing of models or autoencoders."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.errors import DataError
from steersman.sae.shards import ActivationStore


@dataclass(frozen=True, slots=True)
class ShuffledBatches:
    """Random batches over one or more stores, epoch after epoch, the same for the same seed.

    Every epoch draws the shards in another order, holds `window_tokens` of them in memory at a time and deals those out in
    random order. The few rows of a window that fill no batch are left for another epoch.
    """

    stores: tuple[ActivationStore, ...]
    batch_tokens: int
    seed: int = 0
    window_tokens: int = 262_144
    """Rows held in memory: 2 · d_model bytes each."""

    def __post_init__(self) -> None:
        if len({(store.index.model.weights_hash, store.index.layer) for store in self.stores}) != 1:
            raise DataError("batches need activations, all of one model and layer; collect them first")
        if self.batch_tokens < 1 or self.window_tokens < self.batch_tokens:
            raise DataError(f"batches of {self.batch_tokens} do not fit a window of {self.window_tokens} tokens")
        if not any(self._counts(0)):
            raise DataError(f"there are too few activations for one batch of {self.batch_tokens}; collect more")

    @property
    def d_model(self) -> int:
        """Width of the batches."""
        return self.stores[0].index.d_model

    def read(self, first: int = 0) -> Iterator[Float[Tensor, "batch_tokens d_model"]]:
        """Batches from number `first` on, without end, in float16 on the CPU.

        Raises:
            DataError: a shard is gone or damaged.
        """
        for epoch in itertools.count():
            windows = self._windows(epoch)
            for number, (window, count) in enumerate(zip(windows, self._counts(epoch), strict=True)):
                if first < count:
                    rows = torch.cat([self.stores[store].read(shard) for store, shard in window])
                    order = torch.randperm(len(rows), generator=self._random(f"{epoch}/{number}"))
                    for index in range(first, count):
                        yield rows[order[index * self.batch_tokens : (index + 1) * self.batch_tokens]]
                    del rows  # Before the next window is read.
                first = max(0, first - count)

    def _windows(self, epoch: int) -> list[list[tuple[int, int]]]:
        """Shards of an epoch in random order, cut into windows; a shard is `(store, number)`."""
        shards = [(number, i) for number, store in enumerate(self.stores) for i in range(len(store.index.shards))]
        windows: list[list[tuple[int, int]]] = []
        held = self.window_tokens
        for position in torch.randperm(len(shards), generator=self._random(str(epoch))).tolist():
            if held >= self.window_tokens:
                windows.append([])
                held = 0
            windows[-1].append(shards[position])
            held += self._tokens(*shards[position])
        return windows

    def _counts(self, epoch: int) -> list[int]:
        """Batches in each window of an epoch."""
        return [sum(self._tokens(*shard) for shard in window) // self.batch_tokens for window in self._windows(epoch)]

    def _tokens(self, store: int, shard: int) -> int:
        return self.stores[store].index.shards[shard].tokens

    def _random(self, place: str) -> torch.Generator:
        digest = hashlib.blake2b(f"{self.seed}/{place}".encode(), digest_size=7).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest))
