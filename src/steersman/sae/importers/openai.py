"""OpenAI's `sparse_autoencoder` for GPT-2 small: one PyTorch file a place and layer.

v5 (32k and 128k latents) is topk on layer-normalised residuals, v1 and v4 are ReLU on raw ones. The file does not say where
it reads; its path does: `resid_post_mlp_v5_32k/autoencoders/6.pt`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from steersman.errors import SaeError
from steersman.sae.importers.raw import naming, pick, read_state, width
from steersman.sae.model import SaeConfig, SparseAutoencoder

_BETWEEN_BLOCKS = "resid_post_mlp"
_ELSEWHERE = ("mlp_post_act", "resid_delta_attn", "resid_delta_mlp", "resid_post_attn")


def read(path: Path, *, layer: int | None = None) -> SparseAutoencoder:
    """Convert a `.pt` file; the layer is its name (`6.pt`) where it is not given.

    Raises:
        SaeError: not such a file, its path says that it reads elsewhere than between blocks, or the layer is unknown.
    """
    with naming(path):
        for part in path.parts:
            if part.startswith(_ELSEWHERE):
                raise SaeError(f"{part} is not the residual stream between two blocks; choose {_BETWEEN_BLOCKS}")
        if layer is None and not path.stem.isdecimal():
            raise SaeError("its name is not the number of its layer (as in 6.pt); give the layer")
        state = read_state(path)
        encoder, decoder, latent_bias, pre_bias = pick(
            state, "encoder.weight", "decoder.weight", "latent_bias", "pre_bias"
        )
        d_sae, d_model = width(encoder)
        config = SaeConfig(
            d_model=d_model,
            d_sae=d_sae,
            layer=int(path.stem) if layer is None else layer,
            origin="OpenAI sparse_autoencoder, GPT-2 small",
            **_activation(state),
        )
        return SparseAutoencoder(config, W_enc=encoder.T, b_enc=latent_bias, W_dec=decoder.T, b_dec=pre_bias)


def _activation(state: dict[str, Any]) -> dict[str, Any]:
    name = state.get("activation", "ReLU")
    if name == "ReLU":
        return {"architecture": "relu"}
    inner = state.get("activation_state_dict", {})
    k = inner.get("k") if isinstance(inner, dict) else None
    # Under Identity a latent among the k largest could be negative, and would fire all the same.
    if name != "TopK" or k is None or inner.get("postact_fn", "ReLU") != "ReLU":
        raise SaeError(f"its activation {name!r} with {inner!r} is unknown; known are ReLU, and TopK followed by ReLU")
    # As in the reference: whoever trained with TopK normalised the input.
    return {"architecture": "topk", "k": int(k.item() if isinstance(k, Tensor) else k), "normalise": "layer_norm"}
