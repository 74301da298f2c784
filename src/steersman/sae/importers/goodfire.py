"""Goodfire's SAEs (Llama 3.1 8B and 3.3 70B): one PyTorch file, two linear layers and a ReLU."""

from __future__ import annotations

import re
from pathlib import Path

from steersman.errors import SaeError
from steersman.sae.importers.raw import naming, pick, read_state, width
from steersman.sae.model import SaeConfig, SparseAutoencoder

_LAYER = re.compile(r"-l(\d+)$")


def read(path: Path, *, layer: int | None = None) -> SparseAutoencoder:
    """Convert a `.pth` or `.pt` file; the layer is taken from its name (`…-SAE-l19.pth`) where it is not given.

    Raises:
        SaeError: not such a file, or its name does not say the layer.
    """
    with naming(path):
        state = read_state(path)
        encoder, b_enc, decoder, b_dec = pick(
            state, "encoder_linear.weight", "encoder_linear.bias", "decoder_linear.weight", "decoder_linear.bias"
        )
        if layer is None:
            named = _LAYER.search(path.stem)
            if named is None:
                raise SaeError("its name does not say the layer (as in …-SAE-l19.pth); give the layer")
            layer = int(named[1])
        d_sae, d_model = width(encoder)
        config = SaeConfig(
            architecture="relu",
            d_model=d_model,
            d_sae=d_sae,
            layer=layer,
            subtract_decoder_bias=False,
            origin=f"Goodfire {path.stem}",
        )
        return SparseAutoencoder(config, W_enc=encoder.T, b_enc=b_enc, W_dec=decoder.T, b_dec=b_dec)
