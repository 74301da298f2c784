"""Keep, list, show, tag, download and delete recipes on a server. Paths and bodies, no connection."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from steersman.client.facts import Page, RecipeDetails, RecipeInfo
from steersman.client.flow import ask
from steersman.client.methods import Method
from steersman.client.steps import Call, Flow

if TYPE_CHECKING:
    from steersman.steering.recipe import Recipe

_ROOT = "/v1/recipes"


def upload(
    recipe: Recipe | Path | str, *, name: str | None = None, description: str | None = None, tags: Sequence[str] = ()
) -> Flow[RecipeInfo]:
    """Keep a recipe on the server.

    Args:
        recipe: a recipe, or the path of its JSON file.
        name: another name than its own; unique among yours.
        description: another than its own.
        tags: words to find it by.

    Raises:
        RecipeError: the file is no recipe.
        ApiError: it does not fit the server's model, the name is taken, or as of `Client.chat`.
    """
    from safetensors.torch import save

    from steersman.steering.recipe_file import load_recipe, to_wire

    facts, tensors = to_wire(load_recipe(Path(recipe)) if isinstance(recipe, str | Path) else recipe)
    body: dict[str, Any] = {"recipe": facts}
    if tensors:
        data = save(tensors)
        body |= {"tensors": base64.b64encode(data).decode(), "tensors_sha256": hashlib.sha256(data).hexdigest()}
    return (yield from _create(body, name, description, tags))


def from_features(
    name: str,
    features: Mapping[int, float],
    *,
    strength: float | None = None,
    description: str | None = None,
    tags: Sequence[str] = (),
) -> Flow[RecipeInfo]:
    """Keep a recipe made of SAE features.

    Args:
        name: unique among yours.
        features: weights by number; only their ratios and signs count.
        strength: length of what is added, in mean residual norms.
        description: in a sentence.
        tags: words to find it by.

    Raises:
        ApiError: as of `upload`.
    """
    body: dict[str, Any] = {"features": {str(feature): weight for feature, weight in features.items()}}
    if strength is not None:
        body["strength"] = strength
    return (yield from _create(body, name, description, tags))


def from_parts(
    name: str, parts: Mapping[str, float], *, description: str | None = None, tags: Sequence[str] = ()
) -> Flow[RecipeInfo]:
    """Keep the sum of recipes and traits, by id or name, each times a factor. Otherwise as `from_features`."""
    return (yield from _create({"parts": dict(parts)}, name, description, tags))


def list_recipes(*, limit: int = 20, offset: int = 0, tag: str | None = None) -> Flow[Page[RecipeInfo]]:
    """A page of your recipes, newest first.

    Args:
        limit: 1 to 100.
        offset: how many to pass over.
        tag: only those that have it.

    Raises:
        ApiError: as of `Client.chat`.
    """
    query: dict[str, str | int] = {"limit": limit, "offset": offset, **({} if tag is None else {"tag": tag})}
    read = Page[RecipeInfo].model_validate
    return (yield from ask(Call(method="GET", path=_ROOT, query=query, read=read, is_harmless=True)))


def get(recipe: str) -> Flow[RecipeDetails]:
    """One recipe by id or name, all but its vectors.

    Raises:
        ApiError: status 404 where there is none of yours; else as of `Client.chat`.
    """
    return (yield from ask(Call(method="GET", path=_at(recipe), read=RecipeDetails.model_validate, is_harmless=True)))


def download(recipe: str) -> Flow[Recipe]:
    """One recipe by id or name, whole, to be run or saved here. Errors as of `get`."""
    from steersman.steering.recipe_file import from_wire

    def read(data: bytes) -> Recipe:
        return from_wire(json.loads(data), {})

    path = f"{_at(recipe)}/file"
    query = {"format": "json"}
    return (yield from ask(Call(method="GET", path=path, query=query, read=read, is_harmless=True, is_raw=True)))


def export(recipe: str, file_format: Literal["safetensors", "gguf"], path: Path | str) -> Flow[Path]:
    """Write a recipe's file for other programs: one raw vector a layer, or a control vector for llama.cpp.

    Raises:
        ApiError: it does more than add; else as of `get`.
        StorageError: the disk refused.
    """
    from steersman.files import write_bytes

    query = {"format": file_format}
    call = Call(method="GET", path=f"{_at(recipe)}/file", query=query, read=bytes, is_harmless=True, is_raw=True)
    data = yield from ask(call)
    write_bytes(Path(path), data)
    return Path(path)


def tag(recipe: str, tags: Sequence[str]) -> Flow[RecipeInfo]:
    """Give a recipe these tags instead of those it has. Errors as of `get`."""
    body = {"tags": list(tags)}
    call = Call(method="PATCH", path=_at(recipe), body=body, read=RecipeInfo.model_validate, is_harmless=True)
    return (yield from ask(call))


def delete(recipe: str) -> Flow[None]:
    """Delete a recipe. Answers that are being written with it go on. Errors as of `get`."""
    yield from ask(Call(method="DELETE", path=_at(recipe), read=lambda _: None))


class RecipeMethods:
    """`client.recipes`."""

    upload = Method(upload)
    from_features = Method(from_features)
    from_parts = Method(from_parts)
    list = Method(list_recipes)
    get = Method(get)
    download = Method(download)
    export = Method(export)
    tag = Method(tag)
    delete = Method(delete)


def _at(recipe: str) -> str:
    return f"{_ROOT}/{quote(recipe, safe='')}"


def _create(body: dict[str, Any], name: str | None, description: str | None, tags: Sequence[str]) -> Flow[RecipeInfo]:
    more = {"name": name, "description": description}
    body = {**body, **{key: value for key, value in more.items() if value is not None}, "tags": list(tags)}
    return (yield from ask(Call(method="POST", path=_ROOT, body=body, read=RecipeInfo.model_validate)))
