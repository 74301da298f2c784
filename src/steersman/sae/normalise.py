"""What published SAEs do to a residual before they encode it, and how it is undone after decoding. Pure functions."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.errors import SaeError
from steersman.sae.config import SaeConfig

# As in OpenAI's sparse_autoencoder and SAELens: added to the unbiased standard deviation, and not undone.
_LAYER_NORM_EPS = 1e-5


class Frame(NamedTuple):
    """How one token's normalised and raw residual are related: `raw = normalised * scale + shift`."""

    scale: Float[Tensor, "*batch 1"] | float
    shift: Float[Tensor, "*batch 1"] | float


def normalised(config: SaeConfig, h: Float[Tensor, "*batch d_model"]) -> tuple[Float[Tensor, "*batch d_model"], Frame]:
    """The residuals (float32) as the SAE wants them, and the way back."""
    match config.normalise:
        case "none":
            return h, Frame(1.0, 0.0)
        case "expected_norm":
            return h * config.input_scale, Frame(1 / config.input_scale, 0.0)
        case "layer_norm":
            mean, std = h.mean(-1, keepdim=True), h.std(-1, keepdim=True)
            return (h - mean) / (std + _LAYER_NORM_EPS), Frame(std, mean)
        case "unit_norm":
            rms = h.norm(dim=-1, keepdim=True) / math.sqrt(h.shape[-1])
            return h / rms.clamp(min=torch.finfo(torch.float32).tiny), Frame(rms, 0.0)


def denormalised(
    config: SaeConfig, x: Float[Tensor, "*batch d_model"], h: Float[Tensor, "*batch d_model"] | None
) -> Float[Tensor, "*batch d_model"]:
    """Raw residuals for normalised ones; `h` are the residuals that were encoded.

    Raises:
        SaeError: the normalisation depends on the token, and `h` is None.
    """
    match config.normalise:
        case "none":
            return x
        case "expected_norm":
            return x / config.input_scale
        case _:
            if h is None:
                raise SaeError(f"decoding under {config.normalise} needs the residuals too: decode(acts, h)")
            frame = normalised(config, h.to(torch.float32))[1]
            return x * frame.scale + frame.shift


def fixed_scale(config: SaeConfig) -> float:
    """The factor that normalisation multiplies every residual by.

    Raises:
        SaeError: it depends on the token.
    """
    if config.normalise in {"none", "expected_norm"}:
        return config.input_scale
    raise SaeError(
        f"{config.normalise} depends on the token, so it cannot be folded into a latent's weights; encode with the SAE itself"
    )
