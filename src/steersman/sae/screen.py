"""Bounds of what every latent reads at a token, from half the bytes. Knows nothing of thresholds, or of what fires.

One token's encoding costs the reading of the whole encoder from memory, and little else counts. The screen reads a copy in
bfloat16 and says how far off it can be; whoever uses it reads the few latents that matter again, in float32. With `ŵ` the rounded
encoder row, `p` the product as it comes out, `n` the width and `u = 2**-24` (Cauchy and Schwarz):

    |x . w - p|  <=  2**-8 |x| |w|  +  1.01 |x| |w - ŵ|  +  2**-8 |p|  +  2 n u |x| |w|
                     rounded residual  rounded row          rounded p    float32 sums, here and in what it is compared with

The second term is 0 for an SAE that was stored in bfloat16; its `|w - ŵ|` is taken as the same share of `|w|` for every row, that
of the worst.
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
    """How each pre-activation comes out, and how far off float32 arithmetic may find it. NaN where the residual is not finite."""

    middle: Float[Tensor, "tokens d_sae"]
    slack: Float[Tensor, "tokens d_sae"]

    @property
    def low(self) -> Float[Tensor, "tokens d_sae"]:
        """No pre-activation is below it."""
        return self.middle - self.slack

    @property
    def high(self) -> Float[Tensor, "tokens d_sae"]:
        """No pre-activation is above it."""
        return self.middle + self.slack


class Screen:
    """A copy of an encoder in bfloat16 and how far each of its rows is off."""

    def __init__(self, encoder: Float[Tensor, "d_sae d_model"], b_enc: Float[Tensor, " d_sae"]) -> None:
        self.rows = encoder.to(torch.bfloat16)
        self.b_enc = b_enc
        lengths = encoder.norm(dim=-1)
        shares = (encoder - self.rows).norm(dim=-1) / lengths.clamp(min=torch.finfo(torch.float32).tiny)
        # One per cent: norms are sums in float32 themselves.
        self.slopes = 1.01 * (_ROUNDED + 1.01 * shares.max() + 2 * encoder.shape[-1] * _U) * lengths
        """What a unit of a residual's length adds to the slack of each row."""
        self.least_slack = 4 * _U * b_enc.abs()

    @staticmethod
    def pays(encoder: Float[Tensor, "d_sae d_model"]) -> bool:
        """Whether it is faster than the product itself: a large encoder, on a CPU that computes in bfloat16."""
        able = torch.cpu.get_capabilities()
        narrow = able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16")
        return encoder.device.type == "cpu" and encoder.numel() >= _MIN_WEIGHTS and bool(narrow)

    def bounds(self, x: Float[Tensor, "tokens d_model"]) -> Bounds:
        """Bounds of `x @ W_enc + b_enc`; `x` is what the encoder reads, normalised and float32."""
        n, width = x.shape
        narrow = torch.zeros(n + -n % ROW_STEP, width, dtype=torch.bfloat16, device=x.device)
        narrow[:n] = x
        read = F.linear(narrow, self.rows)[:n].float()
        slack = torch.addcmul(self.least_slack, x.norm(dim=-1, keepdim=True), self.slopes)
        slack.add_(read.abs(), alpha=_ROUNDED)
        return Bounds(read.add_(self.b_enc), slack)
