"""Carry a recipe to other programs, as a llama.cpp control vector or as one safetensors tensor a layer, and back.

Both formats hold one fixed vector a layer, added at every token. So a recipe of plain `add` edits can be carried; all other
edits are refused by name. Vectors leave in raw units, strengths folded in, those at one layer summed.

**Layers.** In a control vector `direction.{N}` belongs to decoder block N, counted from 0: it is our layer N, unshifted. The
path in llama.cpp: `common_control_vector_load_one` (common/common.cpp) puts `direction.N` at row N - 1 of a buffer without
a row for block 0, and refuses `direction.0`; `llama_adapter_cvec::apply` (src/llama-adapter.cpp) gives row N - 1 to block N;
each model's graph (src/models/*.cpp) calls `build_cvec(cur, il)` on the output of block il, its residual added. repeng
counts the same way. Block 0 cannot be steered.

**Tokens.** llama.cpp adds the vector at every token, the first included. Our edits leave the first token alone unless
`where.first_token` is set; a control vector cannot say so. Only a recipe with `first_token=True` is steered alike in both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors

from steersman.errors import RecipeError, RecipeMismatch
from steersman.files import replacing, write_bytes
from steersman.models.residuals import ModelProfile
from steersman.steering.edits import Add, Edit
from steersman.steering.recipe import Recipe
from steersman.steering.recipe_file import from_wire, to_wire
from steersman.steering.stacks import AddStack
from steersman.steering.vector import Vector
from steersman.steering.where import Constant, Where

_ARCHITECTURE = "controlvector"
_HINT = f"{_ARCHITECTURE}.model_hint"
_DIRECTION = "direction."
_LAYER = "layer."
_FORMAT = "steersman-vectors"
_RECIPE_FORMAT = "steersman-recipe"
_CONVENTION = "layer.{i} is added to the output of decoder block i, counted from 0"
# What the reader of the gguf package lets through on files that are cut off or altered.
_DAMAGE = (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError)


def raw_vectors(recipe: Recipe, profile: ModelProfile) -> dict[int, Vector]:
    """What the recipe adds to the residual stream at each layer, in raw units; layers where it adds up to 0 are left out.

    Raises:
        RecipeError: it does more than add, not at every token, or nothing at all; the message names the edit.
        RecipeMismatch: it was made for another model than the profile, or edits a layer that the model does not have.
    """
    _check_profile(recipe, profile)
    by_layer: dict[int, list[tuple[int, Add]]] = {}
    for index, edit in enumerate(recipe.edits):
        by_layer.setdefault(edit.layer, []).append((0, _plain_add(recipe, index, edit)))
    if recipe.abort is not None:
        raise RecipeError(f"recipe {recipe.name!r} cannot be exported: its 'abort' is a condition; leave it out")
    vectors = {}
    for layer, adds in sorted(by_layer.items()):
        # Resolved by the code that steers, so that units mean the same in both places.
        total = AddStack(adds, profile.mean_norms[layer], torch.device("cpu")).vectors.sum(0)
        if not torch.isfinite(total).all():
            raise RecipeError(f"recipe {recipe.name!r} is too strong for float32 at layer {layer}; scale it down")
        if total.any():
            vectors[layer] = Vector(total)
    if not vectors:
        raise RecipeError(f"recipe {recipe.name!r} adds up to nothing; there is no vector to export")
    return vectors


def to_gguf(recipe: Recipe, profile: ModelProfile, n_layers: int, path: Path, model_hint: str) -> None:
    """Write the recipe as a control vector that llama.cpp (`--control-vector`) and repeng read.

    Args:
        recipe: plain `add` edits at layers 1 and up; see the module for what becomes of the first token.
        profile: of the model it steers; turns strengths into raw units.
        n_layers: number of decoder blocks of the model.
        path: file to write, whole or not at all.
        model_hint: the model's architecture, for people and repeng (`llama`); llama.cpp does not read it.

    Raises:
        RecipeError: the recipe cannot be expressed as a control vector; the message names the edit.
        RecipeMismatch: it was made for another model than the profile, or edits a layer that the model does not have.
        StorageError: the disk refused.
    """
    if n_layers != len(profile.mean_norms):
        raise RecipeMismatch(
            f"the profile has {len(profile.mean_norms)} layers, the model {n_layers}; measure it again"
        )
    vectors = raw_vectors(recipe, profile)
    if 0 in vectors:
        index = next(index for index, edit in enumerate(recipe.edits) if edit.layer == 0)
        raise RecipeError(
            f"{_place(recipe, index)} cannot be a control vector: llama.cpp steers layers 1 to {n_layers - 1}, never "
            "layer 0; use another layer or export to safetensors"
        )
    facts = {"general.name": recipe.name, "general.description": recipe.description, _HINT: model_hint}
    with replacing(path) as aside:
        _write_gguf(aside, facts, vectors)


def from_gguf(path: Path, *, first_token: bool = False) -> Recipe:
    """Read a control vector, by steersman, repeng or llama.cpp, as a recipe in raw units that fits any model of its width.

    Args:
        path: the file.
        first_token: also edit the first token of a sequence, as llama.cpp does; by default it is left alone.

    Raises:
        RecipeError: no such file, not a control vector, damaged, or with tensors that llama.cpp would refuse.
    """
    try:
        facts, vectors = _read_gguf(path)
    except OSError as error:
        raise RecipeError(f"cannot read {path}: {error.strerror or error}") from error
    except RecipeError as error:
        raise RecipeError(f"{path} is not a control vector that can be used: {error}") from error
    except _DAMAGE as error:
        raise RecipeError(f"{path} is no GGUF file, or damaged ({error}); export or download it again") from error
    if not vectors:
        raise RecipeError(f"{path} is not a control vector that can be used: all its directions are zero")
    where = Where(first_token=first_token)
    return Recipe(
        name=facts["general.name"] or path.stem,
        edits=tuple(Add(layer=layer, vector=vectors[layer], unit="raw", where=where) for layer in sorted(vectors)),
        description=facts["general.description"],
        method="import",
        data={"file": path.name, "model_hint": facts[_HINT]},
    )


def to_safetensors(recipe: Recipe, profile: ModelProfile, path: Path) -> None:
    """Write float32 tensors `layer.{i}` of shape (d_model,), raw, and as metadata what they are and the recipe's facts.

    Raises:
        RecipeError: the recipe does not add one vector at every token of a layer (the message names the edit), or `path`
            holds the tensors of a saved recipe, which would be lost.
        RecipeMismatch: it was made for another model than the profile, or edits a layer that the model does not have.
        StorageError: the disk refused.
    """
    vectors = raw_vectors(recipe, profile)
    # `save_recipe` puts a recipe's tensors beside it under the same name, where an export is easily aimed at.
    with contextlib.suppress(OSError, SafetensorError), safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get("format") == _RECIPE_FORMAT:
            raise RecipeError(f"{path} holds the tensors of a recipe; export to a file of another name")
    first_token = {edit.where.first_token for edit in recipe.edits}
    if len(first_token) > 1:
        raise RecipeError(f"recipe {recipe.name!r} cannot be exported: its edits disagree on 'where.first_token'")
    facts, _ = to_wire(recipe)
    metadata = {
        "format": _FORMAT,
        "layer_convention": _CONVENTION,
        "unit": "raw",
        "strength": "folded in",
        "first_token": "edited" if first_token == {True} else "not edited",
        "weights_hash": profile.weights_hash,
        "recipe": json.dumps(facts, ensure_ascii=False),
    }
    if recipe.model is not None:
        metadata |= {"model_id": recipe.model.id, "config_hash": recipe.model.config_hash}
    tensors = {f"{_LAYER}{layer}": vector.tensor for layer, vector in vectors.items()}
    write_bytes(path, save_tensors(tensors, metadata=metadata))


def from_safetensors(path: Path) -> Recipe:
    """Read what `to_safetensors` wrote: the same recipe, its edits now one raw `add` a layer.

    Raises:
        RecipeError: no such file, damaged, or not written by `to_safetensors`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except OSError as error:
        raise RecipeError(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, ValueError) as error:
        raise RecipeError(f"{path} is damaged ({error}); export the recipe again") from error
    if metadata.get("format") != _FORMAT:
        raise RecipeError(f"{path} is not an exported recipe (no format {_FORMAT!r} in its metadata)")
    where = {"first_token": metadata.get("first_token") == "edited"}
    try:
        facts = json.loads(metadata.get("recipe", ""))
        vectors = {_index(name, _LAYER): Vector(tensor) for name, tensor in tensors.items()}
        facts["edits"] = [
            {"kind": "add", "layer": layer, "vector": vector.key, "unit": "raw", "where": where}
            for layer, vector in sorted(vectors.items())
        ]
        return from_wire(facts, {vector.key: vector.tensor for vector in vectors.values()})
    except (RecipeError, ValueError, TypeError) as error:
        raise RecipeError(f"{path} is not an exported recipe: {error}") from error


