"""Keep a training so that it goes on after an interrupt as if there had been none. Knows nothing of how it trains.

`checkpoint.json` holds the facts and names the file of tensors, `step-<number>.safetensors`. The tensors are written first and
the old ones removed last, so that at every moment one whole checkpoint is there.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from steersman.errors import DataError
from steersman.facts import fact
from steersman.files import write_bytes
from steersman.models.language_model import ModelRef
from steersman.sae.trainer import StepFacts, TrainSettings

FACTS = "checkpoint.json"
"""File of a checkpoint's folder that says what it is."""
_FORMAT = 1


@fact
class CurvePoint:
    """What training showed at one step."""

    step: int
    """Batches trained on, this one included."""
    facts: StepFacts


@fact
class DataFacts:
    """The activations that a training reads, as far as its result depends on them."""

    model: ModelRef
    layer: int
    d_model: int
    scale: float
    """Factor on the residuals that makes their mean norm sqrt(d_model)."""
    shards: tuple[tuple[str, int], ...]
    """Corpus hash and tokens of every shard, in order."""


@fact
class CheckpointFacts:
    """Where a training stands, without its tensors."""

    steersman_checkpoint: int = _FORMAT
    settings: TrainSettings
    data: DataFacts
    step: int
    threshold: float
    curve: tuple[CurvePoint, ...]
    tensors: str
    """Name of the file beside it."""


_FACTS = TypeAdapter(CheckpointFacts)


def save_checkpoint(
    folder: Path,
    settings: TrainSettings,
    data: DataFacts,
    *,
    step: int,
    threshold: float,
    curve: tuple[CurvePoint, ...],
    tensors: dict[str, Tensor],
) -> None:
    """Replace the checkpoint in `folder`.

    Raises:
        StorageError: the disk refused; the checkpoint before is still there.
    """
    name = f"step-{step:08d}.safetensors"
    facts = CheckpointFacts(settings=settings, data=data, step=step, threshold=threshold, curve=curve, tensors=name)
    write_bytes(folder / name, save({key: tensor.contiguous().cpu() for key, tensor in tensors.items()}))
    write_bytes(folder / FACTS, _FACTS.dump_json(facts, indent=1))
    for old in folder.glob("step-*.safetensors"):
        if old.name != name:
            with contextlib.suppress(OSError):  # It is only in the way.
                old.unlink()


def load_checkpoint(
    folder: Path, settings: TrainSettings, data: DataFacts
) -> tuple[CheckpointFacts, dict[str, Tensor]] | None:
    """The checkpoint in `folder`, or None where there is none.

    Raises:
        DataError: it belongs to other settings or other activations, or is damaged.
    """
    path = folder / FACTS
    if not path.exists():
        return None
    try:
        facts = _FACTS.validate_json(path.read_bytes())
        tensors: dict[str, Tensor] = load_file(folder / facts.tensors)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"{path} is damaged ({'.'.join(map(str, first['loc']))}: {first['msg']}); delete it to start again"
        ) from error
    except (OSError, SafetensorError) as error:
        raise DataError(f"the checkpoint in {folder} is damaged ({error}); delete it to start again") from error
    old = _FACTS.dump_python(facts)
    new = _FACTS.dump_python(CheckpointFacts(settings=settings, data=data, step=0, threshold=0.0, curve=(), tensors=""))
    for part in ("settings", "data"):
        for name, value in new[part].items():
            if old[part][name] != value:
                raise DataError(
                    f"{folder} holds a training with another {name.replace('_', ' ')}; choose another folder, or delete it"
                )
    return facts, tensors
