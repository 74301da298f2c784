"""One pass over stored activations: how each feature fires, where it does so most of all, and evidence to label it by.

Memory does not grow with the texts: per feature it is `places * (8 * width + 32)` bytes for the contexts and the samples
(0.1 GB at 8,192 features), and some hundred MB for the block at hand. A pass takes minutes and is not resumable. The
same stores, settings and numbers of threads give the same result. Knows nothing of models, labels or files of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steersman.errors import DataError, SaeError
from steersman.facts import fact
from steersman.sae.index.evidence import Activity, Evidence
from steersman.sae.index.firings import (
    Block,
    Firings,
    Ints,
    Peaks,
    by_feature,
    cores,
    mixed,
    peaks,
)
from steersman.sae.index.keeper import Keeper
from steersman.sae.index.pool import Pool
from steersman.sae.model import SparseAutoencoder
from steersman.sae.shards import ActivationStore

Progress = Callable[[int, int], None]
"""Called with the tokens read so far and the tokens to read."""

# A block ends with the piece that passes either: what is sorted at once.
_BLOCK_TOKENS = 32_768
_BLOCK_PAIRS = 8_000_000
# Activations held at once while tokens are encoded: 32 MiB, which the allocator can use again and again.
_CHUNK_ELEMENTS = 1 << 23


@fact
class BuildSettings:
    """How much is read and kept."""

    contexts: int = 8
    """Top activating contexts a feature."""
    width: int = 24
    """Tokens of a window, whether context, sample or pool."""
    samples: int = 48
    """Windows a feature drawn at random among the pieces in which it fires."""
    pool: int = 4000
    """Windows drawn at random among all tokens, shared by all features."""
    tokens: int | None = None
    """Read this many, from each store in proportion; None reads all."""
    seed: int = 0
    """Of the samples and the pool."""

    def __post_init__(self) -> None:
        for name in ("contexts", "width", "samples", "pool", "tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SaeError(f"{name} of an index must be 1 or more, not {value}")


class Built(NamedTuple):
    """What a pass finds."""

    activity: Activity
    evidence: Evidence


@torch.no_grad()
def build(
    sae: SparseAutoencoder,
    stores: Sequence[ActivationStore],
    settings: BuildSettings | None = None,
    *,
    progress: Progress | None = None,
) -> Built:
    """Read the stores once and say what every feature does in them.

    Args:
        sae: on any device; the rest is done on the CPU.
        stores: activations of the SAE's layer, those that it was trained on or others.
        settings: how much; the default is what an index holds.
        progress: called after every chunk of some thousand tokens.

    Raises:
        SaeError: a store of another model, layer or width than the SAE's, or bad settings.
        DataError: no activations, or a shard that is gone, damaged or not finite.
    """
    settings = settings or BuildSettings()
    _check(sae, stores)
    quotas = _quotas(stores, settings.tokens)
    if not sum(quotas):
        raise DataError("there are no activations to make an index from; collect some first")
    survey = _Survey(sae.config.d_sae, sum(quotas), settings)
    for block in _blocks(sae, stores, quotas, progress):
        survey.read(block)
    return survey.result()


def _check(sae: SparseAutoencoder, stores: Sequence[ActivationStore]) -> None:
    for store in stores:
        about, first = store.index, stores[0].index
        if about.d_model != sae.config.d_model:
            raise SaeError(
                f"{store.folder} holds activations of width {about.d_model}, the SAE reads {sae.config.d_model}; "
                "collect activations of its own model"
            )
        try:
            sae.check_fits(about.model, about.layer)
        except SaeError as error:
            raise SaeError(f"{store.folder}: {error}") from error
        if not about.model.matches(first.model):
            raise SaeError(f"{store.folder} and {stores[0].folder} are of two models; give stores of one")


def _quotas(stores: Sequence[ActivationStore], limit: int | None) -> list[int]:
    """How many tokens of each store are read; together `limit`, or everything."""
    bounds = np.cumsum([0, *(store.tokens for store in stores)]).tolist()
    if limit is not None and limit < bounds[-1]:
        bounds = [bound * limit // bounds[-1] for bound in bounds]
    return [end - begin for begin, end in itertools.pairwise(bounds)]


def _blocks(
    sae: SparseAutoencoder, stores: Sequence[ActivationStore], quotas: Sequence[int], progress: Progress | None
) -> Iterator[Block]:
    done, pieces_before = 0, 0
    for store, quota in zip(stores, quotas, strict=True):
        left = quota
        for number in range(len(store.index.shards)):
            if not left:
                break
            h = store.read(number)[:left]
            tokens, pieces = (part[:left].numpy() for part in store.read_tokens(number))
            left -= len(h)
            bounds = np.append(np.flatnonzero(np.diff(pieces, prepend=-1)), len(pieces))
            begin, parts = 0, []
            for low, high in _chunks(bounds, max(1, _CHUNK_ELEMENTS // sae.config.d_sae)):
                parts.append(_fired(sae, h[low:high], low - int(bounds[begin])))
                done += high - low
                if progress is not None:
                    progress(done, sum(quotas))
                end = int(np.searchsorted(bounds, high))
                is_full = high - bounds[begin] >= _BLOCK_TOKENS or sum(len(part[0]) for part in parts) >= _BLOCK_PAIRS
                if is_full or high == len(h):
                    try:
                        yield _block(tokens, bounds[begin : end + 1], pieces_before + begin, parts)
                    except DataError as error:
                        raise DataError(f"{store.folder / store.index.shards[number].file}: {error}") from error
                    begin, parts = end, []
            pieces_before += len(bounds) - 1


def _chunks(bounds: Ints, rows: int) -> Iterator[tuple[int, int]]:
    """Whole pieces of together at most `rows` rows; a longer piece is a chunk of its own."""
    begin = 0
    while begin < len(bounds) - 1:
        end = max(begin + 1, int(np.searchsorted(bounds, bounds[begin] + rows, side="right")) - 1)
        yield int(bounds[begin]), int(bounds[end])
        begin = end


def _fired(sae: SparseAutoencoder, h: Tensor, row: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (counted from `row`), features and values of all that fire, row after row."""
    found = []
    # Not encode_sparse: one token at which thousands fire would make every other as wide, and nothing here needs an order.
    for part in torch.split(h, max(1, _CHUNK_ELEMENTS // sae.config.d_sae)):
        acts = sae.encode(part.to(sae.device))
        rows, features = acts.nonzero(as_tuple=True)
        values = acts[rows, features]
        found.append(((rows + row).to("cpu", torch.int32), features.to("cpu", torch.int32), values.cpu()))
        row += len(part)
    rows, features, values = (torch.cat(part) for part in zip(*found, strict=True))
    return rows, features, values


def _block(tokens: Ints, bounds: Ints, first_piece: int, parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Block:
    rows, features, values = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    if not np.isfinite(values).all():
        raise DataError("the activations are not finite; collect them again")
    lengths, begin = np.diff(bounds), bounds[0]
    return Block(
        tokens=tokens[begin : bounds[-1]],
        first=np.repeat(bounds[:-1] - begin, lengths),
        last=np.repeat(bounds[1:] - begin, lengths),
        pieces=np.repeat(first_piece + np.arange(len(lengths)), lengths),
        rows=rows,
        features=features,
        values=values,
    )


class _Survey:
    """What has been seen so far."""

    def __init__(self, features: int, tokens: int, settings: BuildSettings) -> None:
        self.seed, self.done = settings.seed, 0
        self.counts = np.zeros(features, dtype=np.int64)
        self.sums = np.zeros(features)
        self.maxima = np.zeros(features, dtype=np.float32)
        self.top = Keeper(features, settings.contexts, settings.width)
        self.sampled = Keeper(features, settings.samples, settings.width)
        self.pool = Pool(features, tokens, settings.width, settings.pool, settings.seed)

    def read(self, block: Block) -> None:
        """Take in the next block."""
        firings = by_feature(block, len(self.counts))
        found = peaks(block, firings)
        self._count(firings)
        self.top.offer(block, firings, found, found.values.astype(np.float64), cores(block, found.rows))
        pieces = block.pieces[found.rows].astype(np.uint64)
        self.sampled.offer(block, firings, found, self._lots(found, pieces), pieces)
        self.pool.read(block, self.done)
        self.done += len(block.tokens)

    def _count(self, firings: Firings) -> None:
        counts = np.bincount(firings.features, minlength=len(self.counts))
        self.counts += counts
        self.sums += np.bincount(firings.features, weights=firings.values, minlength=len(self.counts))
        here = np.flatnonzero(counts)
        if len(here):
            strongest = np.maximum.reduceat(firings.values, (counts.cumsum() - counts)[here])
            self.maxima[here] = np.maximum(self.maxima[here], strongest)

    def _lots(self, found: Peaks, pieces: NDArray[np.uint64]) -> NDArray[np.float64]:
        """A number in [0, 1) drawn for each feature and piece: those with the largest are a sample without replacement."""
        named = mixed(found.features.astype(np.uint64) ^ mixed(np.full(1, self.seed % (1 << 64), dtype=np.uint64)))
        return (mixed(named ^ pieces) >> np.uint64(11)) / float(1 << 53)

    def result(self) -> Built:
        """Everything as tensors."""
        top, sampled = self.top, self.sampled
        activity = Activity(
            tokens=self.done,
            density=torch.from_numpy(self.counts / self.done).float(),
            mean_activation=torch.from_numpy(self.sums / np.maximum(self.counts, 1)).float(),
            max_activation=torch.from_numpy(self.maxima),
            context_tokens=torch.from_numpy(top.tokens),
            context_activations=torch.from_numpy(top.activations),
            context_pieces=torch.from_numpy(top.pieces),
        )
        order = np.argsort(-sampled.activations.max(2), axis=1, kind="stable")
        evidence = Evidence(
            sample_tokens=_ordered(sampled.tokens, order),
            sample_activations=_ordered(sampled.activations, order),
            sample_pieces=_ordered(sampled.pieces, order),
            sample_starts=_ordered(sampled.starts, order),
            **self.pool.result(),
        )
        return Built(activity, evidence)


def _ordered(kept: NDArray[Any], order: Ints) -> Tensor:
    return torch.from_numpy(np.take_along_axis(kept, order[..., None] if kept.ndim == 3 else order, 1))
