"""The tensors of a feature index as they are on disk, and back; and what such tensors cannot be. Knows nothing of files.

    on disk                                 in memory     rounding
    token ids, neighbours                   int32         none; uint16 on disk where all of them fit
    density, mean and max activation        float32       none
    context activations   uint8             float32       to 1/255 of the feature's largest; what fires stays above 0
    cosines               float16           float32       to 11 bits
    embeddings            int8 and a scale  float16       to 1/254 of the row's largest value

Embeddings come back as float16: half the memory of float32, more of its precision than bfloat16, and `embeddings @ query`
is bound by reading them. What was read once is written again without further rounding, embeddings aside.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steersman.errors import SaeError
from steersman.sae.index.facts import NO_TOKEN, FeatureIndex, IndexFacts, Label

_PLAIN = ("density", "mean_activation", "max_activation")
_TOKENS = ("context_tokens", "promoted", "suppressed")
_IDS = (*_TOKENS, "neighbours")
_EMBEDDINGS = ("label_embeddings", "context_embeddings")
_REQUIRED = {*_PLAIN, *_IDS, "context_activations", "cosines"}
_NARROW_MAX = (1 << 16) - 1
"""Stands for `NO_TOKEN` in 16 bits, so that ids must be below it."""
_LEVELS, _SIGNED_LEVELS = 255, 127
_MAX_SCALE = 65504 / _SIGNED_LEVELS
"""Above it a row has values that float16 does not hold."""
_ROWS_AT_ONCE = 1 << 11


def packed(index: FeatureIndex) -> dict[str, Tensor]:
    """The tensors to write.

    Raises:
        SaeError: the index holds NaN, ids that do not exist, or tensors that do not fit each other.
    """
    where = "this index"
    present = {name: value for name in index.__slots__ if isinstance(value := getattr(index, name), Tensor)}
    _check_shapes(present, len(index), where)
    _check_values(index, where, None)
    tensors = {name: getattr(index, name).to(torch.float32).contiguous() for name in _PLAIN}
    tensors |= {name: _narrowed(getattr(index, name)) for name in _IDS}
    tensors["cosines"] = index.cosines.to(torch.float16).contiguous()
    tensors["context_activations"] = _levels(index.context_activations, index.max_activation, where)
    for name in _EMBEDDINGS:
        if (rows := getattr(index, name)) is not None:
            tensors[name], tensors[f"{name}_scale"] = _signed_levels(rows)
    _check_finite(tensors, where)
    return tensors


def unpacked(
    tensors: dict[str, Tensor], facts: IndexFacts, labels: tuple[Label | None, ...], *, where: str, n_vocab: int | None
) -> FeatureIndex:
    """The index that tensors from disk stand for. `where` they are from is for messages; `n_vocab` as for `load_index`.

    Raises:
        SaeError: a tensor is missing, unknown, of another type or shape, or holds values that cannot be.
    """
    _check_packed(tensors, len(labels), where)
    made: dict[str, Any] = {name: tensors[name] for name in _PLAIN} | {name: _widened(tensors[name]) for name in _IDS}
    scale = tensors["max_activation"][:, None, None]
    # Divided first: the highest level is then the feature's largest activation, to the last bit.
    made["context_activations"] = tensors["context_activations"].float().div_(_LEVELS).mul_(scale)
    made["cosines"] = tensors["cosines"].float()
    for name in tensors.keys() & set(_EMBEDDINGS):
        made[name] = _from_levels(tensors[name], tensors[f"{name}_scale"])
    index = FeatureIndex(facts=facts, labels=labels, **made)
    _check_values(index, where, n_vocab)
    return index


def _dtypes(name: str) -> tuple[torch.dtype, ...]:
    if name in _IDS:
        return torch.uint16, torch.int32
    narrow = {"cosines": torch.float16, "context_activations": torch.uint8} | dict.fromkeys(_EMBEDDINGS, torch.int8)
    return (narrow.get(name, torch.float32),)


def _narrowed(ids: Tensor) -> Tensor:
    """Ids in 16 bits where they fit, `NO_TOKEN` becoming the largest number; else in 32."""
    if ids.numel() and int(ids.max()) >= _NARROW_MAX:
        return ids.to(torch.int32).contiguous()
    return torch.where(ids == NO_TOKEN, _NARROW_MAX, ids).to(torch.uint16).contiguous()


def _widened(ids: Tensor) -> Tensor:
    if ids.dtype == torch.int32:
        return ids
    wide = ids.to(torch.int32)
    return wide.masked_fill_(wide == _NARROW_MAX, NO_TOKEN)


def _levels(activations: Tensor, largest: Tensor, where: str) -> Tensor:
    """Activations in 255ths of the feature's largest; what fires at all is at least one."""
    levels = torch.empty(activations.shape, dtype=torch.uint8)
    for begin in range(0, len(levels), _ROWS_AT_ONCE):
        rows = slice(begin, begin + _ROWS_AT_ONCE)
        acts, top = activations[rows].float(), largest[rows, None, None].float()
        if not bool(((acts >= 0) & (acts <= top)).all()):  # NaN is not either.
            raise SaeError(
                f"{where}: context_activations do not lie between 0 and the feature's largest; build it again"
            )
        share = acts / top.clamp_min(torch.finfo(torch.float32).tiny)
        levels[rows] = torch.where(acts > 0, (share * _LEVELS).round_().clamp_min_(1), 0)
    return levels


