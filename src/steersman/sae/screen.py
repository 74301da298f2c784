"""Bounds of what every latent reads at a token, from half the bytes. Knows nothing of thresholds, or of what fires.

One token's encoding costs the reading of the whole encoder from memory, and nothing else counts. The screen reads a copy in
bfloat16 and says how far off it can be; whoever uses it reads the few latents that matter again, in float32. With `x̂`, `ŵ` the
rounded residual and encoder row, `p` their product as it comes out, `n` the width and `u = 2**-24` (Cauchy and Schwarz):

    |x . w - p|  <=  |x - x̂| |w|  +  |x̂| |w - ŵ|  +  2**-8 |p|  +  2 n u |x| |w|
                     rounded residual  rounded row    rounded p    float32 sums, here and in what it is compared with

The first term is 0 for residuals of a model that runs in bfloat16, the second for an SAE that was stored in it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

ROW_STEP = 4
"""A CPU's kernels treat a remainder of one to three rows of a matrix product differently, in the last bit; in whole fours
every row comes out the same, whatever is beside it."""

# Smaller encoders stay in the processor's cache, where half the bytes save nothing.
_MIN_WEIGHTS = 1 << 20
_U = 2.0**-24
_ROUNDED = 2.0**-8


class Bounds(NamedTuple):
    """Between these lies each pre-activation, as float32 arithmetic finds it. NaN where the residual is not finite."""

    low: Float[Tensor, "tokens d_sae"]
    high: Float[Tensor, "tokens d_sae"]


class Screen:
    """A copy of an encoder in bfloat16 and how far each of its rows is off."""

    def __init__(self, encoder: Float[Tensor, "d_sae d_model"], b_enc: Float[Tensor, " d_sae"]) -> None:
        self.rows = encoder.to(torch.bfloat16)
        self.b_enc = b_enc
        lengths = encoder.norm(dim=-1)
        # What each row's slack is per unit of: the residual's rounding, the rounded residual, and one.
        self.slack = torch.stack([lengths, (encoder - self.rows).norm(dim=-1), 4 * _U * b_enc.abs()])

    @staticmethod
    def pays(encoder: Float[Tensor, "d_sae d_model"]) -> bool:
        """Whether it is faster than the product itself: a large encoder, on a CPU that computes in bfloat16."""
        able = torch.cpu.get_capabilities()
        narrow = able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16")
        return encoder.device.type == "cpu" and encoder.numel() >= _MIN_WEIGHTS and bool(narrow)

    def bounds(self, x: Float[Tensor, "tokens d_model"]) -> Bounds:
        """Bounds of `x @ W_enc + b_enc`; `x` is what the encoder reads, normalised and float32."""
        narrow = x.to(torch.bfloat16)
        read = F.linear(F.pad(narrow, (0, 0, 0, -len(x) % ROW_STEP)), self.rows)[: len(x)].float()
        size, rounded = x.norm(dim=-1), narrow.float()
        off = (x - rounded).norm(dim=-1) + 2 * x.shape[-1] * _U * size
        # One per cent: these norms are sums in float32 themselves.
        sizes = 1.01 * torch.stack([off, rounded.norm(dim=-1), torch.ones_like(size)], dim=-1)
        slack = (sizes @ self.slack).add_(read.abs(), alpha=_ROUNDED)
        middle = read.add_(self.b_enc)
        return Bounds(middle - slack, slack.add_(middle))
