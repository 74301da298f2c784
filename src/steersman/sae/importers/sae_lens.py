"""SAELens' SAEs: a folder (`cfg.json`, `sae_weights.safetensors`), or a release and id of its directory.

A folder is read here, without SAELens. A release is fetched and read by SAELens itself (extra `sae`), which knows what every
published format needs; both then take the same way into our terms.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from steersman.errors import SaeError, did_you_mean
from steersman.sae.file import CONFIG_FILE, WEIGHTS_FILE, read_json, read_weights
from steersman.sae.importers.gated import as_jumprelu
from steersman.sae.importers.hooks import layer_of
from steersman.sae.importers.raw import naming, pick
from steersman.sae.model import SaeConfig, SparseAutoencoder
from steersman.settings import Settings

_INSTALL = "pip install 'steersman[sae]'"
_NORMALISE = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "unit_norm",
    "expected_average_only_in": "expected_norm",
}
_ARCHITECTURE = {"standard": "relu", "gated": "jumprelu", "jumprelu": "jumprelu", "topk": "topk"}
_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
# A factor on activations before they are decoded, which some versions kept beside the weights.
_SCALINGS = ("scaling_factor", "finetuning_scaling_factor")
_TENSORS = {"W_enc", "b_enc", "W_dec", "b_dec", "threshold", "b_gate", "b_mag", "r_mag", *_SCALINGS}


def read(path: Path, *, layer: int | None = None, input_scale: float | None = None) -> SparseAutoencoder:
    """Convert a folder that SAELens wrote; any version's.

    Args:
        path: the folder.
        layer: instead of the one that its hook name says.
        input_scale: for an SAE trained on inputs of a fixed mean norm (`expected_average_only_in`), whose factor SAELens keeps
            outside of the folder.

    Raises:
        SaeError: not such a folder, or an SAE of a kind that is not read.
    """
    with naming(path):
        facts = flat(read_json(path / CONFIG_FILE))
        if input_scale is not None:
            facts["input_scale"] = input_scale
        return convert(facts, read_weights(path / WEIGHTS_FILE), layer=layer)


def read_release(release: str, sae_id: str, settings: Settings) -> SparseAutoencoder:
    """Fetch and convert one SAE of SAELens' directory (`gpt2-small-res-jb`, `blocks.8.hook_resid_pre`).

    Raises:
        SaeError: SAELens is not installed, no such release or id, not reachable, or an SAE of a kind that is not read.
    """
    try:
        from sae_lens import SAE
        from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
    except ImportError as error:
        raise SaeError(f"releases of SAELens are read through it, and it is not installed; {_INSTALL}") from error
    known = get_pretrained_saes_directory()
    if release not in known:
        raise SaeError(f"SAELens knows no release {release!r}{did_you_mean(release, known)}")
    ids = known[release].saes_map
    if sae_id not in ids:
        close = did_you_mean(sae_id, ids) or f"; it has {', '.join(list(ids)[:3])}, …"
        raise SaeError(f"release {release} has no SAE {sae_id!r}{close}")
    _check_online(settings)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its advice on loading the model is for its own users
            sae, _, _ = SAE.from_pretrained_with_cfg_and_sparsity(release, sae_id, device="cpu", dtype="float32")
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise SaeError(f"SAELens cannot load {release} {sae_id}: {first}; is the hub reachable?") from error
    with naming(Path(release) / sae_id):
        return convert(flat(sae.cfg.to_dict()), sae.state_dict())


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """A SAELens config of any version in one: what newer ones keep under `metadata` beside the rest, old names renamed."""
    metadata = config.get("metadata")
    together = {**(metadata if isinstance(metadata, Mapping) else {}), **config}
    facts = {_RENAMED.get(name, name): value for name, value in together.items()}
    if facts.get("activation_fn") == "topk":  # before version 6
        facts |= {"architecture": "topk", "k": (facts.get("activation_fn_kwargs") or {}).get("k")}
    given = facts.get("normalize_activations")
    facts["normalize_activations"] = {None: "none", False: "none", True: "expected_average_only_in"}.get(given, given)
    return facts


def convert(facts: Mapping[str, Any], tensors: Mapping[str, Tensor], *, layer: int | None = None) -> SparseAutoencoder:
    """The SAE that a flat SAELens config and its tensors describe.

    Raises:
        SaeError: another architecture, place or normalisation than steersman reads, or tensors missing or too many.
    """
    kind, normalise = facts.get("architecture", "standard"), facts["normalize_activations"]
    if kind not in _ARCHITECTURE:
        raise SaeError(f"SAELens' architecture {kind!r} is not read; known are {', '.join(_ARCHITECTURE)}")
    if normalise not in _NORMALISE:
        raise SaeError(f"SAELens' normalisation {normalise!r} is not read; known are {', '.join(_NORMALISE)}")
    if normalise == "expected_average_only_in" and facts.get("input_scale") is None:
        raise SaeError("it wants inputs of a fixed mean norm, and its files do not hold the factor; give input_scale")
    if unknown := sorted(tensors.keys() - _TENSORS):
        raise SaeError(f"unknown tensor {unknown[0]!r}; steersman reads plain autoencoders")
    weights = _weights(kind, tensors)
    subtract = bool(facts.get("apply_b_dec_to_input", True))
    if facts.get("rescale_acts_by_decoder_norm"):
        weights = _unit_decoder(weights)
    if (facts.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights"):
        weights, subtract = _centred(weights, subtract, normalise)
    hook = str(facts.get("hook_name"))
    config = SaeConfig(
        architecture=_ARCHITECTURE[kind],  # type: ignore[arg-type]
        d_model=weights["W_dec"].shape[-1],
        d_sae=weights["W_dec"].shape[0],
        layer=layer_of(hook) if layer is None else layer,
        k=facts.get("k") if kind == "topk" else None,
        normalise=_NORMALISE[normalise],  # type: ignore[arg-type]
        input_scale=float(facts.get("input_scale") or 1.0),
        subtract_decoder_bias=subtract,
        origin=f"SAELens {facts.get('model_name')} {hook}",
    )
    return SparseAutoencoder(config, **weights)


def _weights(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    W_enc, W_dec, b_dec = pick(tensors, "W_enc", "W_dec", "b_dec")  # noqa: N806
    for name in _SCALINGS:
        if name in tensors:
            W_dec = W_dec * pick(tensors, name)[0][:, None]  # noqa: N806
    weights = {"W_enc": W_enc, "W_dec": W_dec, "b_dec": b_dec}
    if kind == "gated":
        return weights | as_jumprelu(W_enc, *pick(tensors, "r_mag", "b_gate", "b_mag"))._asdict()
    names = ("b_enc", "threshold") if kind == "jumprelu" else ("b_enc",)
    return weights | dict(zip(names, pick(tensors, *names), strict=True))


def _unit_decoder(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Activations of an SAE that chooses its k largest, and decodes, as if the rows of its decoder had norm 1."""
    norm = weights["W_dec"].norm(dim=-1)
    return {
        **weights,
        "W_enc": weights["W_enc"] * norm,
        "b_enc": weights["b_enc"] * norm,
        "W_dec": weights["W_dec"] / norm[:, None],
    }


def _centred(weights: dict[str, Tensor], subtract: bool, normalise: str) -> tuple[dict[str, Tensor], bool]:
    """For an SAE of TransformerLens' centred residuals, which are ours less the mean over their dimensions.

    Its encoder then gives on ours what it gave on theirs. The mean is in no reconstruction: it never was an input.
    """
    if normalise == "layer_norm":  # centres its input itself
        return weights, subtract
    if normalise != "none":
        raise SaeError(f"centred weights under {normalise} are not read")
    encoder, bias = weights["W_enc"].double(), weights["b_enc"].double()
    if subtract:
        bias = bias - weights["b_dec"].double() @ encoder
    return weights | {"W_enc": encoder - encoder.mean(0, keepdim=True), "b_enc": bias}, False


def _check_online(settings: Settings) -> None:
    from huggingface_hub import constants

    if settings.offline and not constants.HF_HUB_OFFLINE:
        raise SaeError(
            "offline mode is on (STEERSMAN_OFFLINE); switch it off, or set HF_HUB_OFFLINE=1 for what was fetched before"
        )
