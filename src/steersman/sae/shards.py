"""Keep activations: a folder of shards and the index that names them. Knows nothing of texts, or of who reads what.

A shard is one safetensors file: `activations` (tokens, d_model) in float16, `tokens` (tokens,) the id of the token that each
row was read at, `pieces` (tokens,) which sequence of the shard it belongs to. `index.json` names the shards that are whole;
nothing else in the folder counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from jaxtyping import Float, Int
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from steersman.errors import DataError
from steersman.facts import fact
from steersman.files import write_bytes
from steersman.models.language_model import ModelRef

INDEX = "index.json"
"""File of a folder of activations that names its shards."""
_FORMAT = 1


@fact
class Shard:
    """One file of activations."""

    file: str
    tokens: int
    pieces: int
    """Sequences that were read for it."""
    mean_norm: float
    """Mean L2 norm of its rows."""


@fact
class StoreIndex:
    """What is in a folder of activations, and what it was made from."""

    steersman_activations: int = _FORMAT
    model: ModelRef
    layer: int
    d_model: int
    context_tokens: int
    shard_tokens: int
    batch_tokens: int
    side: Literal["train", "held_out"]
    held_out: float
    """Share of the texts that is held out of training."""
    mix: dict[str, float]
    seed: int
    corpus_sha256: str
    shards: tuple[Shard, ...] = ()


_INDEX = TypeAdapter(StoreIndex)


@dataclass(frozen=True, slots=True)
class ActivationStore:
    """A folder of activations."""

    folder: Path
    index: StoreIndex

    @classmethod
    def begin(cls, folder: Path, fresh: StoreIndex) -> ActivationStore:
        """The folder's store where it was begun with the same facts as `fresh`, else an empty one, not yet on disk.

        Raises:
            DataError: the folder holds activations of something else.
        """
        if not (folder / INDEX).exists():
            return cls(folder, fresh)
        store = cls.open(folder)
        # The name that the model was loaded by may differ.
        old = replace(store.index, model=replace(store.index.model, id=fresh.model.id), shards=())
        if old != fresh:
            other = next(name for name in _INDEX.dump_python(fresh) if getattr(old, name) != getattr(fresh, name))
            raise DataError(
                f"{folder} holds activations of another {other.replace('_', ' ')}; choose another folder, or empty it"
            )
        return store

    @classmethod
    def open(cls, folder: Path) -> ActivationStore:
        """Read a folder's index.

        Raises:
            DataError: there is none, or it is damaged.
        """
        path = folder / INDEX
        try:
            return cls(folder, _INDEX.validate_json(path.read_bytes()))
        except OSError as error:
            raise DataError(f"{folder} holds no activations ({INDEX}: {error.strerror}); collect some first") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise DataError(f"{path} is damaged ({where}: {first['msg']}); collect into another folder") from error

    @property
    def tokens(self) -> int:
        """Rows in all shards."""
        return sum(shard.tokens for shard in self.index.shards)

    @property
    def mean_norm(self) -> float:
        """Mean L2 norm of all rows."""
        return sum(shard.mean_norm * shard.tokens for shard in self.index.shards) / max(self.tokens, 1)

    def read(self, number: int) -> Float[Tensor, "tokens d_model"]:
        """Activations of one shard, float16.

        Raises:
            DataError: the file is gone or damaged.
        """
        return self._load(number)["activations"]

    def read_tokens(self, number: int) -> tuple[Int[Tensor, " tokens"], Int[Tensor, " tokens"]]:
        """Token id of each row of one shard, and the number of its sequence there.

        Raises:
            DataError: the file is gone or damaged.
        """
        tensors = self._load(number)
        return tensors["tokens"], tensors["pieces"]

    def _load(self, number: int) -> dict[str, Tensor]:
        shard = self.index.shards[number]
        path = self.folder / shard.file
        try:
            tensors: dict[str, Tensor] = load_file(path)
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        except (OSError, SafetensorError) as error:
            raise DataError(f"cannot read activations from {path} ({error}); collect them again") from error
        rows = (shard.tokens,)
        if shapes != {"activations": (*rows, self.index.d_model), "tokens": rows, "pieces": rows}:
            raise DataError(f"{path} is not the shard that {INDEX} names; collect the activations again")
        return tensors

    def appended(self, tensors: dict[str, Tensor], pieces: int) -> ActivationStore:
        """The store with one more shard on disk: the file first, then the index that names it.

        Args:
            tensors: `activations`, `tokens` and `pieces`, as described above.
            pieces: how many sequences were read for it.

        Raises:
            StorageError: the disk refused; the store on disk is as it was.
        """
        rows = tensors["activations"]
        shard = Shard(
            file=f"shard-{len(self.index.shards):05d}.safetensors",
            tokens=len(rows),
            pieces=pieces,
            mean_norm=float(rows.float().norm(dim=-1).double().mean()),
        )
        write_bytes(self.folder / shard.file, save(tensors))
        index = replace(self.index, shards=(*self.index.shards, shard))
        write_bytes(self.folder / INDEX, _INDEX.dump_json(index, indent=1))
        return ActivationStore(self.folder, index)
