"""Side effects of a recipe before it is used: what the effect map says of the vector that it adds."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.errors import RecipeError, RecipeMismatch
from steersman.steering.edits import Add
from steersman.steering.methods.effect_map_file import StoredMap
from steersman.steering.recipe import Recipe


class Predicted(NamedTuple):
    """What a recipe will do, at the strength that effects were measured at."""

    effects: Float[Tensor, " d_sae"]
    """Change of every feature's mean activation."""
    strength: float
    """Of the recipe itself at the map's layer, in mean residual norms where `is_relative`."""
    is_relative: bool
    """Whether all its edits there say their strength in mean residual norms."""


def predicted_effects(recipe: Recipe, stored: StoredMap) -> Predicted:
    """Add up a recipe's `add` edits at the map's layer and predict the effects of their direction.

    The map knows directions, at one strength: a recipe that is weaker does less of the same.

    Raises:
        RecipeMismatch: the recipe is for another model.
        RecipeError: it has edits that the map cannot know: of another kind or layer, or of mixed units; or they cancel out.
    """
    facts = stored.facts
    if recipe.model is not None and facts.model is not None and not recipe.model.matches(facts.model):
        raise RecipeMismatch(
            f"recipe {recipe.name!r} is for model {recipe.model.id}, the effect map for {facts.model.id}"
        )
    edits = [edit for edit in recipe.edits if isinstance(edit, Add) and edit.layer == facts.sae.layer]
    if not edits or len(edits) < len(recipe.edits):
        odd = sorted({f"{edit.kind} at layer {edit.layer}" for edit in recipe.edits if edit not in edits})
        raise RecipeError(
            f"recipe {recipe.name!r} has {', '.join(odd) or 'no edits'}; the map knows 'add' at layer {facts.sae.layer}"
        )
    units = {edit.unit for edit in edits}
    if len(units) > 1:
        raise RecipeError(f"recipe {recipe.name!r} mixes raw strengths with mean residual norms; give all in one unit")
    is_relative = units == {"residual_norm"}
    parts = [
        edit.vector.unit().tensor * edit.strength if is_relative else edit.vector.tensor * edit.strength
        for edit in edits
    ]
    total = torch.stack(parts).sum(0)
    if not bool(total.any()):
        raise RecipeError(f"the edits of recipe {recipe.name!r} cancel out; there is nothing to predict")
    return Predicted(stored.effect_map.predict(total), float(total.norm()), is_relative)