def _check_profile(recipe: Recipe, profile: ModelProfile) -> None:
    if recipe.model is not None and recipe.model.weights_hash != profile.weights_hash:
        raise RecipeMismatch(
            f"recipe {recipe.name!r} was made for model {recipe.model.id} (weights {recipe.model.weights_hash[:8]}), the "
            f"profile is of another (weights {profile.weights_hash[:8]}); load that model"
        )
    for layer in recipe.layers:
        if layer >= len(profile.mean_norms):
            raise RecipeMismatch(
                f"recipe {recipe.name!r} edits layer {layer}; the model has layers 0 to {len(profile.mean_norms) - 1}"
            )


def _plain_add(recipe: Recipe, index: int, edit: Edit) -> Add:
    """The edit, if it adds one vector at every token."""
    if not isinstance(edit, Add):
        obstacle = f"what {edit.kind} changes depends on the residual stream, and only a fixed vector can be added"
    elif dataclasses.replace(edit.where, first_token=False) != Where():
        obstacle = "the vector is added at every token; leave 'where' out"
    elif edit.schedule != Constant():
        obstacle = f"the vector is added at full strength throughout; leave the {edit.schedule.kind} 'schedule' out"
    elif edit.when is not None:
        obstacle = "the vector is added unconditionally; leave 'when' out"
    else:
        return edit
    raise RecipeError(f"{_place(recipe, index)} cannot be exported: {obstacle}")


