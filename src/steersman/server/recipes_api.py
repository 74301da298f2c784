"""The recipe routes: keep, list, show, tag, delete, and download for steersman and other programs.

Knows nothing of how recipes are stored, nor of what goes over the wire (`recipes_bodies`, `recipe_wire`).
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi import Path as InPath
from pydantic import JsonValue

from steersman.errors import NotFound, RecipeError
from steersman.files import storage_errors
from steersman.models.blocks import text_config
from steersman.server.auth import Caller, needs
from steersman.server.context import Context, Deps
from steersman.server.errors import ERRORS
from steersman.server.feature_lookup import FeatureLookup
from steersman.server.features_api import Features
from steersman.server.recipe_wire import MOST_EDITS, inline, untrusted_recipe, untrusted_tensors
from steersman.server.recipes_bodies import (
    DEFAULT_STRENGTH,
    FileFormat,
    RecipeBody,
    RecipeGone,
    RecipeList,
    RecipeOut,
    RecipeWhole,
    TagsBody,
    shown,
    shown_whole,
)
from steersman.steering.export import to_gguf, to_safetensors
from steersman.steering.recipe import Recipe, combine
from steersman.steering.traits import load_trait
from steersman.store.checks import NAME

router = APIRouter(prefix="/v1/recipes", tags=["recipes"], responses={**ERRORS})

_Reader = Annotated[Caller, needs("read")]
_Trainer = Annotated[Caller, needs("train")]
_Id = Annotated[str, InPath(pattern=NAME, description="Id or name of one of your recipes.")]
_FILE = {
    "description": "The file.",
    "content": {"application/json": {"schema": {"type": "object"}}, "application/octet-stream": {"schema": {}}},
}


@router.post("", operation_id="create_recipe", status_code=201, summary="Keep a recipe")
def create_recipe(caller: _Trainer, deps: Deps, features: Features, body: RecipeBody) -> RecipeOut:
    """Keep a recipe made from its facts, from SAE features with weights, or as a sum of kept recipes and traits."""
    recipe = _recipe_of(body, caller.owner, deps, features)
    recipe = dataclasses.replace(
        recipe,
        name=recipe.name if body.name is None else body.name,
        description=recipe.description if body.description is None else body.description,
    )
    # What could never run is not kept: another model, or an SAE that is not here.
    recipe.check_fits(deps.engine.model)
    deps.engine.saes_for(recipe)
    return shown(deps.store.recipes.add(caller.owner, recipe, tags=tuple(body.tags)))


@router.get("", operation_id="list_recipes", summary="Your recipes")
def list_recipes(
    caller: _Reader,
    deps: Deps,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
    tag: Annotated[str | None, Query(pattern=NAME, description="Only those with this tag.")] = None,
) -> RecipeList:
    """A page of your recipes, newest first."""
    records, total = deps.store.recipes.list(caller.owner, limit=limit, offset=offset, tag=tag)
    return RecipeList(data=[shown(record) for record in records], total=total, limit=limit, offset=offset)


@router.get("/{recipe_id}", operation_id="get_recipe", summary="One recipe")
def get_recipe(caller: _Reader, deps: Deps, recipe_id: _Id) -> RecipeWhole:
    """All that is known of one recipe but its vectors."""
    record = deps.store.recipes.get(caller.owner, recipe_id)
    return shown_whole(record, deps.store.recipes.load(caller.owner, record.id))


@router.get(
    "/{recipe_id}/file",
    operation_id="download_recipe",
    summary="Download a recipe",
    response_class=Response,
    responses={200: _FILE},
)
def download_recipe(
    caller: _Reader,
    deps: Deps,
    recipe_id: _Id,
    file_format: Annotated[
        FileFormat,
        Query(
            alias="format",
            description="`json`: the recipe itself, vectors inline; `safetensors`: one raw vector a layer; `gguf`: a control "
            "vector for llama.cpp. The last two carry additive edits only.",
        ),
    ] = "json",
) -> Response:
    """The recipe as a file: for steersman (`json`, which can be sent back as it is), or exported for other programs."""
    record = deps.store.recipes.get(caller.owner, recipe_id)
    recipe = deps.store.recipes.load(caller.owner, record.id)
    data = json.dumps(inline(recipe)).encode() if file_format == "json" else _exported(recipe, file_format, deps)
    kind = "application/json" if file_format == "json" else "application/octet-stream"
    headers = {"Content-Disposition": f'attachment; filename="{record.name}.{file_format}"'}
    return Response(data, media_type=kind, headers=headers)


@router.patch("/{recipe_id}", operation_id="tag_recipe", summary="Change a recipe's tags")
def tag_recipe(caller: _Trainer, deps: Deps, recipe_id: _Id, body: TagsBody) -> RecipeOut:
    """Give a recipe these tags instead of those it has."""
    return shown(deps.store.recipes.tag(caller.owner, recipe_id, tuple(body.tags)))


@router.delete("/{recipe_id}", operation_id="delete_recipe", summary="Delete a recipe")
def delete_recipe(caller: _Trainer, deps: Deps, recipe_id: _Id) -> RecipeGone:
    """Delete a recipe. Answers that are being written with it go on."""
    record = deps.store.recipes.get(caller.owner, recipe_id)
    deps.store.recipes.delete(caller.owner, record.id)
    return RecipeGone(id=record.id)


def _recipe_of(body: RecipeBody, owner: str, deps: Context, features: FeatureLookup) -> Recipe:
    """The recipe that a body describes."""
    if body.recipe is not None:
        tensors = None if body.tensors is None else untrusted_tensors(body.tensors, body.tensors_sha256)
        facts = body.recipe if body.name is None else {**body.recipe, "name": body.name}
        return untrusted_recipe(facts, tensors)
    if body.features is not None:
        weights = {int(feature): weight for feature, weight in body.features.items()}
        if len(weights) < len(body.features):
            raise RecipeError("a feature is named twice, with and without leading zeros; name each once")
        strength = DEFAULT_STRENGTH if body.strength is None else body.strength
        edit = features.edit(weights, strength)
        return Recipe(
            name=str(body.name),
            edits=(edit,),
            model=deps.engine.model.ref,
            sae=features.shelf.ref,
            method="features",
            data={"features": {str(feature): weight for feature, weight in weights.items()}},
        )
    return _sum(str(body.name), body.parts or {}, owner, deps)


def _sum(name: str, parts: Mapping[str, float], owner: str, deps: Context) -> Recipe:
    """The sum of kept recipes and traits, each times its factor."""
    loaded = [(part, _load(part, owner, deps), factor) for part, factor in parts.items()]
    total = combine([factor * recipe for _, recipe, factor in loaded])
    if len(total.edits) > MOST_EDITS:
        raise RecipeError(f"together the parts have {len(total.edits)} edits; {MOST_EDITS} are the most")
    origins: list[JsonValue] = [
        {"recipe": part, "name": recipe.name, "factor": factor, "method": recipe.method}
        for part, recipe, factor in loaded
    ]
    return dataclasses.replace(total, name=name, data={"parts": origins}, method="sum", evidence=None)


def _load(part: str, owner: str, deps: Context) -> Recipe:
    """One of the caller's recipes by id or name, else a trait by its name."""
    try:
        return deps.store.recipes.load(owner, part)
    except NotFound as missing:
        try:
            return load_trait(part)
        except NotFound:
            raise missing from None


def _exported(recipe: Recipe, file_format: FileFormat, deps: Context) -> bytes:
    """The recipe as a file for other programs."""
    engine = deps.engine
    place = deps.store.folder
    with storage_errors(place), tempfile.TemporaryDirectory(dir=place) as folder:
        path = Path(folder) / "recipe"
        if file_format == "gguf":
            hint = str(text_config(engine.model.hf).model_type)
            to_gguf(recipe, engine.profile, engine.model.n_layers, path, hint)
        else:
            to_safetensors(recipe, engine.profile, path)
        return path.read_bytes()
