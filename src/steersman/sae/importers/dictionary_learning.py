"""saprmarks' dictionary_learning: `ae.pt` and `config.json` in one folder; the config names the class that was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steersman.errors import SaeError, did_you_mean
from steersman.sae.file import read_json
from steersman.sae.importers.gated import as_jumprelu
from steersman.sae.importers.raw import naming, pick, read_state, width
from steersman.sae.model import SaeConfig, SparseAutoencoder

CONFIG = "config.json"
WEIGHTS = "ae.pt"
_RESIDUAL = ("resid_post", "resid_out")


class _Parts(NamedTuple):
    """An SAE in our terms; `facts` are what differs from `SaeConfig`'s defaults."""

    facts: dict[str, Any]
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor | None = None


def read(path: Path, *, layer: int | None = None) -> SparseAutoencoder:
    """Convert a folder; the layer is taken from its config where it is not given.

    Raises:
        SaeError: not such a folder, a class that is not read, an SAE that reads elsewhere than between blocks, or a
            batchtopk SAE that was saved before its threshold was measured.
    """
    with naming(path):
        trainer = read_json(path / CONFIG).get("trainer")
        if not isinstance(trainer, dict):
            raise SaeError(f"{CONFIG} has no section 'trainer'; is the format right?")
        kind = str(trainer.get("dict_class"))
        if kind not in _CLASSES:
            raise SaeError(
                f"its class {kind!r} is not read{did_you_mean(kind, _CLASSES)}; known are {', '.join(_CLASSES)}"
            )
        parts = _CLASSES[kind](read_state(path / WEIGHTS), trainer)
        d_sae, d_model = width(parts.W_dec)
        config = SaeConfig(
            d_model=d_model,
            d_sae=d_sae,
            layer=_layer(trainer) if layer is None else layer,
            origin=f"dictionary_learning {kind} of {trainer.get('lm_name')}",
            **parts.facts,
        )
        return SparseAutoencoder(
            config,
            W_enc=parts.W_enc,
            b_enc=parts.b_enc,
            W_dec=parts.W_dec,
            b_dec=parts.b_dec,
            threshold=parts.threshold,
        )


def _layer(trainer: Mapping[str, Any]) -> int:
    # Its `layer` is the block that the submodule belongs to; of residual submodules it is the output that is read.
    place = trainer.get("submodule_name")
    if place is not None and not str(place).startswith(_RESIDUAL):
        raise SaeError(f"it reads {place!r}, not the residual stream between two blocks; choose resid_post")
    if not isinstance(trainer.get("layer"), int):
        raise SaeError(f"{CONFIG} does not say the layer; give the layer")
    return int(trainer["layer"])


def _standard(state: Mapping[str, Any], _trainer: Mapping[str, Any]) -> _Parts:
    encoder, b_enc, decoder, b_dec = pick(state, "encoder.weight", "encoder.bias", "decoder.weight", "bias")
    # As its own loader: decoder rows of norm 1, the activations scaled to make up for it. A dead row of norm 0 stays.
    norm = decoder.norm(dim=0)
    norm = torch.where(norm > 0, norm, torch.ones_like(norm))
    return _Parts({"architecture": "relu"}, (encoder * norm[:, None]).T, b_enc * norm, (decoder / norm).T, b_dec)


def _april_update(state: Mapping[str, Any], _trainer: Mapping[str, Any]) -> _Parts:
    encoder, b_enc, decoder, b_dec = pick(state, "encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
    return _Parts({"architecture": "relu", "subtract_decoder_bias": False}, encoder.T, b_enc, decoder.T, b_dec)


def _gated(state: Mapping[str, Any], _trainer: Mapping[str, Any]) -> _Parts:
    encoder, r_mag, gate, mag, decoder, b_dec = pick(
        state, "encoder.weight", "r_mag", "gate_bias", "mag_bias", "decoder.weight", "decoder_bias"
    )
    jump = as_jumprelu(encoder.T, r_mag, gate, mag)
    return _Parts({"architecture": "jumprelu"}, jump.W_enc, jump.b_enc, decoder.T, b_dec, jump.threshold)


def _jumprelu(state: Mapping[str, Any], _trainer: Mapping[str, Any]) -> _Parts:
    weights = pick(state, "W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    return _Parts({"architecture": "jumprelu", "subtract_decoder_bias": False}, *weights)


def _topk(state: Mapping[str, Any], trainer: Mapping[str, Any]) -> _Parts:
    # It also keeps a threshold; its own encode() does not use it unless asked to.
    encoder, b_enc, decoder, b_dec = pick(state, "encoder.weight", "encoder.bias", "decoder.weight", "b_dec")
    return _Parts({"architecture": "topk", "k": _k(state, trainer)}, encoder.T, b_enc, decoder.T, b_dec)


def _batch_topk(state: Mapping[str, Any], trainer: Mapping[str, Any]) -> _Parts:
    encoder, b_enc, decoder, b_dec = pick(state, "encoder.weight", "encoder.bias", "decoder.weight", "b_dec")
    facts = {"architecture": "batchtopk", "k": _k(state, trainer)}
    return _Parts(facts, encoder.T, b_enc, decoder.T, b_dec, _one_threshold(state, len(b_enc)))


def _matryoshka(state: Mapping[str, Any], trainer: Mapping[str, Any]) -> _Parts:
    encoder, b_enc, decoder, b_dec = pick(state, "W_enc", "b_enc", "W_dec", "b_dec")
    facts = {"architecture": "batchtopk", "k": _k(state, trainer)}
    return _Parts(facts, encoder, b_enc, decoder, b_dec, _one_threshold(state, len(b_enc)))


def _k(state: Mapping[str, Any], trainer: Mapping[str, Any]) -> int:
    k = state.get("k", trainer.get("k"))
    if not isinstance(k, int | Tensor):
        raise SaeError(f"neither {WEIGHTS} nor {CONFIG} says k, the number of latents that fire per token")
    return int(k)


def _one_threshold(state: Mapping[str, Any], d_sae: int) -> Tensor:
    (threshold,) = pick(state, "threshold")
    if threshold.numel() != 1 or float(threshold) < 0:
        raise SaeError(
            "it was saved before its threshold was measured, so its latents do not fire on their own; train longer"
        )
    return threshold.reshape(1).expand(d_sae)


_CLASSES: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], _Parts]] = {
    "AutoEncoder": _standard,
    "AutoEncoderNew": _april_update,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batch_topk,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jumprelu,
    "MatryoshkaBatchTopKSAE": _matryoshka,
}
