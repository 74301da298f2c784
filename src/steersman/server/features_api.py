"""The feature routes: search, one feature, contrast, inspection; and the list of pre-made traits.

Knows nothing of how features are found (`feature_lookup`) or of what goes over the wire (`features_bodies`, `features_answers`).
"""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Depends, Path, Query, Request

from steersman.models.language_model import LanguageModel
from steersman.sae.index.inspect import ALWAYS_ON
from steersman.server.auth import Caller, needs
from steersman.server.context import Deps
from steersman.server.errors import ERRORS
from steersman.server.feature_lookup import FeatureLookup
from steersman.server.features_answers import (
    ContrastOut,
    FeatureOut,
    HitList,
    InspectOut,
    TraitList,
    TraitOut,
    difference_out,
    feature_out,
    hits_out,
    inspect_out,
)
from steersman.server.features_bodies import ContrastBody, InspectBody, prompt_of
from steersman.steering.traits import load_trait, names

router = APIRouter(prefix="/v1", tags=["features"], responses={**ERRORS})

_Reader = Annotated[Caller, needs("read")]
_Generator = Annotated[Caller, needs("generate")]


async def get_features(request: Request, deps: Deps) -> FeatureLookup:
    """The features of the server's model; made at the first request, nothing loaded before it is needed."""
    state = request.app.state
    # Without an await in between, so that two requests cannot both make one. An app may start again with another model.
    if getattr(state, "features", None) is None or state.features.model is not deps.engine.model:
        state.features = FeatureLookup(deps.engine.model)
    return cast("FeatureLookup", state.features)


Features = Annotated[FeatureLookup, Depends(get_features)]
"""The type of a route's parameter that takes the features."""


@router.get("/features", operation_id="search_features", summary="Find features by meaning")
async def search_features(
    caller: _Reader,
    features: Features,
    query: Annotated[
        str, Query(min_length=1, max_length=500, pattern=r"\S", description="A word, a phrase or a sentence.")
    ],
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
    max_density: Annotated[
        float, Query(ge=0, le=1, allow_inf_nan=False, description="Leave out what fires on a larger share of tokens.")
    ] = ALWAYS_ON,
) -> HitList:
    """Features nearest in meaning to a query, best first, by the embeddings of their contexts and labels."""

    def work() -> HitList:
        return hits_out(query, features.search(query, limit, max_density), features.shelf)

    return await features.run(work)


@router.get("/features/{feature}", operation_id="get_feature", summary="One feature in full")
async def get_feature(
    caller: _Reader, features: Features, feature: Annotated[int, Path(ge=0, le=2**31 - 1)]
) -> FeatureOut:
    """Label and its score, density, top contexts with activations, tokens promoted, neighbours, norm of its decoder row."""
    return await features.run(lambda: feature_out(feature, features.shelf))


@router.post("/features/contrast", operation_id="contrast_features", summary="Features that tell two lists apart")
async def contrast_features(caller: _Generator, features: Features, body: ContrastBody) -> ContrastOut:
    """Run two lists of texts or chats through the model and rank the features by how they differ."""
    positives, negatives = ([prompt_of(item) for item in items] for items in (body.positive, body.negative))

    def work() -> ContrastOut:
        found, shelf = features.contrast(positives, negatives, body.limit, body.read), features.shelf
        return ContrastOut(
            sae=shelf.name,
            layer=shelf.sae.config.layer,
            n_positive=found.n_positive,
            n_negative=found.n_negative,
            positive=[difference_out(item, shelf) for item in found.positive],
            negative=[difference_out(item, shelf) for item in found.negative],
        )

    return await features.run(work)


@router.post("/inspect", operation_id="inspect_text", summary="Features of every token of a text")
async def inspect_text(caller: _Generator, features: Features, body: InspectBody) -> InspectOut:
    """Run a text or chat through the model and say which features fire on which token, and most over the whole of it."""
    content = prompt_of(body.content_body)
    return await features.run(lambda: inspect_out(features.inspect(content, body.top_k, body.read), features.shelf))


@router.get("/traits", operation_id="list_traits", summary="The pre-made recipes", tags=["recipes"])
def list_traits(caller: _Reader, deps: Deps) -> TraitList:
    """Pre-made recipes of common traits, to be used by their names, each with what was measured of it."""
    return TraitList(data=[_trait(name, deps.engine.model) for name in names()])


def _trait(name: str, model: LanguageModel) -> TraitOut:
    recipe = load_trait(name)
    return TraitOut(
        name=name,
        description=recipe.description,
        method=recipe.method,
        fits=recipe.model is None or recipe.model.matches(model.ref),
        evidence=recipe.evidence,
    )
