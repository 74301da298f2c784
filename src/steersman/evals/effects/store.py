"""Keep measured effects: a folder of shards and the index that names them. Knows nothing of how they were measured.

A shard is one safetensors file with a row a vector: `number`, `kind`, `features` (-1 for none), `vectors` (unit), `strengths`
(mean residual norms), `reached`, `noise` (variance of the measured effect through sampling, summed over features; NaN where
unknown), and `effects` (d_sae) in float16. `effects.json` names the shards that are whole; nothing else in the folder counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from steersman.errors import DataError, SaeError
from steersman.evals.effects.facts import EffectSettings
from steersman.facts import fact
from steersman.files import write_bytes
from steersman.models.language_model import ModelRef
from steersman.sae.config import SaeRef

INDEX = "effects.json"
_BASELINE = "baseline.safetensors"
_FORMAT = 1


@fact
class EffectShard:
    """One file of effects."""

    file: str
    numbers: tuple[int, ...]
    """Which vectors it holds."""


@fact
class EffectIndex:
    """What is in a folder of effects, and how it was measured."""

    steersman_effects: int = _FORMAT
    model: ModelRef
    sae: SaeRef
    d_model: int
    d_sae: int
    mean_norm: float
    """What a strength of 1.0 means at the SAE's layer."""
    settings: EffectSettings
    baseline_cross_entropy: float
    """Nats per token on plain text, unsteered."""
    shards: tuple[EffectShard, ...] = ()
    failed: tuple[int, ...] = ()
    """Vectors under which the model's output was no number: gaps, not zeros."""


class Effects(NamedTuple):
    """Measured vectors, in the order of their numbers."""

    number: Int[Tensor, " n"]
    kind: Int[Tensor, " n"]
    """Place in `vectors.KINDS`."""
    features: Int[Tensor, "n 2"]
    vectors: Float[Tensor, "n d_model"]
    strengths: Float[Tensor, " n"]
    reached: Bool[Tensor, " n"]
    noise: Float[Tensor, " n"]
    effects: Float[Tensor, "n d_sae"]
    """Float16."""

    def part(self, rows: Tensor) -> Effects:
        """Some of the vectors."""
        return Effects(*(tensor[rows] for tensor in self))


@dataclass(frozen=True, slots=True)
class EffectStore:
    """A folder of measured effects."""

    folder: Path
    index: EffectIndex

    @classmethod
    def begin(cls, folder: Path, fresh: EffectIndex) -> EffectStore:
        """The folder's store where it was begun with the same facts as `fresh`, else an empty one, not yet on disk.

        Raises:
            SaeError: the folder holds effects of another SAE.
            DataError: it holds effects of another model, or measured in another way.
        """
        if not (folder / INDEX).exists():
            return cls(folder, fresh)
        store = cls.open(folder)
        found = store.index
        if (found.sae.layer, found.sae.weights_hash) != (fresh.sae.layer, fresh.sae.weights_hash):
            raise SaeError(
                f"{folder} holds effects of another SAE ({found.sae.id}) than {fresh.sae.id}; choose another folder"
            )
        if not found.model.matches(fresh.model):
            raise DataError(f"{folder} holds effects on another model ({found.model.id}); choose another folder")
        if found.settings != fresh.settings:
            names = EffectSettings.__dataclass_fields__
            other = next(name for name in names if getattr(found.settings, name) != getattr(fresh.settings, name))
            raise DataError(
                f"{folder} holds effects measured with another '{other}'; choose another folder, or the same value"
            )
        return store

    @classmethod
    def open(cls, folder: Path) -> EffectStore:
        """Read a folder's index.

        Raises:
            DataError: there is none, or it is damaged.
        """
        path = folder / INDEX
        try:
            return cls(folder, _adapter().validate_json(path.read_bytes()))
        except OSError as error:
            raise DataError(
                f"{folder} holds no effects ({INDEX}: {error.strerror}); measure some: steersman effects measure"
            ) from error
        except (ValidationError, DataError) as error:
            first = error.errors()[0] if isinstance(error, ValidationError) else None
            said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
            raise DataError(f"{path} is damaged ({said}); measure into another folder") from error

    @property
    def done(self) -> frozenset[int]:
        """Vectors that need no more work: measured, or known to fail."""
        return frozenset(self.index.failed).union(*(shard.numbers for shard in self.index.shards))

    @property
    def measured(self) -> int:
        """Number of vectors whose effects are there."""
        return sum(len(shard.numbers) for shard in self.index.shards)

    def appended(self, rows: Effects, failed: tuple[int, ...] = ()) -> EffectStore:
        """The store with one more shard on disk: the file first, then the index that names it.

        Raises:
            StorageError: the disk refused; the store on disk is as it was.
        """
        shards = self.index.shards
        if len(rows.number):
            # Named by what it holds, so that a file that no index came to name is simply replaced.
            shard = EffectShard(file=f"shard-{len(shards):05d}.safetensors", numbers=tuple(rows.number.tolist()))
            tensors = {name: tensor.contiguous() for name, tensor in rows._asdict().items()}
            write_bytes(self.folder / shard.file, save(tensors))
            shards = (*shards, shard)
        grown = EffectStore(self.folder, replace(self.index, shards=shards, failed=(*self.index.failed, *failed)))
        write_bytes(self.folder / INDEX, _adapter().dump_json(grown.index, indent=1))
        return grown

    def read(self) -> Effects:
        """All measured vectors, by number; effects stay float16.

        Raises:
            DataError: a shard is gone or damaged, or nothing has been measured yet.
        """
        if not self.index.shards:
            raise DataError(f"{self.folder} holds no measured vectors yet; go on: steersman effects measure")
        parts = [self._load(shard) for shard in self.index.shards]
        whole = Effects(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
        return whole.part(whole.number.argsort())

    def _load(self, shard: EffectShard) -> Effects:
        path = self.folder / shard.file
        try:
            tensors = load_file(path)
            rows = Effects(**tensors)
        except (OSError, SafetensorError, TypeError) as error:
            raise DataError(f"cannot read effects from {path} ({error}); measure into another folder") from error
        shape = (len(shard.numbers), self.index.d_sae)
        if tuple(rows.number.tolist()) != shard.numbers or tuple(rows.effects.shape) != shape:
            raise DataError(f"{path} is not the shard that {INDEX} names; measure into another folder")
        return rows

    def save_baseline(self, baseline: Float[Tensor, " d_sae"]) -> None:
        """Keep the mean activations of unsteered text, before the first shard.

        Raises:
            StorageError: the disk refused.
        """
        write_bytes(self.folder / _BASELINE, save({"baseline": baseline.contiguous()}))
        write_bytes(self.folder / INDEX, _adapter().dump_json(self.index, indent=1))

    def baseline(self) -> Float[Tensor, " d_sae"] | None:
        """Mean activations of unsteered text, or None where nothing was begun.

        Raises:
            DataError: the file is damaged, or gone while there are shards that are differences from it.
        """
        path = self.folder / _BASELINE
        if not path.exists() and not self.index.shards:
            return None
        try:
            found: Tensor = load_file(path)["baseline"]
        except (OSError, SafetensorError, KeyError) as error:
            raise DataError(f"cannot read {path} ({error}); measure into another folder") from error
        if tuple(found.shape) != (self.index.d_sae,):
            raise DataError(f"{path} is of another SAE; measure into another folder")
        return found


@cache
def _adapter() -> TypeAdapter[EffectIndex]:
    return TypeAdapter(EffectIndex)
