"""Which latents fire in a batch, and exact sums and gradients over those alone. Pure functions; knows nothing of training.

Every sum over latents that fire is an embedding bag: over the latents of each token to decode, over the tokens of each latent
for the gradients of encoder and decoder rows. Nothing of size tokens x latents is touched after the choice.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Fired(NamedTuple):
    """The latents that fire in a batch, token by token. A value of 0 takes a place and does nothing."""

    tokens: Int[Tensor, " n"]
    latents: Int[Tensor, " n"]
    values: Float[Tensor, " n"]
    offsets: Int[Tensor, " tokens"]
    """Where each token's latents begin."""


class ByLatent(NamedTuple):
    """The same, sorted by latent."""

    order: Int[Tensor, " n"]
    offsets: Int[Tensor, " latents+1"]


def top_per_token(pre: Float[Tensor, "tokens latents"], k: int) -> Fired:
    """The k largest positive pre-activations of each token."""
    values, latents = pre.topk(k, dim=-1, sorted=False)
    tokens = torch.arange(len(pre), device=pre.device)
    return Fired(tokens.repeat_interleave(k), latents.reshape(-1), values.reshape(-1).float().relu(), tokens * k)


def top_of_batch(
    pre: Float[Tensor, "tokens latents"], k: int, guess: float = 0.0, mask: Bool[Tensor, "tokens latents"] | None = None
) -> tuple[Fired, float]:
    """The k largest positive pre-activations a token on average, taken over the whole batch; and the smallest that was kept.

    Ties with the smallest are all kept.

    Args:
        pre: what the latents read.
        k: mean number per token.
        guess: where the search begins: somewhat less than the smallest value kept is fastest. Does not change the result.
        mask: memory to work in; fresh pages each time cost more than the search itself.
    """
    wanted, flat = k * len(pre), pre.reshape(-1)
    mask = torch.empty_like(pre, dtype=torch.bool) if mask is None else mask
    guess = max(guess, 0.0)
    while True:
        places = torch.gt(pre, guess, out=mask).reshape(-1).nonzero().squeeze(1)
        if len(places) >= wanted or guess == 0.0:
            break
        guess = 0.8 * guess if guess > 1e-3 else 0.0
    values = flat[places].float()
    if len(values) > wanted:
        kept = values >= values.kthvalue(len(values) - wanted + 1).values
        places, values = places[kept], values[kept]
    tokens = places // pre.shape[1]
    latents = places - tokens * pre.shape[1]
    offsets = torch.searchsorted(tokens, torch.arange(len(pre), device=pre.device))
    return Fired(tokens, latents, values, offsets), float(values.min()) if len(values) else 0.0


def decoded(fired: Fired, rows: Float[Tensor, "latents d_model"]) -> Float[Tensor, "tokens d_model"]:
    """Sum of `value * row` over the latents of each token."""
    return F.embedding_bag(fired.latents, rows, fired.offsets, mode="sum", per_sample_weights=fired.values)


def decoded_with_slopes(
    fired: Fired, rows: Float[Tensor, "latents d_model"]
) -> tuple[Float[Tensor, "tokens d_model"], Tensor]:
    """`decoded` with a graph back to its values: the second result is what to differentiate by."""
    values = fired.values.detach().requires_grad_()
    with torch.enable_grad():
        return decoded(fired._replace(values=values), rows), values


def by_latent(fired: Fired, n_latents: int) -> ByLatent:
    """The places of `fired` sorted by latent; equal latents stay in the order of their tokens."""
    counts = torch.bincount(fired.latents, minlength=n_latents)
    # Narrow integers are sorted several times faster.
    narrow = fired.latents.to(torch.int16 if n_latents <= 1 << 15 else torch.int32)
    return ByLatent(narrow.argsort(stable=True), F.pad(counts.cumsum(0), (1, 0)))


def summed_by_latent(
    fired: Fired, places: ByLatent, weights: Float[Tensor, " n"], rows: Float[Tensor, "tokens d_model"]
) -> Float[Tensor, "latents d_model"]:
    """Sum of `weight * row` over the tokens at which each latent fires: the gradient of the latent's own row."""
    return F.embedding_bag(
        fired.tokens[places.order],
        rows,
        places.offsets,
        mode="sum",
        per_sample_weights=weights[places.order],
        include_last_offset=True,
    )
