"""Windows drawn at random among all tokens of a pass, and what fires in them. Knows nothing of SAEs or of why it is asked."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

from steersman.sae.index.facts import NO_TOKEN
from steersman.sae.index.firings import Block, Floats, Ints, firing_within, placed


class Pool:
    """`places` windows around tokens drawn among `tokens` before the first is read."""

    def __init__(self, features: int, tokens: int, width: int, places: int, seed: int) -> None:
        self.features, self.width = features, width
        drawn = random.Random(seed).sample(range(tokens), min(places, tokens))
        self.rows = np.sort(np.array(drawn, dtype=np.int64))
        self.windows: list[tuple[Ints, Ints, Ints]] = []
        self.firing: list[tuple[Ints, Ints, Floats]] = []

    def read(self, block: Block, done: int) -> None:
        """Cut the windows that lie in a block that begins at token `done`."""
        low, high = np.searchsorted(self.rows, [done, done + len(block.tokens)])
        rows = self.rows[low:high] - done
        taken, inside = placed(block, rows, self.width)
        tokens = np.where(inside, block.tokens[taken], NO_TOKEN).astype(np.int32)
        self.windows.append((tokens, block.pieces[rows], (taken[:, 0] - block.first[rows]).astype(np.int32)))
        windows, features, values = firing_within(block, rows, self.width)
        self.firing.append(((windows + low).astype(np.int32), features, values))

    def result(self) -> dict[str, Tensor]:
        """The pool's fields of `Evidence`."""
        tokens, pieces, starts = (np.concatenate(part) for part in zip(*self.windows, strict=True))
        windows, features, values = (np.concatenate(part) for part in zip(*self.firing, strict=True))
        order = np.argsort(features, kind="stable")
        offsets = np.append(0, np.bincount(features, minlength=self.features).cumsum())
        made = {
            "pool_tokens": tokens,
            "pool_pieces": pieces,
            "pool_starts": starts,
            "firing_offsets": offsets,
            "firing_windows": windows[order],
            "firing_values": values[order],
        }
        return {name: torch.from_numpy(array) for name, array in made.items()}
