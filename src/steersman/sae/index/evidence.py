"""What one pass over the activations of many texts tells of each feature. Frozen data; knows nothing of how it is gathered.

`Activity` goes into the index; `Evidence` is for labels and their scores, and is thrown away after that.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from steersman.errors import SaeError
from steersman.sae.index.facts import NO_TOKEN, Contexts


@dataclass(frozen=True, slots=True)
class Activity:
    """How often and how strongly each feature fires, and where most of all. The fields of a `FeatureIndex` by the same names."""

    tokens: int
    """How many were read."""
    density: Float[Tensor, " features"]
    mean_activation: Float[Tensor, " features"]
    max_activation: Float[Tensor, " features"]
    context_tokens: Int[Tensor, "features contexts width"]
    """The top activating contexts, strongest first, one a piece, no two with the same tokens around the strongest one."""
    context_activations: Float[Tensor, "features contexts width"]
    context_pieces: Int[Tensor, "features contexts"]
    """Number of the piece that a context is from; -1 where there is none."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Windows of text to make labels from and to test them on, all of one width and int32 tokens, padded by `NO_TOKEN`.

    Pieces are numbered as they are read: a sample of the same piece as a top context overlaps it.
    """

    sample_tokens: Int[Tensor, "features samples width"]
    """Windows around the strongest token of pieces drawn at random among those in which the feature fires, strongest first:
    window i of n stands for the quantile 1 - (i + 0.5) / n of the feature's strength over pieces."""
    sample_activations: Float[Tensor, "features samples width"]
    sample_pieces: Int[Tensor, "features samples"]
    """-1 where there are fewer."""
    sample_starts: Int[Tensor, "features samples"]
    """How many (kept) tokens of the piece come before the window."""
    pool_tokens: Int[Tensor, "windows width"]
    """Windows around tokens drawn at random among all that were read, in the order of the texts."""
    pool_pieces: Int[Tensor, " windows"]
    pool_starts: Int[Tensor, " windows"]
    firing_offsets: Int[Tensor, " features+1"]
    """Where each feature's entries begin in the two below."""
    firing_windows: Int[Tensor, " n"]
    """Windows of the pool in which the feature fires, ascending."""
    firing_values: Float[Tensor, " n"]
    """Its largest activation there."""

    def __len__(self) -> int:
        return len(self.sample_tokens)

    def samples(self, feature: int) -> Contexts:
        """The windows sampled for one feature, strongest first; fewer than asked for where it fires in fewer pieces.

        Raises:
            SaeError: no such feature.
        """
        self._check(feature)
        there = self.sample_tokens[feature][:, 0] != NO_TOKEN
        return Contexts(self.sample_tokens[feature][there], self.sample_activations[feature][there])

    def firing(self, feature: int) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        """The windows of the pool in which one feature fires, and how strongly at most.

        Raises:
            SaeError: no such feature.
        """
        self._check(feature)
        begin, end = self.firing_offsets[feature : feature + 2].tolist()
        return self.firing_windows[begin:end], self.firing_values[begin:end]

    def _check(self, feature: int) -> None:
        if not 0 <= feature < len(self):
            raise SaeError(f"feature {feature} does not exist; this SAE has 0 to {len(self) - 1}")
