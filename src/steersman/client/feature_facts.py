"""What a server says of the features of its SAE, as frozen data."""

from __future__ import annotations

from steersman.client.facts import Fact


class FeatureHit(Fact):
    """A feature that a query found."""

    feature: int
    score: float
    """0 for what has nothing to do with the query; 0.3 and more is a good match."""
    label: str | None
    label_score: float | None
    density: float
    """Share of all tokens where it fires."""


class Label(Fact):
    """What a feature is called, and how well the name holds."""

    text: str
    origin: str
    score: float | None
    missing: str | None
    """Why there is no score."""


class FeatureContext(Fact):
    """A stretch of text where a feature fires, token by token."""

    tokens: tuple[str, ...]
    activations: tuple[float, ...]


class Neighbour(Fact):
    """A feature that writes nearly the same."""

    feature: int
    cosine: float
    label: str | None


class Feature(Fact):
    """All that is known of one feature."""

    feature: int
    sae: str
    layer: int
    label: Label | None
    density: float
    mean_activation: float
    max_activation: float
    contexts: tuple[FeatureContext, ...]
    """Strongest first."""
    promoted: tuple[str, ...]
    """Tokens that it makes likelier."""
    suppressed: tuple[str, ...]
    neighbours: tuple[Neighbour, ...]


class Difference(Fact):
    """How one feature tells two lists of texts apart."""

    feature: int
    label: str | None
    score: float
    """Above 0 where the first list has more."""
    auc: float
    positive_mean: float
    negative_mean: float


class Contrast(Fact):
    """What tells two lists of texts apart, in both directions, strongest first."""

    n_positive: int
    n_negative: int
    positive: tuple[Difference, ...]
    negative: tuple[Difference, ...]


class Firing(Fact):
    """A feature that fires on a token."""

    feature: int
    activation: float


class TokenFeatures(Fact):
    """One token and what fires on it, strongest first."""

    position: int
    token: str
    features: tuple[Firing, ...]


class Inspection(Fact):
    """Which features fire on which token of a text."""

    layer: int
    tokens: tuple[TokenFeatures, ...]
    labels: dict[int, str]
    """Of the features above, by number."""
