"""What is kept of a training beside its weights: everything needed to judge it and to run it again. `training.json`."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from steersman.errors import SaeError
from steersman.facts import fact
from steersman.files import write_bytes
from steersman.sae.activations import CollectSettings
from steersman.sae.checkpoint import CurvePoint
from steersman.sae.corpus import Corpus
from steersman.sae.train import Quality, TrainedSae
from steersman.sae.trainer import TrainSettings
from steersman.version import __version__

RECORD = "training.json"
"""File of an SAE's folder."""


@fact
class TextShare:
    """One part of the texts."""

    name: str
    share: float
    """Of the characters drawn."""
    files: tuple[str, ...]
    """Names without folders."""


@fact
class TrainingRecord:
    """How an SAE was trained, and what came of it."""

    settings: TrainSettings
    collecting: CollectSettings
    texts: tuple[TextShare, ...]
    corpus_sha256: str
    corpus_seed: int
    held_out: float
    """Share of the rows that was never trained on."""
    collected_tokens: int
    """Different tokens trained on, on-policy ones included."""
    on_policy_tokens: int
    """Of those, read from chats that the model answered itself."""
    curve: tuple[CurvePoint, ...]
    quality: Quality | None
    """On held-out text of the same mix; None where none was held out."""
    store_dtype: str
    """Number format of the stored matrices; quality was measured in it."""
    versions: dict[str, str]


_ADAPTER = TypeAdapter(TrainingRecord)


def record_of(
    trained: TrainedSae, corpus: Corpus, collecting: CollectSettings, settings: TrainSettings, store_dtype: str
) -> TrainingRecord:
    """Put together what is known when a training ends."""
    total = sum(group.weight for group in corpus.groups)
    texts = tuple(
        TextShare(name=group.name, share=group.weight / total, files=tuple(path.name for path in group.files))
        for group in corpus.groups
    )
    packages = {name: metadata.version(name) for name in ("torch", "transformers")}
    return TrainingRecord(
        settings=settings,
        collecting=collecting,
        texts=texts,
        corpus_sha256=corpus.sha256,
        corpus_seed=corpus.seed,
        held_out=corpus.held_out,
        collected_tokens=trained.collected_tokens,
        on_policy_tokens=trained.on_policy_tokens,
        curve=trained.curve,
        quality=trained.quality,
        store_dtype=store_dtype,
        versions={"steersman": __version__, "python": platform.python_version(), **packages},
    )


def save_record(record: TrainingRecord, folder: Path) -> None:
    """Write `training.json` beside the weights.

    Raises:
        StorageError: the disk refused.
    """
    write_bytes(folder / RECORD, _ADAPTER.dump_json(record, indent=1) + b"\n")


def load_record(folder: Path) -> TrainingRecord | None:
    """What `training.json` says, or None for an SAE that was not trained here.

    Raises:
        SaeError: it is damaged.
    """
    path = folder / RECORD
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SaeError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise SaeError(f"{path} is damaged ({error.errors()[0]['msg']}); restore it, or remove it") from error
