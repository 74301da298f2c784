"""Gemma Scope and Gemma Scope 2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.sae.importers.parity import FIXTURES, check_parity, refusal

from steersman.sae.importers.gemma_scope import read

_CASE = FIXTURES / "gemma_scope" / "jumprelu"
_INNER = Path("layer_20", "width_16k", "average_l0_71")
_NPZ = _CASE / _INNER / "params.npz"


def second(folder: Path, hook: str = "model.layers.12.output", **facts: str) -> Path:
    """The same SAE as Gemma Scope 2 would keep it."""
    folder.mkdir(parents=True)
    arrays = np.load(_NPZ)
    names = {"W_enc": "w_enc", "W_dec": "w_dec"}
    save_file({names.get(name, name): torch.from_numpy(arrays[name]) for name in arrays}, folder / "params.safetensors")
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "hf_hook_point_in": hook, **facts}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("path", [_CASE / _INNER, _NPZ])
def test_parameters_do_what_the_reference_makes_of_them(path: Path, tmp_path: Path) -> None:
    sae = read(path)
    assert (sae.config.architecture, sae.config.layer) == ("jumprelu", 20)
    assert sae.config.origin == "Gemma Scope layer_20 width_16k average_l0_71"
    check_parity(sae, _CASE, tmp_path)


def test_the_second_scope(tmp_path: Path) -> None:
    sae = read(second(tmp_path / "resid_post" / "layer_12_width_16k_l0_big"))
    assert sae.config.layer == 12
    check_parity(sae, _CASE, tmp_path)


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        ("embedding/width_4k/average_l0_6", "before the first block"),
        ("models--google--gemma-scope-2b-pt-att/layer_20/width_16k", "gemma-scope-2b-pt-att"),
        ("models--google--gemma-scope-2b-pt-mlp/layer_20/width_16k", "gemma-scope-2b-pt-mlp"),
        ("width_16k", "give the layer"),
    ],
)
def test_a_path_that_says_elsewhere_or_nothing_is_refused(tmp_path: Path, inner: str, said: str) -> None:
    path = tmp_path / inner / "params.npz"
    path.parent.mkdir(parents=True)
    shutil.copy(_NPZ, path)
    assert said in refusal("gemma_scope", path)
    assert read(path, layer=3).config.layer == 3


def test_places_of_the_second_scope_are_refused(tmp_path: Path) -> None:
    path = second(tmp_path / "attn_out" / "layer_12", "model.layers.12.self_attn.o_proj.input")
    assert "o_proj" in refusal("gemma_scope", path / "params.safetensors")
    path = second(tmp_path / "transcoder" / "layer_12", hf_hook_point_out="model.layers.12.mlp.output")
    assert "transcoder" in refusal("gemma_scope", path / "params.safetensors")
    assert "transcoder" in refusal("gemma_scope", path / "params.safetensors", layer=12)


def test_missing_arrays_are_named(tmp_path: Path) -> None:
    path = tmp_path / "layer_1" / "params.npz"
    path.parent.mkdir()
    np.savez(path, W_enc=np.zeros((2, 3), np.float32))
    assert "'b_enc'" in refusal("gemma_scope", path)
    assert "cannot read" in refusal("gemma_scope", tmp_path, layer=1)
