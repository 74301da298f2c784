"""What each kind of edit does to the residual stream. Pure functions on float32 tensors; they know no recipe or batch.

Every function takes `hidden (rows, seq, d_model)` and a gain `(rows, seq)`, and returns the *change* to add. A gain of 0 gives
exactly 0. Row `i` of every argument belongs together and never touches row `j`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from steersman.sae.contenders import contenders, fired
from steersman.sae.model import SparseAutoencoder
from steersman.sae.normalise import normalised
from steersman.steering.target import read

Hidden = Float[Tensor, "rows seq d_model"]
Gain = Float[Tensor, "rows seq"]

# Pre-activations held at once, a few times over: 32 MiB.
_CHUNK_ELEMENTS = 1 << 23


def add(vector: Float[Tensor, "rows d_model"], gain: Gain) -> Hidden:
    """`gain * vector` at every token."""
    return gain[:, :, None] * vector[:, None, :]


def affine(
    hidden: Hidden,
    encoders: tuple[Float[Tensor, "rows d_model"], Float[Tensor, " rows"], Float[Tensor, " rows"]],
    decoder: Float[Tensor, "rows d_model"],
    slope: Float[Tensor, " rows"],
    offset: Float[Tensor, " rows"],
    gain: Gain,
) -> Hidden:
    """Change the reading `a` of a direction or latent by `slope * a + offset`, written back along its decoder row.

    Clamp is slope -1 and offset the value; scale by f is slope f - 1; ablation is slope -1. What the SAE does not
    reconstruct is never touched, because only the change is written (the error term is kept).
    """
    row, bias, threshold = (part[:, None] for part in encoders)
    reading = read(hidden, row, bias, threshold)
    # Where nothing is gained nothing is read either: 0 times an overflowed stream would not be 0.
    change = torch.where(gain == 0, 0.0, gain * (slope[:, None] * reading + offset[:, None]))
    return change[:, :, None] * decoder[:, None, :]


def rotate(
    hidden: Hidden, toward: Float[Tensor, "rows d_model"], degrees: Float[Tensor, " rows"], gain: Gain
) -> Hidden:
    """Turn `hidden` by `gain * degrees` towards the unit vector `toward`, in the plane that both span; the norm is kept.

    The turn stops at the vector itself, or, for a negative angle, at its opposite. (Angular steering, arXiv:2510.26243,
    rotates within one fixed plane; here each token turns in its own.)
    """
    toward = toward[:, None, :]
    norm = hidden.norm(dim=-1, keepdim=True)
    along = (hidden * toward).sum(-1, keepdim=True)
    across = hidden - along * toward
    height = across.norm(dim=-1, keepdim=True)
    # In float64: the float32 kernel rounds differently at the end of a tensor, so a row would depend on its neighbours.
    angle = torch.atan2(height.double(), along.double()).float()
    # A stream along the vector itself spans no plane with it; it turns towards a fixed direction across.
    aside = _across(toward)
    across = torch.where(height > 1e-6 * norm, across / height.clamp(min=1e-30), aside)
    turned = (angle - torch.deg2rad(gain * degrees[:, None])[:, :, None]).clamp(0.0, torch.pi)
    result = norm * (turned.cos() * toward + turned.sin() * across)
    return torch.where(gain[:, :, None] == 0, torch.zeros_like(hidden), result - hidden)


def reweigh(
    sae: SparseAutoencoder,
    hidden: Hidden,
    scores: Float[Tensor, "rows d_sae"],
    gain: Gain,
    *,
    swap: bool,
    keep_error: bool,
    only_shrink: bool = False,
) -> Hidden:
    """Multiply the pre-activations of the SAE by `scores`, and write what becomes of its reconstruction.

    The weighted pre-activations fire as the SAE decides; with `swap`, those that fire keep their original value instead
    (arXiv:2506.12576, `weight` and `swap`). The change is `decode(new) - decode(old)`, or without `keep_error`
    `decode(new) - hidden`, as in the paper. Only tokens with a gain are encoded, all rows in one product. `only_shrink`: all
    scores are known to lie in [0, 1].
    """

    def made(h: Float[Tensor, "tokens d_model"], own: Float[Tensor, "tokens d_sae"]) -> Float[Tensor, "tokens d_model"]:
        return _reweighed(sae, h, own, swap, keep_error, only_shrink)

    size = max(1, _CHUNK_ELEMENTS // sae.config.d_sae)
    if gain.shape[1] == 1 and len(gain) <= size and 0.0 not in gain[:, 0].tolist():
        # A step of decoding: nothing to gather.
        return gain[:, :, None] * made(hidden[:, 0], scores)[:, None]
    change = torch.zeros_like(hidden)
    rows, places = gain.nonzero(as_tuple=True)
    if not len(rows):
        return change
    for row, place in zip(torch.split(rows, size), torch.split(places, size), strict=True):
        change[row, place] = gain[row, place, None] * made(hidden[row, place], scores[row])
    return change


def _reweighed(
    sae: SparseAutoencoder,
    h: Float[Tensor, "tokens d_model"],
    scores: Float[Tensor, "tokens d_sae"],
    swap: bool,
    keep_error: bool,
    only_shrink: bool,
) -> Float[Tensor, "tokens d_model"]:
    """`reweigh` for tokens, each with its own scores. Only latents whose activation changes are decoded."""
    found = contenders(sae, h, scores, only_shrink=only_shrink)
    new = fired(sae, found, found.pre * scores[found.tokens, found.latents])
    if swap:
        new = torch.where(new > 0, found.pre.relu(), new)
    written = new - fired(sae, found, found.pre) if keep_error else new
    summed = F.embedding_bag(found.latents, sae.W_dec, found.starts, mode="sum", per_sample_weights=written)
    scale, shift = normalised(sae.config, h)[1]
    # What the SAE adds whatever fires (b_dec, shift) is no part of a change.
    return summed * scale if keep_error else (summed + sae.b_dec) * scale + shift - h


def _across(toward: Float[Tensor, "rows 1 d_model"]) -> Float[Tensor, "rows 1 d_model"]:
    """For each unit vector one at a right angle to it: its smallest coordinate's axis, made orthogonal."""
    axis = torch.zeros_like(toward).scatter(-1, toward.abs().argmin(-1, keepdim=True), 1.0)
    aside = axis - (axis * toward).sum(-1, keepdim=True) * toward
    unit: Tensor = aside / aside.norm(dim=-1, keepdim=True)
    return unit
