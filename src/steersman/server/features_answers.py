"""What the feature and trait routes answer, and how it is made from what was found. Knows nothing of how features are found."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, JsonValue

from steersman.sae.index.contrast import Difference
from steersman.sae.index.inspect import Inspection
from steersman.sae.index.search import Hit
from steersman.server.feature_lookup import Shelf

MOST_TOTALS = 50
"""Features of the whole text in an inspection."""


class HitOut(BaseModel):
    """A feature that a query found."""

    feature: int
    score: float
    """0 for what has nothing to do with the query; 0.3 and more is a good match."""
    label: str | None
    label_score: float | None
    """Accuracy with which the label alone tells where the feature fires; null where it was not measured."""
    density: float
    """Share of all tokens where it fires."""
    label_cosine: float | None
    context_cosine: float | None


class HitList(BaseModel):
    """What a query found, best first."""

    object: Literal["list"] = "list"
    query: str
    sae: str
    layer: int
    data: list[HitOut]


class LabelOut(BaseModel):
    """What a feature is called, and how well the name holds."""

    text: str
    origin: str
    """Who wrote it: `contexts` (derived from them), `llm` or `user`."""
    score: float | None
    missing: str | None
    """Why there is no score."""


class ContextOut(BaseModel):
    """A stretch of text where the feature fires, token by token."""

    tokens: list[str]
    activations: list[float]


class NeighbourOut(BaseModel):
    """A feature that writes nearly the same."""

    feature: int
    cosine: float
    label: str | None
    density: float


class FeatureOut(BaseModel):
    """All that is known of one feature."""

    object: Literal["feature"] = "feature"
    feature: int
    sae: str
    layer: int
    label: LabelOut | None
    """Null where it never fires."""
    density: float
    mean_activation: float
    """Over the tokens where it fires."""
    max_activation: float
    decoder_norm: float
    """Length of what one unit of activation adds to the residual stream."""
    contexts: list[ContextOut]
    """Strongest first."""
    promoted: list[str]
    """Tokens that it makes likelier."""
    suppressed: list[str]
    neighbours: list[NeighbourOut]


class DifferenceOut(BaseModel):
    """How one feature tells two lists apart."""

    feature: int
    label: str | None
    density: float
    score: float
    """Standardised difference of the means, above 0 where the first list has more."""
    auc: float
    """Chance that a text of the first list has more."""
    positive_mean: float
    negative_mean: float
    positive_texts: int
    """Texts of the first list where it fires at all."""
    negative_texts: int


class ContrastOut(BaseModel):
    """What tells two lists apart, in both directions, strongest first."""

    sae: str
    layer: int
    n_positive: int
    """Different texts of the first list."""
    n_negative: int
    positive: list[DifferenceOut]
    negative: list[DifferenceOut]


class FiringOut(BaseModel):
    """A feature that fires on a token."""

    feature: int
    activation: float


class TokenOut(BaseModel):
    """One token and what fires on it, strongest first."""

    position: int
    """In the sequence that the model read, from 0; the first token is never read."""
    token: str
    features: list[FiringOut]


class TotalOut(BaseModel):
    """One feature over all tokens that were read."""

    feature: int
    sum: float
    max: float
    tokens: int
    """On how many it fires."""


class InspectOut(BaseModel):
    """Which features fire on which token."""

    sae: str
    layer: int
    tokens: list[TokenOut]
    totals: list[TotalOut]
    """The features that fire most over the whole text."""
    labels: dict[str, str]
    """Of all features that are named above, by number."""


class TraitOut(BaseModel):
    """A pre-made recipe, to be used by its name."""

    name: str
    description: str
    method: str
    fits: bool
    """Whether it was made for the server's model."""
    evidence: dict[str, JsonValue] | None


class TraitList(BaseModel):
    """The pre-made recipes."""

    object: Literal["list"] = "list"
    data: list[TraitOut]


def hits_out(query: str, hits: list[Hit], shelf: Shelf) -> HitList:
    """Search results as they go out."""
    labels = shelf.index.labels
    data = [
        HitOut(
            feature=hit.feature,
            score=hit.score,
            label=hit.label,
            label_score=label.score if (label := labels[hit.feature]) else None,
            density=hit.density,
            label_cosine=hit.label_cosine,
            context_cosine=hit.context_cosine,
        )
        for hit in hits
    ]
    return HitList(query=query, sae=shelf.name, layer=shelf.sae.config.layer, data=data)


def feature_out(feature: int, shelf: Shelf) -> FeatureOut:
    """One feature as it goes out.

    Raises:
        NotFound: it does not exist.
    """
    shelf.check(feature)
    index, label = shelf.index, shelf.index.labels[feature]

    def words(tokens: list[int]) -> list[str]:
        return [shelf.reader.passage([token]).text for token in tokens]

    return FeatureOut(
        feature=feature,
        sae=shelf.name,
        layer=shelf.sae.config.layer,
        label=None
        if label is None
        else LabelOut(text=label.text, origin=label.origin, score=label.score, missing=label.missing),
        density=float(index.density[feature]),
        mean_activation=float(index.mean_activation[feature]),
        max_activation=float(index.max_activation[feature]),
        decoder_norm=float(shelf.sae.W_dec[feature].double().norm()),
        contexts=[
            ContextOut(tokens=[p.token(i) for i in range(len(p.activations))], activations=list(p.activations))
            for p in shelf.reader.passages(index.contexts(feature))
        ],
        promoted=words(index.promoted[feature].tolist()),
        suppressed=words(index.suppressed[feature].tolist()),
        neighbours=[
            NeighbourOut(feature=n.feature, cosine=n.cosine, label=n.label, density=n.density)
            for n in shelf.near(feature)
        ],
    )


def difference_out(found: Difference, shelf: Shelf) -> DifferenceOut:
    """One difference as it goes out."""
    return DifferenceOut(
        feature=found.feature,
        label=shelf.label(found.feature),
        density=float(shelf.index.density[found.feature]),
        score=found.score,
        auc=found.auc,
        positive_mean=found.positive_mean,
        negative_mean=found.negative_mean,
        positive_texts=found.positive_texts,
        negative_texts=found.negative_texts,
    )


def inspect_out(found: Inspection, shelf: Shelf) -> InspectOut:
    """An inspection as it goes out."""
    totals = found.totals[:MOST_TOTALS]
    tokens = [
        TokenOut(
            position=token.position,
            token=token.token,
            features=[
                FiringOut(feature=feature, activation=value)
                for feature, value in zip(token.features, token.activations, strict=True)
            ],
        )
        for token in found
    ]
    named = {fired.feature for token in tokens for fired in token.features} | {total.feature for total in totals}
    return InspectOut(
        sae=shelf.name,
        layer=shelf.sae.config.layer,
        tokens=tokens,
        totals=[TotalOut(feature=t.feature, sum=t.sum, max=t.max, tokens=t.tokens) for t in totals],
        labels={str(feature): label for feature in sorted(named) if (label := shelf.label(feature)) is not None},
    )
