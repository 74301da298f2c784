"""How strong a vector must be for plain text to become as much harder to predict as was asked for (arXiv:2411.02193, section 3).

The blocks below the layer read the texts once; every strength of every vector then costs the blocks above, many vectors in
one pass. Knows nothing of sampling or of SAEs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import median

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.errors import DataError
from steersman.facts import fact
from steersman.models.language_model import LanguageModel
from steersman.models.residuals import profile_texts
from steersman.models.upper import Prepared, Reading, UpperModel

GRID = (0.03, 0.06, 0.1, 0.15, 0.2, 0.26, 0.33, 0.41, 0.5, 0.65, 0.85, 1.1, 1.5, 2.0, 3.0)
"""Strengths that are scanned, in mean residual norms."""
_FIRST = 0.26
_MAX_LOGITS = 1 << 25


@fact
class Scale:
    """The strength of one vector."""

    strength: float
    """In mean residual norms."""
    is_reached: bool
    """False: even the largest strength of the scan raises the cross-entropy less than was asked for; that one is used."""


class CrossEntropyScale:
    """Finds strengths on fixed pieces of plain text."""

    def __init__(
        self, model: LanguageModel, layer: int, mean_norm: float, pieces: Sequence[Sequence[int]], rise: float
    ) -> None:
        """Read the texts as they are.

        Args:
            model: whose cross-entropy counts.
            layer: where vectors are added.
            mean_norm: mean residual norm there: what a strength of 1.0 means.
            pieces: plain text in tokens, all of one length.
            rise: nats per token over the unsteered cross-entropy.
        """
        self._upper, self._mean_norm = UpperModel(model, layer), mean_norm
        readings = [Reading(tuple(piece), 1) for piece in pieces]
        (self._batch,) = self._upper.prepare(readings, sum(map(len, pieces)))
        self._vocab = model.n_vocab
        self.baseline = float(self.cross_entropy(torch.zeros(1, model.d_model), [0.0])[0])
        """Nats per token, unsteered."""
        self.target = self.baseline + rise
        self._hint = GRID.index(_FIRST)

    @torch.no_grad()
    def cross_entropy(self, vectors: Float[Tensor, "n d_model"], strengths: Sequence[float]) -> Float[Tensor, " n"]:
        """Mean nats per token with each unit vector added at its strength, in mean residual norms."""
        added = vectors.float() * (torch.tensor(strengths) * self._mean_norm)[:, None]
        rows, device = len(self._batch.ids), self._batch.ids.device
        step = max(1, _MAX_LOGITS // (self._vocab * int(self._batch.wanted.sum())))
        found = []
        for part in torch.split(added.to(device), step):
            logprobs = self._upper.logprobs(
                _repeated(self._batch, len(part)), part.repeat_interleave(rows, 0)[:, None, :]
            )
            found.append(-logprobs.view(len(part), -1).mean(1).double().cpu())
        return torch.cat(found)

    def find(self, vectors: Float[Tensor, "n d_model"]) -> list[Scale]:
        """The strength of each unit vector: linear between the two neighbours on the grid that enclose the target.

        The scan begins where the last vectors ended and walks the grid from there, so most need two or three readings. A
        cross-entropy that is no number counts as above the target.
        """
        readings: list[dict[int, float]] = [{-1: self.baseline} for _ in vectors]
        at = dict.fromkeys(range(len(vectors)), self._hint)
        while at:
            now = list(at)
            values = self.cross_entropy(vectors[now], [GRID[at[index]] for index in now]).nan_to_num(float("inf"))
            for index, value in zip(now, values.tolist(), strict=True):
                place = at[index]
                readings[index][place] = value
                following = place - 1 if value >= self.target else place + 1
                if following in readings[index] or following == len(GRID):
                    del at[index]
                else:
                    at[index] = following
        places = [_enclosing(known, self.target) for known in readings]
        self._hint = min(len(GRID) - 1, max(0, int(median(low + 1 for low in places))))
        return [_between(known, low, self.target) for known, low in zip(readings, places, strict=True)]


def plain_pieces(model: LanguageModel, n: int, tokens: int, seed: int) -> list[list[int]]:
    """Pieces of the shipped plain text, each of `tokens` tokens, no two overlapping, in an order that the seed decides.

    Raises:
        DataError: the text does not hold as many.
    """
    pieces = []
    for text in profile_texts():
        ids = list(model.tokenizer(text)["input_ids"])
        pieces += [ids[start : start + tokens] for start in range(0, len(ids) - tokens + 1, tokens)]
    if len(pieces) < n:
        raise DataError(
            f"the plain text has {len(pieces)} pieces of {tokens} tokens, not {n}; ask for fewer or shorter"
        )
    return random.Random(seed).sample(pieces, n)


def _enclosing(known: dict[int, float], target: float) -> int:
    """The place on the grid below which the target is not reached and above which it is (-1 is strength 0)."""
    below = [place for place, value in known.items() if value < target and known.get(place + 1, target) >= target]
    return max(below)


def _between(known: dict[int, float], low: int, target: float) -> Scale:
    high = low + 1
    if high not in known:
        return Scale(strength=GRID[low], is_reached=False)
    left = GRID[low] if low >= 0 else 0.0
    share = (target - known[low]) / (known[high] - known[low])  # 0 where the upper one is infinite.
    return Scale(strength=max(left + share * (GRID[high] - left), GRID[0] / 2), is_reached=True)


def _repeated(batch: Prepared, times: int) -> Prepared:
    return Prepared(
        batch.ids.repeat(times, 1),
        batch.mask.repeat(times, 1),
        batch.hidden.repeat(times, 1, 1),
        batch.wanted.repeat(times, 1),
    )