def _place(recipe: Recipe, index: int) -> str:
    edit = recipe.edits[index]
    return f"recipe {recipe.name!r}: edits.{index} ({edit.kind} at layer {edit.layer})"


def _index(name: str, prefix: str) -> int:
    """The number in a tensor's name, written as we write it."""
    number = name.removeprefix(prefix)
    if not (name.startswith(prefix) and number.isascii() and number.isdecimal() and number == str(int(number))):
        raise RecipeError(f"tensor {name[:64]!r} is not named '{prefix}' and a number")
    return int(number)


def _write_gguf(path: Path, facts: dict[str, str], vectors: dict[int, Vector]) -> None:
    from gguf import GGUFWriter

    tensors = {layer: vector.tensor.numpy().astype("<f4") for layer, vector in vectors.items()}
    writer = GGUFWriter(path, _ARCHITECTURE)
    try:
        for key, value in facts.items():
            writer.add_string(key, value)
        writer.add_uint32(f"{_ARCHITECTURE}.layer_count", len(tensors))
        for layer, tensor in tensors.items():
            writer.add_tensor_info(f"{_DIRECTION}{layer}", tensor.shape, tensor.dtype, tensor.nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    # The writer would use numpy's tofile here, which on a full disk loses the reason or does not complain at all.
    with path.open("ab") as file:
        _pad(file, writer.data_alignment)
        for tensor in tensors.values():
            file.write(tensor.tobytes())
            _pad(file, writer.data_alignment)


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))


def _read_gguf(path: Path) -> tuple[dict[str, str], dict[int, Vector]]:
    """Metadata and directions by layer, without those that are zero."""
    from gguf import GGMLQuantizationType, GGUFReader

    reader = GGUFReader(path)
    facts = {key: _text(reader, key) for key in ("general.architecture", "general.name", "general.description", _HINT)}
    if facts["general.architecture"] != _ARCHITECTURE:
        raise RecipeError(f"its architecture is {facts['general.architecture'][:40]!r}, not {_ARCHITECTURE!r}")
    vectors: dict[int, Vector] = {}
    for tensor in reader.tensors:
        layer = _index(tensor.name, _DIRECTION)
        if tensor.tensor_type != GGMLQuantizationType.F32 or len(tensor.shape) != 1:
            raise RecipeError(f"tensor {tensor.name} is no one-dimensional F32; llama.cpp would refuse it too")
        values = torch.tensor(tensor.data.astype("<f4"))
        if values.any():
            vectors[layer] = Vector(values)
    return facts, vectors


def _text(reader: Any, key: str) -> str:
    """A string of the metadata, empty where there is none."""
    field = reader.get_field(key)
    value = field.contents() if field is not None else ""
    return value if isinstance(value, str) else ""
