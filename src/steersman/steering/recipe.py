"""A recipe: the edits that steer one model, where they came from and what they were measured to do. Frozen data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import field

from pydantic import JsonValue

from steersman.errors import RecipeError, RecipeMismatch
from steersman.facts import fact
from steersman.models.language_model import LanguageModel, ModelRef
from steersman.sae.config import SaeRef
from steersman.steering.condition import Condition, leaves
from steersman.steering.edits import Edit, SaeEdit, scaled, width


@fact
class Recipe:
    """What to do to the residual stream, and the facts that make it reproducible.

    Recipes add (`a + b` applies both), scale (`0.5 * a`) and negate (`-a`). They are checked at birth; a recipe that exists
    is well formed.
    """

    name: str
    """Short, for people and model names."""
    edits: tuple[Edit, ...]
    """What is done; the order does not matter."""
    description: str = ""
    """The behaviour in words."""
    abort: Condition | None = None
    """End the answer at the first token where this holds."""
    model: ModelRef | None = None
    """The model it was made for; None fits any model of the same width."""
    sae: SaeRef | None = None
    """The SAE of its features. Its `weight` and `swap` edits use no other; where it holds nothing else, they fill it in."""
    method: str = "manual"
    """How the edits were found."""
    data: dict[str, JsonValue] = field(default_factory=dict)
    """What they were found from: sources, counts, seeds, settings."""
    evidence: dict[str, JsonValue] | None = None
    """What was measured, on which prompts, by which judge."""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise RecipeError("a recipe needs a name")
        if not self.edits and self.abort is None:
            raise RecipeError(f"recipe {self.name!r} has no edits; give at least one")
        if len(self.widths) > 1:
            raise RecipeError(
                f"recipe {self.name!r} mixes vectors of different models: {sorted(self.widths)} dimensions"
            )
        for ref in self.saes:
            if self.sae is not None and _identity(ref) != _identity(self.sae):
                raise RecipeError(
                    f"recipe {self.name!r} is for the SAE {_named(self.sae)}, but one of its edits uses {_named(ref)}; "
                    "leave the recipe's 'sae' out to mix SAEs"
                )
        if self.sae is None and len(self.saes) == 1 and all(isinstance(edit, SaeEdit) for edit in self.edits):
            object.__setattr__(self, "sae", self.saes[0])

    def __add__(self, other: Recipe) -> Recipe:
        """Both at once.

        Raises:
            RecipeMismatch: they were made for different models.
            RecipeError: both abort, on different conditions (combine those by hand with `AnyOf`).
        """
        if self.model and other.model and not self.model.matches(other.model):
            raise RecipeMismatch(f"{self.name!r} is for model {self.model.id}, {other.name!r} for {other.model.id}")
        if self.abort and other.abort and self.abort != other.abort:
            raise RecipeError("both recipes abort, on different conditions; join these with AnyOf in one recipe")
        return Recipe(
            name=f"{self.name}+{other.name}",
            edits=self.edits + other.edits,
            description="; ".join(text for text in (self.description, other.description) if text),
            abort=self.abort or other.abort,
            model=self.model or other.model,
            sae=self.sae if self.sae == other.sae else None,
            method="sum",
            data={"parts": [_origin(self), _origin(other)]},
        )

    def __mul__(self, factor: float) -> Recipe:
        """The same edits with every strength multiplied; the evidence does not carry over."""
        if not math.isfinite(factor):
            raise RecipeError(f"a recipe can be scaled by a finite number, not {factor}")
        edits = tuple(scaled(edit, factor) for edit in self.edits)
        before = self.data.get("scaled_by")
        total = before * factor if isinstance(before, int | float) else factor
        return dataclasses.replace(self, edits=edits, evidence=None, data={**self.data, "scaled_by": total})

    __rmul__ = __mul__

    def __neg__(self) -> Recipe:
        return self * -1.0

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that are edited or read."""
        layers = {edit.layer for edit in self.edits}
        layers |= {leaf.layer for condition in self.conditions for leaf in leaves(condition)}
        return tuple(sorted(layers))

    @property
    def widths(self) -> frozenset[int]:
        """`d_model` of all the vectors that are added or read; one number in a recipe that exists, or none."""
        read = {leaf.target.width for condition in self.conditions for leaf in leaves(condition)}
        return frozenset(read | {found for edit in self.edits if (found := width(edit)) is not None})

    @property
    def saes(self) -> tuple[SaeRef, ...]:
        """The SAEs that it cannot run without, each once: those of its `weight` and `swap` edits."""
        found = {_identity(edit.sae): edit.sae for edit in self.edits if isinstance(edit, SaeEdit)}
        return tuple(found.values())

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """All conditions in it, that of `abort` last."""
        found = [edit.when for edit in self.edits if edit.when is not None]
        return (*found, self.abort) if self.abort is not None else tuple(found)

    def check_fits(self, model: LanguageModel) -> None:
        """Refuse to steer a model that the recipe was not made for.

        Raises:
            RecipeMismatch: another model, another width, or layers that the model does not have.
        """
        if self.model is not None and not self.model.matches(model.ref):
            raise RecipeMismatch(
                f"recipe {self.name!r} was made for model {self.model.id} (weights {self.model.weights_hash[:8]}), not for "
                f"{model.name} (weights {model.ref.weights_hash[:8]}); load that model or fit the recipe again"
            )
        for found in sorted(self.widths - {model.d_model}):
            raise RecipeMismatch(
                f"recipe {self.name!r} has vectors of {found} dimensions; {model.name} has {model.d_model}"
            )
        for layer in self.layers:
            if layer >= model.n_layers:
                raise RecipeMismatch(
                    f"recipe {self.name!r} edits layer {layer}; {model.name} has layers 0 to {model.n_layers - 1}"
                )


def combine(recipes: Sequence[Recipe]) -> Recipe:
    """The sum of one or more recipes.

    Raises:
        RecipeError: no recipes, or some that do not go together.
    """
    if not recipes:
        raise RecipeError("nothing to combine; give at least one recipe")
    total = recipes[0]
    for recipe in recipes[1:]:
        total = total + recipe
    return total


def _origin(recipe: Recipe) -> dict[str, JsonValue]:
    return {"name": recipe.name, "method": recipe.method, "data": recipe.data}


def _identity(ref: SaeRef) -> tuple[int, str]:
    """What tells SAEs apart; the name is for people."""
    return ref.layer, ref.weights_hash


def _named(ref: SaeRef) -> str:
    return f"{ref.id!r} (layer {ref.layer}, weights {ref.weights_hash[:8]})"
