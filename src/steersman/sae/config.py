"""What a sparse autoencoder is, apart from its weights. Knows nothing of tensors or files."""

from __future__ import annotations

import math
from typing import Literal, get_args

from steersman.errors import SaeError
from steersman.facts import fact
from steersman.models.language_model import ModelRef

Architecture = Literal["relu", "jumprelu", "topk", "batchtopk"]
Normalise = Literal["none", "expected_norm", "layer_norm", "unit_norm"]

WITH_THRESHOLD = frozenset({"jumprelu", "batchtopk"})
"""Architectures whose latents fire above a threshold of their own."""


@fact
class SaeConfig:
    """What an SAE is, apart from its weights. Checked at birth."""

    architecture: Architecture
    """When a latent fires: above 0 (relu), above its threshold (jumprelu, batchtopk), or above 0 and among the k largest of
    its token (topk)."""
    d_model: int
    """Width of the residual stream."""
    d_sae: int
    """Number of latents."""
    layer: int
    """The decoder block whose output it reads, counted from 0."""
    k: int | None = None
    """Latents that fire per token: exactly (topk), or on average in training (batchtopk)."""
    normalise: Normalise = "none"
    """What is done to a residual before encoding and undone after decoding: nothing; a multiplication by `input_scale`;
    centring and division by the standard deviation; division by the root mean square."""
    input_scale: float = 1.0
    """Factor of `expected_norm`."""
    subtract_decoder_bias: bool = True
    """Whether `b_dec` is taken off the (normalised) input."""
    model: ModelRef | None = None
    """The model it was trained on; None where its files do not say so."""
    origin: str = ""
    """Where it comes from; for people."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("SAE architecture", self.architecture, get_args(Architecture)),
            ("input normalisation", self.normalise, get_args(Normalise)),
        ):
            if value not in known:
                raise SaeError(f"unknown {name} {value!r}; use one of {', '.join(known)}")
        if self.d_model < 1 or self.d_sae < 1:
            raise SaeError(f"an SAE needs d_model and d_sae of at least 1, not {self.d_model} and {self.d_sae}")
        if self.layer < 0:
            raise SaeError(f"SAE layer {self.layer} is negative; layer 0 is the output of the first decoder block")
        if self.architecture == "topk" and self.k is None:
            raise SaeError("a topk SAE needs k, the number of latents that fire per token")
        if self.architecture not in {"topk", "batchtopk"} and self.k is not None:
            raise SaeError(f"a {self.architecture} SAE has no k; leave it out")
        if self.k is not None and not 1 <= self.k <= self.d_sae:
            raise SaeError(f"k={self.k} does not fit an SAE of {self.d_sae} latents")
        if not (math.isfinite(self.input_scale) and self.input_scale > 0):
            raise SaeError(f"input_scale must be finite and above 0, not {self.input_scale}")
        if self.input_scale != 1.0 and self.normalise != "expected_norm":
            raise SaeError(f"input_scale belongs to normalise='expected_norm', not to {self.normalise!r}")


@fact
class SaeRef:
    """Which sparse autoencoder the features of a recipe or an index belong to."""

    id: str
    """Its name in the library, or whatever people call it."""
    layer: int
    weights_hash: str
    """`SparseAutoencoder.weights_hash`."""
