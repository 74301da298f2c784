"""What a preference-trained vector is trained to bring down: two published losses behind one protocol.

Knows log-probabilities of answers and what is added to the residual stream; nothing of models, pairs or optimisers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class Sides(NamedTuple):
    """How likely the answers of some pairs are."""

    positive: Float[Tensor, " pairs"]
    """Sum of the log-probabilities of the positive answer's tokens."""
    negative: Float[Tensor, " pairs"]
    positive_tokens: Float[Tensor, " pairs"]
    """How many those are."""
    negative_tokens: Float[Tensor, " pairs"]


Push = Callable[[Float[Tensor, "rows seq d_model"]], Tensor]
"""From the residual stream at the layer to what is added to it."""
Predict = Callable[[Push], Sides]
"""How likely the answers are with something added; differentiable in that."""


class Preference(Protocol):
    """What training brings down: small where the positive answers are preferred once the vector is added."""

    factors: tuple[float, ...]
    """Each step draws one and trains the vector times that; validation takes 1."""

    def __call__(
        self, vector: Float[Tensor, " d_model"], factor: float, predict: Predict, plain: Sides
    ) -> Float[Tensor, ""]:
        """The mean loss over the pairs; `plain` is how likely the answers are with nothing added."""


class BiPO:
    """Bi-directional preference optimisation: the vector turns answers one way, its opposite turns them back.

    `-log sigmoid(d * beta * ((log p(y+ | d v) - log p(y+)) - (log p(y- | d v) - log p(y-))))`, with d drawn from -1 and 1.
    """

    factors: tuple[float, ...] = (-1.0, 1.0)

    def __init__(self, beta: float = 0.1) -> None:
        self.beta = beta

    def __call__(
        self, vector: Float[Tensor, " d_model"], factor: float, predict: Predict, plain: Sides
    ) -> Float[Tensor, ""]:
        """One pass with the vector times the factor, which is its sign."""
        pushed = predict(lambda _: factor * vector)
        # Cao et al., arXiv:2406.00045, eq. 3: DPO with the unsteered model as the reference.
        gained = (pushed.positive - plain.positive) - (pushed.negative - plain.negative)
        return -F.logsigmoid(factor * self.beta * gained).mean()


class RePS:
    """Reference-free preference steering: added, the vector brings the positive answer; taken out, the negative one.

    `-log sigmoid(b+ * l(y+ | f v) - l(y- | f v)) - log sigmoid(b- * l(y- | null) - l(y+ | null))`, where l is the mean
    log-probability of a token, f a factor, `null` the stream with its positive projection on v removed, and
    `b+ = max(log p(y-) - log p(y+), 1)`, `b- = max(log p(y+) - log p(y-), 1)` weigh what the plain model finds unlikely.
    The paper draws f from 2 to 20 for a vector of norm 1; ours is drawn about 1, for a vector of its own length.
    """

    factors: tuple[float, ...] = (0.5, 1.0, 1.5)

    def __call__(
        self, vector: Float[Tensor, " d_model"], factor: float, predict: Predict, plain: Sides
    ) -> Float[Tensor, ""]:
        """Two passes: one with the vector times the factor, one with its direction taken out."""
        pushed, nulled = predict(lambda _: factor * vector), predict(lambda hidden: null(hidden, vector))
        # Wu et al., arXiv:2505.20809, section 3. The weights are those of sums, the terms those of means.
        apart = (plain.negative - plain.positive).detach()
        for_positive, for_negative = apart.clamp(min=1.0), (-apart).clamp(min=1.0)
        up = for_positive * pushed.positive / pushed.positive_tokens - pushed.negative / pushed.negative_tokens
        down = for_negative * nulled.negative / nulled.negative_tokens - nulled.positive / nulled.positive_tokens
        return -(F.logsigmoid(up) + F.logsigmoid(down)).mean()


PREFERENCES: Mapping[str, Callable[[], Preference]] = {"reps": RePS, "bipo": BiPO}


def null(
    hidden: Float[Tensor, "rows seq d_model"], vector: Float[Tensor, " d_model"]
) -> Float[Tensor, "rows seq d_model"]:
    """What takes the positive part of the projection on `vector` out of `hidden`: `-relu(h . v) v / |v|^2`."""
    unit = F.normalize(vector, dim=0)
    return -F.relu(hidden.float() @ unit)[..., None] * unit
