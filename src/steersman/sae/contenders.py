"""The latents that can fire at a token, as a sparse list, when their pre-activations are weighted too. Exact.

What fires is decided by float32 pre-activations of single latents, whichever way the list was found: so a token's result does not
depend on what is encoded beside it, and lists found by bounds and by the whole product agree up to rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steersman.sae.model import SparseAutoencoder
from steersman.sae.screen import ROW_STEP, Bounds

# A token at which more of the latents than one in so many can fire is cheaper to read whole.
_SPARSE = 16
# Encoder rows gathered at once: 32 MiB.
_GATHER_ELEMENTS = 1 << 23


class Contenders(NamedTuple):
    """Every latent that fires, and perhaps some that do not; sorted by token, then latent."""

    tokens: Int[Tensor, " n"]
    latents: Int[Tensor, " n"]
    pre: Float[Tensor, " n"]
    """What it reads: its pre-activation."""
    starts: Int[Tensor, " tokens"]
    """Where each token's latents begin."""


def contenders(
    sae: SparseAutoencoder,
    h: Float[Tensor, "tokens d_model"],
    scores: Float[Tensor, "tokens d_sae"],
    *,
    only_shrink: bool = False,
) -> Contenders:
    """All latents that fire at the tokens with their pre-activations as they are, or multiplied by `scores`.

    Args:
        sae: whose latents.
        h: residuals.
        scores: of every latent at every token.
        only_shrink: whether all scores are known to lie in [0, 1]; saves work.

    Raises:
        SaeError: the residuals have another width, or are on another device.
    """
    x, screen = sae.encoder_input(h), sae.screen
    if screen is None:
        whole = torch.arange(len(h), device=h.device)
        may = torch.zeros(scores.shape, dtype=torch.bool, device=h.device)
    else:
        may = _may_fire(sae, screen.bounds(x), scores, only_shrink)
        tokens, latents = may.nonzero(as_tuple=True)
        most = sae.config.d_sae // _SPARSE
        # Residuals that are not finite are read whole too: everything may fire.
        whole = (may.sum(-1) > most).nonzero().squeeze(-1) if len(tokens) > most else tokens[:0]
        if not len(whole):
            return Contenders(tokens, latents, _read_singly(sae, x, tokens, latents), _starts(tokens, len(h)))
    read = sae.pre_activations(F.pad(h[whole], (0, 0, 0, -len(whole) % ROW_STEP)))[: len(whole)]
    certain = Bounds(read, torch.zeros_like(read))
    may = may.index_copy(0, whole, _may_fire(sae, certain, scores[whole], only_shrink))
    tokens, latents = may.nonzero(as_tuple=True)
    place = torch.full((len(h),), -1, device=h.device).index_copy(0, whole, torch.arange(len(whole), device=h.device))
    known = place[tokens] >= 0
    pre = torch.empty(len(tokens), device=h.device)
    pre[known] = read[place[tokens[known]], latents[known]]
    pre[~known] = _read_singly(sae, x, tokens[~known], latents[~known])
    return Contenders(tokens, latents, pre, _starts(tokens, len(h)))


def fired(sae: SparseAutoencoder, found: Contenders, values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """What is left of the contenders' (weighted) pre-activations: those that fire; 0 for the others."""
    if sae.config.architecture != "topk":
        least = 0.0 if sae.threshold is None else sae.threshold[found.latents]
        return values.masked_fill(values <= least, 0.0)
    assert sae.config.k is not None
    place = torch.arange(len(values), device=values.device) - found.starts[found.tokens]
    width = int(place.max()) + 1 if len(place) else 0
    if width <= sae.config.k:
        return values.relu()
    table = values.new_full((len(found.starts), width), -torch.inf)
    table[found.tokens, place] = values
    kept, ids = table.topk(sae.config.k, dim=-1)
    return torch.zeros_like(table).scatter(-1, ids, kept.relu())[found.tokens, place]


def _may_fire(
    sae: SparseAutoencoder, bounds: Bounds, scores: Float[Tensor, "tokens d_sae"], only_shrink: bool
) -> Bool[Tensor, "tokens d_sae"]:
    """Not what surely does not fire; asked this way round, NaN may fire."""
    # A negative score turns the bounds round.
    if sae.config.architecture == "topk":
        k, ends = sae.config.k, (bounds.low * scores, bounds.high * scores)
        assert k is not None
        return _among(k, bounds.low, bounds.high) | _among(k, torch.minimum(*ends), torch.maximum(*ends))
    high, least = bounds.high, 0.0 if sae.threshold is None else sae.threshold
    may = (high <= least).logical_not_()
    if not only_shrink:
        may |= ~(torch.maximum(bounds.low * scores, high * scores) <= least)
    return may  # No threshold is below 0: what fires times at most 1 fires without.


def _among(
    k: int, low: Float[Tensor, "tokens d_sae"], high: Float[Tensor, "tokens d_sae"]
) -> Bool[Tensor, "tokens d_sae"]:
    """What may be one of the k largest, and above 0."""
    # At least k latents read as much as the k-th largest lower bound.
    least = low.topk(k, dim=-1).values[:, -1:]
    return ~((high < least) | (high <= 0))


def _starts(tokens: Int[Tensor, " n"], count: int) -> Int[Tensor, " count"]:
    if count == 1:
        return tokens.new_zeros(1)
    return torch.searchsorted(tokens, torch.arange(count, device=tokens.device))


def _read_singly(
    sae: SparseAutoencoder, x: Float[Tensor, "tokens d_model"], tokens: Int[Tensor, " n"], latents: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Pre-activations of single latents, each summed on its own: the same bits whatever is read beside it."""
    size = max(1, _GATHER_ELEMENTS // sae.config.d_model)
    if len(tokens) > size:
        parts = zip(torch.split(tokens, size), torch.split(latents, size), strict=True)
        return torch.cat([_read_singly(sae, x, *part) for part in parts])
    return (x[tokens] * sae.encoder[latents]).sum(-1) + sae.b_enc[latents]
