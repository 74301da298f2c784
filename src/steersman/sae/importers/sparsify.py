"""EleutherAI's sparsify (formerly `sae`): `cfg.json` and `sae.safetensors`, in a folder named for the module it reads."""

from __future__ import annotations

from pathlib import Path

from steersman.errors import SaeError
from steersman.sae.file import CONFIG_FILE, read_json, read_weights
from steersman.sae.importers.hooks import layer_of
from steersman.sae.importers.raw import naming, pick, width
from steersman.sae.model import SaeConfig, SparseAutoencoder

WEIGHTS = "sae.safetensors"
# Settings that make something else of it than an autoencoder with the k largest of its token.
_REFUSED = ("transcode", "skip_connection", "embed_skip", "gram_lookup", "signed")


def read(path: Path, *, layer: int | None = None) -> SparseAutoencoder:
    """Convert a folder; the layer is taken from its name (`layers.10`) where it is not given.

    Raises:
        SaeError: not such a folder, a transcoder or another variant that is no topk autoencoder, or the layer is unknown.
    """
    with naming(path):
        facts = read_json(path / CONFIG_FILE)
        for name in _REFUSED:
            if facts.get(name):
                raise SaeError(f"it was trained with {name}, which steersman does not read; choose a plain autoencoder")
        if facts.get("activation", "topk") != "topk":
            raise SaeError(f"its activation {facts['activation']!r} is not read; steersman knows topk here")
        if not isinstance(facts.get("k"), int):
            raise SaeError(f"{CONFIG_FILE} does not say k, the number of latents that fire per token")
        encoder, b_enc, decoder, b_dec = pick(
            read_weights(path / WEIGHTS), "encoder.weight", "encoder.bias", "W_dec", "b_dec"
        )
        d_sae, d_model = width(encoder)
        config = SaeConfig(
            architecture="topk",
            d_model=d_model,
            d_sae=d_sae,
            layer=layer_of(path.absolute().name) if layer is None else layer,
            k=facts["k"],
            origin=f"EleutherAI sparsify {path.absolute().name}",
        )
        return SparseAutoencoder(config, W_enc=encoder.T, b_enc=b_enc, W_dec=decoder, b_dec=b_dec)
