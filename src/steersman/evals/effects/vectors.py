"""Which vectors are measured: decoder rows, sums of two and random directions. Vector n does not depend on how many follow."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
import torch.nn.functional as F

from steersman.errors import DataError
from steersman.sae.model import SparseAutoencoder
from steersman.steering.vector import Vector

Kind = Literal["row", "pair", "random"]
"""A decoder row; a sum of two with random weights in (0, 1); a direction drawn from a normal distribution."""
KINDS: tuple[Kind, ...] = get_args(Kind)
_PATTERN: tuple[Kind, ...] = ("row", "pair", "row", "random")


@dataclass(frozen=True, slots=True)
class Probe:
    """A unit vector whose effects are measured."""

    number: int
    kind: Kind
    features: tuple[int, ...]
    """The features whose decoder rows it is made of."""
    vector: Vector


class Probes:
    """An endless list of vectors of one SAE: half decoder rows, a quarter sums of two, a quarter random, made as the paper's are.

    Rows come in a random order without repetition; when all have been, only the other kinds follow.
    """

    def __init__(self, sae: SparseAutoencoder, seed: int) -> None:
        """Leave out features that write nothing.

        Raises:
            DataError: fewer than two features write anything.
        """
        self._decoder, self._seed = sae.W_dec.cpu().float(), seed
        live = self._decoder.norm(dim=1).gt(0).nonzero()[:, 0].tolist()
        if len(live) < 2:
            raise DataError("effects need an SAE of which at least two features write something")
        self._live: list[int] = live

    @cached_property
    def _order(self) -> list[int]:
        return random.Random(f"rows {self._seed}").sample(self._live, len(self._live))

    def __getitem__(self, number: int) -> Probe:
        kind = _PATTERN[number % len(_PATTERN)]
        turn = number // 2  # Every second one is a row.
        if kind == "row" and turn >= len(self._order):
            kind = "pair" if turn % 2 else "random"
        made = random.Random(f"vector {self._seed} {number}")
        if kind == "row":
            features: tuple[int, ...] = (self._order[turn],)
            direction = self._decoder[features[0]]
        elif kind == "pair":
            features = tuple(made.sample(self._live, 2))
            direction = torch.tensor([made.random() + 1e-6, made.random() + 1e-6]) @ self._decoder[list(features)]
        else:
            features = ()
            generator = torch.Generator().manual_seed(made.getrandbits(62))
            direction = torch.randn(self._decoder.shape[1], generator=generator)
        return Probe(number, kind, features, Vector(F.normalize(direction.double(), dim=0)))

    def first(self, n: int) -> Iterator[Probe]:
        """Vectors 0 to n - 1."""
        return (self[number] for number in range(n))
