"""OpenAI's GPT-2 SAEs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.sae.importers.parity import FIXTURES, check_parity, refusal

from steersman.sae.importers.openai import read

_PATH = Path("resid_post_mlp_v5_32k", "autoencoders", "6.pt")
_CASES = FIXTURES / "openai"


def test_topk_on_normalised_residuals(tmp_path: Path) -> None:
    sae = read(_CASES / "topk" / _PATH)
    config = sae.config
    assert (config.architecture, config.k, config.normalise, config.layer) == ("topk", 5, "layer_norm", 6)
    check_parity(sae, _CASES / "topk", tmp_path)


def test_relu_on_raw_residuals(tmp_path: Path) -> None:
    sae = read(_CASES / "relu" / _PATH, layer=2)
    assert (sae.config.architecture, sae.config.normalise, sae.config.layer) == ("relu", "none", 2)
    check_parity(sae, _CASES / "relu", tmp_path)


@pytest.fixture
def state() -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(_CASES / "topk" / _PATH, weights_only=True)
    return loaded


@pytest.mark.parametrize(
    "part", ["resid_delta_mlp_v5_32k", "resid_post_attn_v5_128k", "resid_delta_attn", "mlp_post_act"]
)
def test_other_places_in_the_model_are_refused(tmp_path: Path, part: str) -> None:
    path = tmp_path / part / "6.pt"
    path.parent.mkdir()
    shutil.copy(_CASES / "topk" / _PATH, path)
    assert part in refusal("openai", path)


def test_a_name_that_is_no_layer_asks_for_it(tmp_path: Path) -> None:
    path = tmp_path / "gpt2.pt"
    shutil.copy(_CASES / "topk" / _PATH, path)
    assert "give the layer" in refusal("openai", path)
    assert read(path, layer=4).config.layer == 4


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"activation": "Swish"}, "Swish"),
        ({"activation_state_dict": {"k": 5, "postact_fn": "Identity"}}, "Identity"),
        ({"activation_state_dict": {}}, "TopK"),
        ({"activation_state_dict": {"k": 500, "postact_fn": "ReLU"}}, "k=500"),
        ({"latent_bias": "none"}, "latent_bias"),
        ({"pre_bias": torch.zeros(3)}, "b_dec has shape"),
        ({"encoder.weight": torch.zeros(3)}, "shape (3,)"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(
    tmp_path: Path, state: dict[str, Any], wrong: dict[str, Any], said: str
) -> None:
    path = tmp_path / "6.pt"
    torch.save(state | wrong, path)
    assert said in refusal("openai", path)


def test_k_may_be_a_tensor(tmp_path: Path, state: dict[str, Any]) -> None:
    path = tmp_path / "6.pt"
    torch.save(state | {"activation_state_dict": {"k": torch.tensor(4), "postact_fn": "ReLU"}}, path)
    assert read(path).config.k == 4
