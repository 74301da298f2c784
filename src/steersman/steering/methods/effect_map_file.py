"""Keep effect maps: one safetensors file that names its SAE, its model and what was measured; and read the published ones.

M is kept in float32, bfloat16, or as whole numbers of eight bits with one scale a feature; everything computes in float32.
`schalnev/sae-ts-effects` on the Hugging Face hub holds adapters (a state dict of `W` and `b`) and measured effects (`features`,
`effects`) as PyTorch files, which are read without unpickling anything but tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import JsonValue, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from steersman.errors import DataError, SaeError, did_you_mean
from steersman.facts import fact
from steersman.files import write_bytes
from steersman.intervals import Interval
from steersman.models.language_model import ModelRef
from steersman.sae.config import SaeRef
from steersman.sae.importers.raw import read_state
from steersman.steering.methods.effect_map import EffectMap

FORMAT = 1
MAP_FILE = "effects/effects.safetensors"
"""Where an SAE's own folder keeps its map."""
_KEY, _HASH = "steersman_effect_map", "tensors_sha256"
_PUBLISHED = {"adapter": ("W", "b"), "effects": ("features", "effects")}

Store = Literal["float32", "bfloat16", "int8"]


@fact
class EffectMapFacts:
    """What an effect map is of, and how good it is."""

    format: int = FORMAT
    sae: SaeRef
    """Whose features it predicts; its layer is where vectors are added."""
    model: ModelRef | None = None
    vectors: dict[str, int]
    """How many it was fitted to, by kind."""
    penalty: float
    """Of the ridge regression, chosen without the vectors of `r_squared`."""
    strength: float
    """Median strength of the measured vectors, in mean residual norms: what predictions hold for."""
    r_squared: Interval
    """On held-out vectors."""
    r_squared_by_kind: dict[str, Interval]
    noise_ceiling: float | None = None
    """The largest share of the held-out variance that any map could explain, as samples are few; None where not known."""
    data: dict[str, JsonValue]
    """What was measured, and how."""


class StoredMap(NamedTuple):
    """A map and what is known of it."""

    effect_map: EffectMap
    facts: EffectMapFacts


class PublishedEffects(NamedTuple):
    """Measured effects of the paper."""

    vectors: Float[Tensor, "n d_model"]
    """As they were added: direction times scale."""
    effects: Float[Tensor, "n d_sae"]


def save_effect_map(effect_map: EffectMap, facts: EffectMapFacts, path: Path, *, store: Store = "int8") -> None:
    """Write a map, whole or not at all.

    Raises:
        StorageError: the disk refused.
    """
    tensors = narrowed(effect_map, store)
    metadata = {_KEY: _adapter().dump_json(facts).decode(), _HASH: _digest(tensors), "format": "pt"}
    write_bytes(path, save(tensors, metadata=metadata))


def load_effect_map(path: Path, sae: SaeRef | None = None) -> StoredMap:
    """Read a map written by `save_effect_map`.

    Args:
        path: the file.
        sae: the SAE that it must be of; None takes any.

    Raises:
        SaeError: it is of another SAE.
        DataError: no such file, not an effect map, damaged, or of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError as error:
        raise DataError(f"there is no effect map at {path}; fit one: steersman effects measure, then fit") from error
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} is no effect map ({error}); fit one: steersman effects fit") from error
    facts = _facts(path, metadata)
    if sae is not None and (facts.sae.layer, facts.sae.weights_hash) != (sae.layer, sae.weights_hash):
        raise SaeError(
            f"{path} holds effects of another SAE ({facts.sae.id!r}, layer {facts.sae.layer}, weights "
            f"{facts.sae.weights_hash[:8]}) than {sae.id!r} (layer {sae.layer}, weights {sae.weights_hash[:8]}); "
            "measure this one's: steersman effects measure"
        )
    if _digest(tensors) != metadata.get(_HASH):
        raise DataError(f"{path} is damaged; restore it, or fit it again")
    return StoredMap(widened(tensors), facts)


def narrowed(effect_map: EffectMap, store: Store) -> dict[str, Tensor]:
    """The tensors that a map is kept as; `widened` gives back what they stand for."""
    weights, bias = effect_map.weights.cpu().contiguous(), effect_map.bias.cpu().float().contiguous()
    match store:
        case "float32":
            return {"weights": weights.float(), "bias": bias}
        case "bfloat16":
            return {"weights": weights.bfloat16(), "bias": bias}
        case "int8":
            scale = weights.abs().amax(0).clamp(min=1e-30) / 127
            return {"weights": (weights / scale).round().to(torch.int8), "scale": scale, "bias": bias}
    raise DataError(f"a map is kept as float32, bfloat16 or int8, not {store!r}")


def widened(tensors: Mapping[str, Tensor]) -> EffectMap:
    """The map that stored tensors stand for, in float32.

    Raises:
        DataError: tensors are missing, or do not fit.
    """
    if not {"weights", "bias"} <= tensors.keys():
        raise DataError("an effect map holds the tensors 'weights' and 'bias'; fit it again")
    weights = tensors["weights"].float()
    if "scale" in tensors:
        if tensors["scale"].shape != weights.shape[1:]:
            raise DataError("the scales of the effect map do not fit its features; fit it again")
        weights = weights * tensors["scale"]
    return EffectMap(weights, tensors["bias"].float())


def read_published_adapter(path: Path) -> EffectMap:
    """A linear adapter of the paper: a state dict of `W` (d_model, d_sae) and `b` (d_sae).

    Raises:
        SaeError: no such file, damaged, or anything in it but tensors and plain values.
        DataError: other tensors than those.
    """
    found = _published(path, "adapter")
    return EffectMap(found["W"].float(), found["b"].float())


def read_published_effects(path: Path) -> PublishedEffects:
    """Measured effects of the paper: `features` (n, d_model), direction times scale, and `effects` (n, d_sae).

    Raises:
        SaeError: no such file, damaged, or anything in it but tensors and plain values.
        DataError: other tensors than those.
    """
    found = _published(path, "effects")
    vectors, effects = found["features"], found["effects"]
    if vectors.ndim != 2 or effects.ndim != 2 or len(vectors) != len(effects):
        raise DataError(
            f"{path}: 'features' {tuple(vectors.shape)} and 'effects' {tuple(effects.shape)} do not go together"
        )
    return PublishedEffects(vectors, effects)


def _published(path: Path, what: str) -> dict[str, Tensor]:
    names = _PUBLISHED[what]
    found = read_state(path)
    if any(not isinstance(found.get(name), Tensor) for name in names):
        raise DataError(
            f"{path} is no published {what} file: it holds {', '.join(sorted(map(str, found))[:6]) or 'nothing'}, "
            f"where {' and '.join(map(repr, names))} are wanted"
        )
    return {name: found[name].detach() for name in names}


@cache
def _adapter() -> TypeAdapter[EffectMapFacts]:
    return TypeAdapter(EffectMapFacts)


def _facts(path: Path, metadata: Mapping[str, str]) -> EffectMapFacts:
    if _KEY not in metadata:
        raise DataError(f"{path} is a safetensors file, but no effect map; fit one: steersman effects fit")
    try:
        version = json.loads(metadata[_KEY]).get("format")
        if version != FORMAT:
            raise DataError(
                f"{path} is not of effect map format {FORMAT} (it says {version!r}); is steersman up to date?"
            )
        return _adapter().validate_json(metadata[_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][-1]) if first["loc"] else ""
        hint = did_you_mean(name, EffectMapFacts.__dataclass_fields__)
        raise DataError(f"{path} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}{hint}") from error
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path} is damaged: its facts are no JSON object ({error})") from error


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
