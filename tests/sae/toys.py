"""Toy SAEs of every architecture and normalisation, toy residuals, and what an SAE does said a second time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from steersman.sae.config import WITH_THRESHOLD, Architecture, Normalise
from steersman.sae.model import SaeConfig, SparseAutoencoder

D_MODEL, D_SAE, K = 12, 40, 5
ARCHITECTURES: tuple[Architecture, ...] = ("relu", "jumprelu", "topk", "batchtopk")
FIXED: tuple[Normalise, ...] = ("none", "expected_norm")
PER_TOKEN: tuple[Normalise, ...] = ("layer_norm", "unit_norm")
NORMALISATIONS = FIXED + PER_TOKEN


def toy_config(architecture: Architecture = "relu", normalise: Normalise = "none", **facts: Any) -> SaeConfig:
    config = SaeConfig(
        architecture=architecture,
        d_model=D_MODEL,
        d_sae=D_SAE,
        layer=3,
        k=K if architecture in {"topk", "batchtopk"} else None,
        normalise=normalise,
        input_scale=0.37 if normalise == "expected_norm" else 1.0,
    )
    return replace(config, **facts)


def toy_weights(architecture: Architecture = "relu", seed: int = 0) -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(seed)
    weights = {
        "W_enc": torch.randn(D_MODEL, D_SAE, generator=made) * 0.4,
        "b_enc": torch.randn(D_SAE, generator=made) * 0.3,
        "W_dec": torch.randn(D_SAE, D_MODEL, generator=made) * 0.4,
        "b_dec": torch.randn(D_MODEL, generator=made) * 0.4,
    }
    threshold = torch.rand(D_SAE, generator=made) + 0.2
    return weights | {"threshold": threshold} if architecture in WITH_THRESHOLD else weights


def toy_sae(
    architecture: Architecture = "relu", normalise: Normalise = "none", *, seed: int = 0, **facts: Any
) -> SparseAutoencoder:
    return SparseAutoencoder(toy_config(architecture, normalise, **facts), **toy_weights(architecture, seed))


def residuals(*shape: int, seed: int = 1) -> Tensor:
    """Off centre, of different norms; by default (2, 7, d_model)."""
    made = torch.Generator().manual_seed(seed)
    shape = shape or (2, 7)
    h = torch.randn(*shape, D_MODEL, generator=made) + 0.5
    return h * (torch.rand(*shape, 1, generator=made) * 4 + 0.1)


def slow(sae: SparseAutoencoder, h: Tensor) -> tuple[Tensor, Tensor]:
    """Activations and reconstruction, one token after the other, latent by latent, in float64."""
    c = sae.config
    tokens = [_slow_token(sae, token.double()) for token in h.reshape(-1, c.d_model)]
    acts, out = (torch.stack(list(part)) for part in zip(*tokens, strict=True))
    return acts.reshape(*h.shape[:-1], c.d_sae), out.reshape(h.shape)


def _slow_token(sae: SparseAutoencoder, h: Tensor) -> tuple[Tensor, Tensor]:
    c = sae.config
    shift, divide, scale = torch.zeros(()).double(), torch.ones(()).double(), torch.ones(()).double()
    if c.normalise == "expected_norm":
        divide = scale = torch.tensor(1 / c.input_scale).double()
    elif c.normalise == "layer_norm":
        shift = h.sum() / len(h)
        scale = ((h - shift) ** 2).sum().div(len(h) - 1).sqrt()
        divide = scale + 1e-5
    elif c.normalise == "unit_norm":
        divide = scale = (h**2).mean().sqrt()
    x = (h - shift) / divide - (sae.b_dec.double() if c.subtract_decoder_bias else 0)
    read = [float((x * sae.W_enc[:, j].double()).sum() + sae.b_enc[j].double()) for j in range(c.d_sae)]
    least = [0.0] * c.d_sae if sae.threshold is None else sae.threshold.tolist()
    if c.architecture == "topk":
        assert c.k is not None
        least = [max(0.0, math.nextafter(sorted(read)[-c.k], -math.inf))] * c.d_sae
    acts = torch.tensor([v if v > low else 0.0 for v, low in zip(read, least, strict=True)]).double()
    out = sae.b_dec.double() + sum(acts[j] * sae.W_dec[j].double() for j in range(c.d_sae))
    return acts, out * scale + shift
