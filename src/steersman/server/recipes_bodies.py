"""What the recipe routes read and write. Knows nothing of the store or of what a recipe does."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator

from steersman.server.closed import Closed
from steersman.server.features_bodies import one_of
from steersman.steering.recipe import Recipe
from steersman.store.checks import NAME
from steersman.store.facts import RecipeRecord

MOST_FEATURES = 1024
MOST_PARTS = 32
DEFAULT_STRENGTH = 0.5
"""Of a recipe of features: half the mean residual norm, clearly seen and seldom too much."""

Name = Annotated[str, StringConstraints(pattern=NAME)]
FileFormat = Literal["json", "safetensors", "gguf"]
_Text = Annotated[str, StringConstraints(max_length=4000, pattern=r"^[^\x00]*$")]
_Tags = Annotated[list[Name], Field(max_length=32)]
_FeatureNumber = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")]
_Weight = Annotated[float, Field(ge=-1000, le=1000, allow_inf_nan=False)]
_Factor = Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)]


class RecipeBody(Closed):
    """A recipe to keep, from exactly one of: its facts (`recipe`), SAE features (`features`), other recipes (`parts`)."""

    model_config = ConfigDict(strict=True, json_schema_extra=one_of("recipe", "features", "parts"))

    recipe: dict[str, Any] | None = Field(
        default=None,
        description="A recipe's facts as in its file; vectors inline as lists of numbers, or in `tensors`.",
    )
    tensors: str | None = Field(
        default=None,
        max_length=72 << 20,
        description="With `recipe`: its safetensors file (float32 vectors by name) in base64.",
    )
    tensors_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$")] | None = Field(
        default=None, description="SHA-256 of that file, to be compared."
    )
    features: Annotated[dict[_FeatureNumber, _Weight], Field(min_length=1, max_length=MOST_FEATURES)] | None = Field(
        default=None, description="Weights of features of the server's SAE, by number; only their ratios count."
    )
    strength: _Factor | None = Field(
        default=None,
        description=f"With `features`: length of what is added, in mean residual norms; {DEFAULT_STRENGTH} by default.",
    )
    parts: Annotated[dict[Name, _Factor], Field(min_length=1, max_length=MOST_PARTS)] | None = Field(
        default=None, description="Factors on kept recipes (id or name) and traits, whose sum is kept."
    )
    name: Name | None = Field(default=None, description="By default that in `recipe`.")
    description: _Text | None = None
    tags: _Tags = Field(default_factory=list)

    @model_validator(mode="after")
    def _from_one_source(self) -> Self:
        given = [name for name in ("recipe", "features", "parts") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of 'recipe', 'features' and 'parts', not {' and '.join(given) or 'none of them'}"
            )
        if self.recipe is None and self.name is None:
            raise ValueError("'name' is missing; say what the recipe shall be called")
        for name, source in (("tensors", "recipe"), ("strength", "features")):
            if getattr(self, name) is not None and getattr(self, source) is None:
                raise ValueError(f"'{name}' belongs to '{source}'; leave it out")
        if self.tensors_sha256 is not None and self.tensors is None:
            raise ValueError("'tensors_sha256' belongs to 'tensors'; leave it out")
        return self


class TagsBody(Closed):
    """The tags that a recipe shall have, instead of those it has."""

    model_config = ConfigDict(strict=True)

    tags: _Tags


class RecipeOut(BaseModel):
    """A recipe as a list shows it."""

    id: str
    object: Literal["recipe"] = "recipe"
    name: str
    description: str
    method: str
    tags: list[str]
    created_at: int
    """Unix time in seconds."""
    evidence: dict[str, JsonValue] | None
    """What was measured, on which prompts, by which judge."""


class EditOut(BaseModel):
    """One edit of a recipe, without its vectors."""

    kind: str
    layer: int
    strength: float
    is_conditional: bool
    """Whether it waits for something."""


class RecipeWhole(RecipeOut):
    """One recipe, all but its vectors; those are in its file."""

    edits: list[EditOut]
    aborts: bool
    """Whether it may end an answer."""
    model: dict[str, JsonValue] | None
    """What it was made for; null fits any model of its width."""
    sae: dict[str, JsonValue] | None
    data: dict[str, JsonValue]
    """What it was found from."""


class RecipeList(BaseModel):
    """A page of recipes, newest first."""

    object: Literal["list"] = "list"
    data: list[RecipeOut]
    total: int
    """In all, on every page."""
    limit: int
    offset: int


class RecipeGone(BaseModel):
    """What was deleted."""

    id: str
    object: Literal["recipe"] = "recipe"
    deleted: Literal[True] = True


def shown(record: RecipeRecord) -> RecipeOut:
    """A record as it goes out."""
    return RecipeOut(**_facts(record))


def shown_whole(record: RecipeRecord, recipe: Recipe) -> RecipeWhole:
    """A record and its recipe as they go out."""
    return RecipeWhole(
        **_facts(record),
        edits=[
            EditOut(kind=edit.kind, layer=edit.layer, strength=edit.strength, is_conditional=edit.when is not None)
            for edit in recipe.edits
        ],
        aborts=recipe.abort is not None,
        model=None
        if recipe.model is None
        else {
            "id": recipe.model.id,
            "config_hash": recipe.model.config_hash,
            "weights_hash": recipe.model.weights_hash,
        },
        sae=None
        if recipe.sae is None
        else {"id": recipe.sae.id, "layer": recipe.sae.layer, "weights_hash": recipe.sae.weights_hash},
        data=recipe.data,
    )


def _facts(record: RecipeRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "name": record.name,
        "description": record.description,
        "method": record.method,
        "tags": list(record.tags),
        "created_at": int(record.created_at.timestamp()),
        "evidence": record.evidence,
    }
