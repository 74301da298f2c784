"""Collect the residual stream at one layer into shards on disk. Knows nothing of autoencoders.

An interrupted collection goes on at the shard it was at, and ends with the same shards as one that was not interrupted.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from steersman.errors import DataError, ModelError, StorageError
from steersman.facts import fact
from steersman.files import storage_errors
from steersman.models.blocks import check_layer
from steersman.models.language_model import LanguageModel
from steersman.models.residuals import read_residuals
from steersman.sae.corpus import Corpus, Piece, pack
from steersman.sae.shards import ActivationStore, StoreIndex

_FLOAT16_MAX = 65504.0
_BATCHES_AT_ONCE = 4
_log = logging.getLogger(__name__)


@fact
class CollectSettings:
    """How much is read, where, and how it is cut."""

    layer: int
    """Decoder block whose output is read, counted from 0."""
    tokens: int
    """Stop at the end of the sequence that completes this many."""
    context_tokens: int = 256
    """Longest sequence; longer texts are cut."""
    shard_tokens: int = 65_536
    """Size of a shard, a sequence more or less: what an interrupt loses at most."""
    batch_tokens: int = 2048
    """Tokens, padding counted, that run through the model at once."""

    def __post_init__(self) -> None:
        for name in ("tokens", "shard_tokens", "batch_tokens"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} must be 1 or more, not {getattr(self, name)}")


@fact
class CollectProgress:
    """Where a collection stands."""

    tokens: int
    total_tokens: int
    tokens_per_s: float
    """Since this run began; what earlier runs collected is not counted."""


def collect(
    model: LanguageModel,
    corpus: Corpus,
    folder: Path,
    settings: CollectSettings,
    *,
    held_out: bool = False,
    progress: Callable[[CollectProgress], None] | None = None,
) -> ActivationStore:
    """Run texts through the model and keep the residual stream; go on where an earlier run of the same settings stopped.

    Ends early, with a warning in the log, where the texts do. A later call with more `tokens` adds shards.

    Args:
        model: what to read; the forward pass stops at the layer.
        corpus: the texts.
        folder: of the shards; made if need be.
        settings: how much, and where.
        held_out: read the held-out texts, not the others.
        progress: called every few seconds.

    Raises:
        DataError: the folder holds activations of something else, or the texts cannot be used.
        ModelError: a layer that the model does not have, or activations that are not finite.
        StorageError: not enough room, or the disk refused; what is whole is kept, and the same call goes on there.
    """
    check_layer(settings.layer, model.n_layers)
    store = ActivationStore.begin(folder, _fresh_index(model, corpus, settings, held_out))
    _check_room(folder, (settings.tokens - store.tokens) * (2 * model.d_model + 8))
    done = sum(shard.pieces for shard in store.index.shards)
    texts = pack(model, corpus.rows(held_out=held_out), context_tokens=settings.context_tokens)
    pieces = itertools.islice(texts, done, None) if done and store.tokens < settings.tokens else texts
    began, tokens_before = time.perf_counter(), store.tokens

    def report(tokens_in_shards: int, tokens: int) -> None:
        if progress is not None:
            total = tokens_in_shards + tokens
            speed = (total - tokens_before) / max(time.perf_counter() - began, 1e-9)
            progress(CollectProgress(tokens=total, total_tokens=settings.tokens, tokens_per_s=speed))

    while store.tokens < settings.tokens:
        wanted = min(settings.shard_tokens, settings.tokens - store.tokens)
        chunk = _take(pieces, wanted)
        if not chunk:
            _log.warning("the texts ended after %d tokens of %d", store.tokens, settings.tokens)
            break
        tensors = _read(model, chunk, settings, partial(report, store.tokens))
        store = store.appended(tensors, len(chunk))
    report(store.tokens, 0)
    return store


def _fresh_index(model: LanguageModel, corpus: Corpus, settings: CollectSettings, held_out: bool) -> StoreIndex:
    return StoreIndex(
        model=model.ref,
        layer=settings.layer,
        d_model=model.d_model,
        context_tokens=settings.context_tokens,
        shard_tokens=settings.shard_tokens,
        batch_tokens=settings.batch_tokens,
        side="held_out" if held_out else "train",
        held_out=corpus.held_out,
        mix={group.name: group.weight for group in corpus.groups},
        seed=corpus.seed,
        corpus_sha256=corpus.sha256,
    )


def _check_room(folder: Path, needed_bytes: int) -> None:
    """Refuse before the work what would fail in the middle of it.

    Raises:
        StorageError: the disk has less room than needed.
    """
    nearest = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    with storage_errors(folder):
        free_bytes = shutil.disk_usage(nearest).free
    if needed_bytes > free_bytes:
        raise StorageError(
            f"{folder} needs {needed_bytes / 1e9:.1f} GB for these activations and the disk has {free_bytes / 1e9:.1f} GB left; "
            "free some space, choose another disk or collect fewer tokens"
        )


def _take(pieces: Iterator[Piece], tokens: int) -> list[Piece]:
    taken: list[Piece] = []
    while tokens > 0 and (piece := next(pieces, None)) is not None:
        taken.append(piece)
        tokens -= len(piece.ids) - piece.skip
    return taken


def _read(
    model: LanguageModel, chunk: Sequence[Piece], settings: CollectSettings, report: Callable[[int], None]
) -> dict[str, Tensor]:
    """The tensors of a shard. Sequences are run sorted by length, and kept in the order they came."""
    order = sorted(range(len(chunk)), key=lambda number: -len(chunk[number].ids))
    rows: dict[int, Tensor] = {}
    tokens = 0
    while order:
        width = len(chunk[order[0]].ids)
        count = max(1, _BATCHES_AT_ONCE * (settings.batch_tokens // width))
        numbers, order = order[:count], order[count:]
        sequences = [chunk[number].ids for number in numbers]
        found = read_residuals(model, sequences, [settings.layer], batch_tokens=settings.batch_tokens)
        for number, hidden in zip(numbers, found, strict=True):
            # The first token is not among the residuals.
            rows[number] = _kept(hidden[settings.layer][chunk[number].skip - 1 :], model.name)
            tokens += len(rows[number])
        report(tokens)
    return {
        "activations": torch.cat([rows[number] for number in range(len(chunk))]),
        "tokens": torch.tensor([token for piece in chunk for token in piece.ids[piece.skip :]], dtype=torch.int32),
        "pieces": torch.repeat_interleave(
            torch.arange(len(chunk), dtype=torch.int32), torch.tensor([len(piece.ids) - piece.skip for piece in chunk])
        ),
    }


def _kept(hidden: Tensor, name: str) -> Tensor:
    if not torch.isfinite(hidden).all():
        raise ModelError(
            f"{name} gives residuals that are not finite; load it in another number format (--dtype float32)"
        )
    return hidden.float().clamp_(-_FLOAT16_MAX, _FLOAT16_MAX).to("cpu", torch.float16)
