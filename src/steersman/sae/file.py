"""Keep SAEs: `cfg.json` for the facts and `sae_weights.safetensors` for the weights, in one folder that SAELens reads too.

`cfg.json` says everything twice: at its top in SAELens' words (`SAE.load_from_disk` takes the folder as it is), and under
`steersman` in ours. The JSON names the hash of the weights, so that two files that do not belong together, or a damaged
one, are noticed. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from steersman.errors import SaeError, did_you_mean
from steersman.files import replacing, sha256_file
from steersman.sae.config import WITH_THRESHOLD, SaeConfig
from steersman.sae.model import SparseAutoencoder

FORMAT = 1
CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"

StoreDtype = Literal["float32", "bfloat16", "float16"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SECTION = "steersman"
_MAX_JSON_BYTES = 16 << 20
# SAELens reads a config without a version as one from before its format 6.
_SAE_LENS_VERSION = "6.0.0"
_SAE_LENS_ARCHITECTURE = {"relu": "standard", "jumprelu": "jumprelu", "batchtopk": "jumprelu", "topk": "topk"}
_SAE_LENS_NORMALISE = {"none": "none", "layer_norm": "layer_norm", "unit_norm": "constant_norm_rescale"}
_PICKLES = {".pt", ".pth", ".bin", ".pkl", ".ckpt"}


def save_sae(sae: SparseAutoencoder, folder: Path, *, store_dtype: StoreDtype = "float32") -> None:
    """Write the SAE into `folder` (made if need be), each file whole or not at all.

    `store_dtype` is for the two matrices; biases and thresholds stay float32, as does all arithmetic later. An input
    scale (`expected_norm`), for which SAELens has no place, is worked into the weights: the same function, other numbers.

    Raises:
        SaeError: a weight is too large for `store_dtype`.
        StorageError: the disk refused.
    """
    dtype = _dtype(store_dtype)
    if sae.config.normalise == "expected_norm":
        sae = sae.fold_normalisation()
    tensors = _narrowed(sae, dtype)
    weights, config = folder / WEIGHTS_FILE, folder / CONFIG_FILE
    # Both are written before either is renamed: an SAE that was there before stays whole until the new one is.
    with replacing(weights) as new_weights, replacing(config) as new_config:
        # Not save_file: it writes a file of its own and renames it, readable by its owner alone.
        new_weights.write_bytes(save(tensors, metadata={"format": "pt"}))
        facts = _sae_lens_facts(sae.config)
        facts[_SECTION] = {
            "format": FORMAT,
            "weights_sha256": sha256_file(new_weights),
            "config": _adapter().dump_python(sae.config, mode="json"),
        }
        new_config.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_sae(folder: Path, *, device: torch.device | str = "cpu") -> SparseAutoencoder:
    """Read an SAE written by `save_sae`.

    Raises:
        SaeError: no such folder, not an SAE of ours, unknown fields, or weights that are missing, damaged, of another
            shape, or NaN.
    """
    section, config = _facts(folder)
    path = folder / WEIGHTS_FILE
    if path.is_file() and sha256_file(path) != section.get("weights_sha256"):
        raise SaeError(f"{path} is damaged, or of another SAE than the {CONFIG_FILE} beside it; restore both files")
    tensors = read_weights(path, device)
    expected = {"W_enc", "b_enc", "W_dec", "b_dec"} | (
        {"threshold"} if config.architecture in WITH_THRESHOLD else set()
    )
    if wrong := sorted(expected ^ tensors.keys()):
        problem = "lacks" if wrong[0] in expected else "holds an unknown"
        raise SaeError(f"{path} {problem} tensor {wrong[0]!r}; restore both files of this SAE")
    try:
        return SparseAutoencoder(config, **tensors)
    except SaeError as error:
        raise SaeError(f"{path}: {error}") from error


def as_stored(sae: SparseAutoencoder, store_dtype: StoreDtype) -> SparseAutoencoder:
    """What `load_sae` would give after `save_sae`: rounded weights are other weights, to be measured as such.

    Raises:
        SaeError: a weight is too large for `store_dtype`.
    """
    if sae.config.normalise == "expected_norm":
        sae = sae.fold_normalisation()
    return SparseAutoencoder(sae.config, **_narrowed(sae, _dtype(store_dtype)))


def read_config(folder: Path) -> SaeConfig:
    """What the SAE in a folder is, without reading its weights.

    Raises:
        SaeError: as `load_sae`, weights aside.
    """
    return _facts(folder)[1]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        SaeError: no such file, or not a JSON object.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise SaeError(f"{path} is too large for a config ({path.stat().st_size} bytes)")
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SaeError(f"{path} is no valid JSON ({error})") from error
    except OSError as error:
        raise SaeError(f"cannot read {path}: {error.strerror}; name the folder that holds an SAE") from error
    if not isinstance(facts, dict):
        raise SaeError(f"{path} is not a JSON object")
    return facts


def read_weights(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        SaeError: no such file, or not a whole safetensors file.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path, device=str(device))
    except (SafetensorError, ValueError) as error:
        raise SaeError(f"{path} is damaged ({error}); fetch or write it again") from error
    except OSError as error:
        raise SaeError(f"cannot read {path}: {error.strerror or error}") from error
    return tensors


def _facts(folder: Path) -> tuple[dict[str, Any], SaeConfig]:
    """Our section of `cfg.json`, and the config in it."""
    if folder.suffix in _PICKLES and folder.is_file():
        raise SaeError(f"{folder} is a pickle, not an SAE of ours; convert it first: steersman sae import")
    facts = read_json(folder / CONFIG_FILE)
    section = facts.get(_SECTION)
    if not isinstance(section, dict):
        raise SaeError(f"{folder} holds an SAE that steersman did not write; convert it first: steersman sae import")
    if section.get("format") != FORMAT:
        raise SaeError(
            f"{folder} is not of SAE format {FORMAT} (it says {section.get('format')!r}); is steersman up to date?"
        )
    try:
        config = _adapter().validate_python(section.get("config"))
    except ValidationError as error:
        raise SaeError(f"{folder / CONFIG_FILE}: {_explain(error)}") from error
    except SaeError as error:
        raise SaeError(f"{folder / CONFIG_FILE}: {error}") from error
    return section, config


def _dtype(store_dtype: str) -> torch.dtype:
    if store_dtype not in _DTYPES:
        raise SaeError(f"unknown store_dtype {store_dtype!r}; use one of {', '.join(_DTYPES)}")
    return _DTYPES[store_dtype]


def _narrowed(sae: SparseAutoencoder, dtype: torch.dtype) -> dict[str, Tensor]:
    tensors = {
        "W_enc": sae.W_enc.to("cpu", dtype).contiguous(),
        "b_enc": sae.b_enc.cpu(),
        "W_dec": sae.W_dec.to("cpu", dtype),
        "b_dec": sae.b_dec.cpu(),
    }
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise SaeError(f"{name} has values too large for {dtype}; store it as bfloat16 or float32")
    return tensors if sae.threshold is None else tensors | {"threshold": sae.threshold.cpu()}


def _sae_lens_facts(config: SaeConfig) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "architecture": _SAE_LENS_ARCHITECTURE[config.architecture],
        "d_in": config.d_model,
        "d_sae": config.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": config.subtract_decoder_bias,
        "normalize_activations": _SAE_LENS_NORMALISE[config.normalise],
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": _SAE_LENS_VERSION,
            "model_name": None if config.model is None else config.model.id,
            "hook_name": f"blocks.{config.layer}.hook_resid_post",
            "hook_head_index": None,
        },
    }
    return facts | {"k": config.k} if config.architecture == "topk" else facts


@cache
def _adapter() -> TypeAdapter[SaeConfig]:
    return TypeAdapter(SaeConfig)


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    name = str(first["loc"][-1]) if first["loc"] else "config"
    if first["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        return f"unknown field {name!r}{did_you_mean(name, SaeConfig.__dataclass_fields__)}"
    if first["type"] in {"missing", "missing_argument", "missing_keyword_only_argument"}:
        return f"missing field {name!r}"
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
