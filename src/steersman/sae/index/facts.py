"""What an index says of the features of one SAE. Frozen data; knows nothing of how it is made, kept or searched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.errors import SaeError
from steersman.facts import check_choices, fact
from steersman.models.language_model import ModelRef
from steersman.sae.config import SaeRef

FORMAT = 1
NO_TOKEN = -1
"""Stands where a context is shorter than the index is wide."""


@fact
class IndexFacts:
    """What an index was made from."""

    sae: SaeRef
    model: ModelRef
    tokens: int
    """How many were read."""
    sources: dict[str, float]
    """Shares of the texts that the contexts are from."""
    encoder: str | None = None
    """Sentence encoder of the embeddings; None where there are none."""
    format: int = FORMAT


@fact
class Label:
    """What a feature is called, and how well the name holds."""

    text: str
    origin: Literal["contexts", "llm", "user"] = "contexts"
    """Who wrote it: derived from contexts, a language model, or a person."""
    score: float | None = None
    """Balanced accuracy with which the label alone tells contexts where the feature fires from others (detection)."""
    missing: str | None = None
    """Why there is no score."""

    def __post_init__(self) -> None:
        check_choices(self, SaeError)
        if self.score is not None and not (math.isfinite(self.score) and 0 <= self.score <= 1):
            raise SaeError(f"label {self.text!r}: a score lies between 0 and 1, not {self.score}")


@dataclass(frozen=True, slots=True)
class Contexts:
    """Stretches of text with the activations of one feature, strongest first."""

    tokens: Int[Tensor, "contexts width"]
    """Token ids; `NO_TOKEN` behind the end."""
    activations: Float[Tensor, "contexts width"]
    """0 where the feature does not fire."""

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class FeatureIndex:
    """All features of one SAE, by their number. Row `i` of every tensor is feature `i`; all on the CPU."""

    facts: IndexFacts
    density: Float[Tensor, " features"]
    """Share of the tokens where it fires."""
    mean_activation: Float[Tensor, " features"]
    """Over the tokens where it fires; 0 where it never does."""
    max_activation: Float[Tensor, " features"]
    context_tokens: Int[Tensor, "features contexts width"]
    """The top activating contexts; rows of `NO_TOKEN` where there are fewer."""
    context_activations: Float[Tensor, "features contexts width"]
    promoted: Int[Tensor, "features n"]
    """Tokens that its decoder row makes likelier, most of all first (logit lens)."""
    suppressed: Int[Tensor, "features n"]
    neighbours: Int[Tensor, "features m"]
    """Features whose decoder rows point the same way, nearest first."""
    cosines: Float[Tensor, "features m"]
    """Of the neighbours."""
    labels: tuple[Label | None, ...]
    label_embeddings: Float[Tensor, "features width"] | None = None
    """Of norm 1; zeros where there is no label."""
    context_embeddings: Float[Tensor, "features width"] | None = None
    """Mean embedding of the contexts, of norm 1; zeros where there are none."""

    def __post_init__(self) -> None:
        n = len(self.density)
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, Tensor | tuple) and len(value) != n:
                raise SaeError(f"index: {name} is of {len(value)} features, density of {n}")

    def __len__(self) -> int:
        return len(self.density)

    @property
    def live(self) -> Int[Tensor, " live"]:
        """Numbers of the features that fire at all."""
        return (self.density > 0).nonzero().squeeze(1)

    def contexts(self, feature: int) -> Contexts:
        """The contexts of one feature.

        Raises:
            SaeError: no such feature.
        """
        self.check(feature)
        there = self.context_tokens[feature][:, 0] != NO_TOKEN
        return Contexts(self.context_tokens[feature][there], self.context_activations[feature][there])

    def check(self, feature: int) -> None:
        """Refuse the number of a feature that is not there.

        Raises:
            SaeError: with the numbers that are.
        """
        if not 0 <= feature < len(self):
            raise SaeError(f"feature {feature} does not exist; this SAE has 0 to {len(self) - 1}")

    def named(self, labels: Sequence[Label | None]) -> Self:
        """The same index with other labels; what was embedded of the old ones is dropped."""
        return replace(self, labels=tuple(labels), label_embeddings=None)


def no_contexts(features: int, contexts: int, width: int) -> tuple[Tensor, Tensor]:
    """Empty `context_tokens` (int32) and `context_activations` (float32)."""
    shape = (features, contexts, width)
    return torch.full(shape, NO_TOKEN, dtype=torch.int32), torch.zeros(shape)