def _signed_levels(rows: Tensor) -> tuple[Tensor, Tensor]:
    levels, scales = torch.empty(rows.shape, dtype=torch.int8), torch.empty(len(rows))
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[begin : begin + _ROWS_AT_ONCE].float()
        scale = part.abs().amax(1) / _SIGNED_LEVELS
        scales[begin : begin + len(part)] = scale
        levels[begin : begin + len(part)] = (part / torch.where(scale > 0, scale, 1)[:, None]).round_()
    return levels, scales


def _from_levels(levels: Tensor, scales: Tensor) -> Tensor:
    rows = torch.empty(levels.shape, dtype=torch.float16)
    for begin in range(0, len(rows), _ROWS_AT_ONCE):  # No second copy in float32.
        part = slice(begin, begin + _ROWS_AT_ONCE)
        rows[part] = levels[part].float() * scales[part, None]
    return rows


# --- what cannot be


def _check_packed(tensors: dict[str, Tensor], n: int, where: str) -> None:
    """Refuse tensors that are not those of an index, as they are on disk.

    Raises:
        SaeError: with the first that is wrong.
    """
    there = tensors.keys() & set(_EMBEDDINGS)
    expected = _REQUIRED | there | {f"{name}_scale" for name in there}
    if wrong := sorted(expected ^ tensors.keys()):
        problem = "lacks" if wrong[0] in expected else "holds an unknown"
        raise SaeError(f"{where} {problem} tensor {wrong[0]!r}; restore both files of this index")
    for name, tensor in tensors.items():
        wanted = _dtypes(name)
        if tensor.dtype not in wanted:
            raise SaeError(f"{where}: {name} is {tensor.dtype}, expected {wanted[0]}; restore both files")
    _check_shapes(tensors, n, where)
    _check_finite(tensors, where)


def _check_shapes(tensors: dict[str, Tensor], n: int, where: str) -> None:
    """Refuse tensors that do not fit each other.

    Raises:
        SaeError: with the tensor and both shapes.
    """
    contexts, lens, near = (tuple(tensors[name].shape[1:]) for name in ("context_tokens", "promoted", "neighbours"))
    expected: dict[str, tuple[int, ...]] = dict.fromkeys(_PLAIN, (n,))
    expected |= dict.fromkeys(("context_tokens", "context_activations"), (n, *contexts))
    expected |= dict.fromkeys(("promoted", "suppressed"), (n, *lens)) | dict.fromkeys(
        ("neighbours", "cosines"), (n, *near)
    )
    expected |= dict.fromkeys((f"{name}_scale" for name in _EMBEDDINGS), (n,))
    dimensions = {"context_tokens": 3, "promoted": 2, "neighbours": 2} | dict.fromkeys(_EMBEDDINGS, 2)
    for name, tensor in tensors.items():
        shape = expected.get(name, (n, *tensor.shape[1:]))
        if tuple(tensor.shape) != shape or tensor.ndim != dimensions.get(name, len(shape)):
            raise SaeError(f"{where}: {name} has shape {tuple(tensor.shape)}, expected {shape} for {n} features")


def _check_finite(packed: dict[str, Tensor], where: str) -> None:
    """Refuse numbers that are none. The small ones say it for all: of embeddings the scales.

    Raises:
        SaeError: with the tensor that holds them.
    """
    for name, tensor in packed.items():
        limit = _MAX_SCALE if name.endswith("_scale") else torch.inf
        if tensor.is_floating_point() and not bool((tensor.abs() < limit).all()):
            raise SaeError(
                f"{where}: {name.removesuffix('_scale')} holds values that are NaN or infinite; build it again"
            )


def _check_values(index: FeatureIndex, where: str, n_vocab: int | None) -> None:
    """Refuse ids that do not exist, and statistics that cannot be.

    Raises:
        SaeError: with the tensor that holds them.
    """
    limits = dict.fromkeys(_TOKENS, (0, n_vocab)) | {
        "context_tokens": (NO_TOKEN, n_vocab),
        "neighbours": (0, len(index)),
    }
    for name, (least, end) in limits.items():
        ids: Tensor = getattr(index, name)
        low, high = (int(ids.min()), int(ids.max())) if ids.numel() else (0, -1)
        if low < least or (end is not None and high >= end):
            wrong = low if low < least else high
            raise SaeError(f"{where}: {name} names {wrong}, which does not exist; build it again")
    for name in _PLAIN:
        most = 1.0 if name == "density" else torch.inf
        values: Tensor = getattr(index, name)
        if bool(((values < 0) | (values > most)).any()):
            raise SaeError(f"{where}: {name} holds values that are negative or too large; build it again")
