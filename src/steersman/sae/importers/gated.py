"""A gated SAE (arXiv:2404.16014) is a JumpReLU SAE, exactly. Knows nothing of files.

With z = x @ W, its latent is `relu(exp(r) z + b_mag)` where `z + b_gate > 0`. Put v = exp(r) z + b_mag: that is `relu(v)`
where `v > b_mag - exp(r) b_gate`.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class JumpRelu(NamedTuple):
    """The encoder of the same SAE as a JumpReLU."""

    W_enc: Float[Tensor, "d_model d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    threshold: Float[Tensor, " d_sae"]


def as_jumprelu(
    W: Float[Tensor, "d_model d_sae"],  # noqa: N803
    r_mag: Float[Tensor, " d_sae"],
    b_gate: Float[Tensor, " d_sae"],
    b_mag: Float[Tensor, " d_sae"],
) -> JumpRelu:
    """The JumpReLU encoder that does what a gated one does."""
    gain = r_mag.float().exp()
    return JumpRelu(W * gain, b_mag, b_mag - gain * b_gate)
