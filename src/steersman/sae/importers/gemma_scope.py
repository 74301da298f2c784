"""Google's Gemma Scope (`params.npz`) and Gemma Scope 2 (`params.safetensors` with `config.json`): JumpReLU."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steersman.errors import SaeError
from steersman.sae.file import read_json, read_weights
from steersman.sae.importers.hooks import layer_of
from steersman.sae.importers.raw import naming, pick, read_npz, width
from steersman.sae.model import SaeConfig, SparseAutoencoder

NPZ = "params.npz"
SAFETENSORS = "params.safetensors"
_LAYER = re.compile(r"layer_(\d+)(?:_.*)?")
_NAMING = ("layer_", "width_", "average_l0_")
_ELSEWHERE = re.compile(r".*gemma-scope-.*-(att|mlp|transcoders?)|(attn_out|mlp_out|transcoder|clt)(_.*)?")


def read(path: Path, *, layer: int | None = None) -> SparseAutoencoder:
    """Convert a folder or the parameter file in it; the layer is taken from the path (`layer_20/width_16k/…`).

    Raises:
        SaeError: not such a file, or its path says that it reads elsewhere than between blocks, or not which layer.
    """
    if path.is_dir():
        path = path / (NPZ if (path / NPZ).is_file() else SAFETENSORS)
    with naming(path):
        config_file = path.with_name("config.json")
        facts = read_json(config_file) if path.suffix != ".npz" and config_file.is_file() else {}
        if facts.get("hf_hook_point_out"):
            raise SaeError("it is a transcoder, which predicts an MLP's output; steersman reads autoencoders")
        if layer is None:
            layer = _layer(path, facts)
        # Gemma Scope 2 writes w_enc for W_enc.
        given = read_npz(path) if path.suffix == ".npz" else read_weights(path)
        state = {
            name[0].upper() + name[1:] if name.startswith("w_") else name: tensor for name, tensor in given.items()
        }
        encoder, b_enc, decoder, b_dec, threshold = pick(state, "W_enc", "b_enc", "W_dec", "b_dec", "threshold")
        d_model, d_sae = width(encoder)
        config = SaeConfig(
            architecture="jumprelu",
            d_model=d_model,
            d_sae=d_sae,
            layer=layer,
            subtract_decoder_bias=False,
            origin=" ".join(["Gemma Scope", *(part for part in path.parent.parts if part.startswith(_NAMING))]),
        )
        return SparseAutoencoder(config, W_enc=encoder, b_enc=b_enc, W_dec=decoder, b_dec=b_dec, threshold=threshold)


def _layer(path: Path, facts: Mapping[str, Any]) -> int:
    if "hf_hook_point_in" in facts:
        return layer_of(str(facts["hf_hook_point_in"]))
    for part in path.parent.parts:
        if _ELSEWHERE.fullmatch(part):
            raise SaeError(
                f"{part} is not the residual stream between two blocks; choose one of the residual stream (res)"
            )
        if part == "embedding":
            return layer_of(part)
    named = [found for part in path.parent.parts if (found := _LAYER.fullmatch(part))]
    if not named:
        raise SaeError("its path does not say the layer (as in layer_20/width_16k/…); give the layer")
    return int(named[-1][1])
