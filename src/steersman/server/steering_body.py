"""What a request may say about its steering, checked as it comes in. Knows nothing of what the names in it stand for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator

from steersman.engine.guard import Mode
from steersman.server.closed import Closed
from steersman.server.recipe_wire import untrusted_recipe
from steersman.steering.recipe import Recipe
from steersman.steering.recipe_file import FORMAT

MOST_FACTOR = 10.0
"""Beyond 2 texts break on most models; beyond this nothing is left to be seen."""
_Name = Annotated[str, Field(min_length=1, max_length=200)]
_Factor = Annotated[float, Field(ge=-MOST_FACTOR, le=MOST_FACTOR, allow_inf_nan=False)]


class SteeringBody(Closed):
    """How a request is steered; what is named adds up."""

    model_config = ConfigDict(strict=True)

    recipe: _Name | None = Field(
        default=None, description="Id or name of one of your recipes, or name of a trait that ships."
    )
    recipes: Annotated[dict[_Name, _Factor], Field(max_length=32)] | None = Field(
        default=None, description="The same, several, each with its multiplier."
    )
    traits: Annotated[dict[_Name, _Factor], Field(max_length=64)] | None = Field(
        default=None, description="Multipliers of traits that ship; of those of a set, where one is named."
    )
    set: _Name | None = Field(default=None, description="Id of one of your sets; traits that are left out count 0.")
    edits: list[dict[str, Any]] | None = Field(
        default=None, max_length=256, description="Edits as in a recipe's file, vectors as lists of numbers."
    )
    abort: dict[str, Any] | None = Field(
        default=None, description="A condition as in a recipe's file, which ends the answer."
    )
    strength: _Factor = Field(default=1.0, description="Factor on all of the above.")
    mode: Literal["add", "replace"] = Field(default="add", description="What becomes of the server's default steering.")
    guard: Mode = Field(
        default="off", description="Watch for degenerate text: only note it, soften the steering, or stop."
    )

    @field_validator("edits")
    @classmethod
    def _check_edits(cls, value: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        if value is not None:
            inline_recipe(edits=value)
        return value

    @field_validator("abort")
    @classmethod
    def _check_abort(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None:
            inline_recipe(abort=value)
        return value


def inline_recipe(edits: Iterable[Mapping[str, Any]] = (), abort: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe that stands in a request.

    Raises:
        RecipeError: it is wrong; the message names the place.
    """
    facts = {"steersman_recipe": FORMAT, "name": "inline", "edits": [dict(edit) for edit in edits]}
    return untrusted_recipe(facts | ({"abort": dict(abort)} if abort is not None else {}))
