"""saprmarks' dictionary_learning: every class."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.sae.importers.parity import FIXTURES, check_parity, refusal

from steersman.sae.config import Architecture
from steersman.sae.importers.dictionary_learning import read

_CASES: dict[str, tuple[Architecture, int | None]] = {
    "AutoEncoder": ("relu", None),
    "AutoEncoderNew": ("relu", None),
    "AutoEncoderTopK": ("topk", 5),
    "BatchTopKSAE": ("batchtopk", 5),
    "GatedAutoEncoder": ("jumprelu", None),
    "JumpReluAutoEncoder": ("jumprelu", None),
    "MatryoshkaBatchTopKSAE": ("batchtopk", 5),
}
_FOLDERS = FIXTURES / "dictionary_learning"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(_FOLDERS / "BatchTopKSAE", tmp_path / "sae"))


def rewrite(folder: Path, **facts: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["trainer"].update(facts)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("case", _CASES)
def test_a_folder_does_what_its_own_class_makes_of_it(case: str, tmp_path: Path) -> None:
    sae = read(_FOLDERS / case)
    assert (sae.config.architecture, sae.config.k) == _CASES[case]
    assert sae.config.layer == 8
    check_parity(sae, _FOLDERS / case, tmp_path)


def test_a_dead_row_of_the_decoder_stays_dead(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(_FOLDERS / "AutoEncoder", tmp_path / "sae"))
    state = torch.load(folder / "ae.pt", weights_only=True)
    state["decoder.weight"][:, 3] = 0
    torch.save(state, folder / "ae.pt")
    sae = read(folder)
    assert not sae.W_dec[3].any()
    assert torch.allclose(sae.W_dec.norm(dim=-1)[4:], torch.ones(36))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"dict_class": "BatchTopkSAE"}, "did you mean 'BatchTopKSAE'"),
        ({"dict_class": "CrossCoder"}, "CrossCoder"),
        ({"dict_class": "AutoEncoder"}, "no tensor 'bias'"),
        ({"submodule_name": "mlp_out_layer_8"}, "mlp_out_layer_8"),
        ({"layer": None}, "give the layer"),
    ],
)
def test_what_is_wrong_in_the_config_is_named(folder: Path, wrong: dict[str, Any], said: str) -> None:
    rewrite(folder, **wrong)
    assert said in refusal("dictionary_learning", folder)


def test_a_layer_that_is_given_wins(folder: Path) -> None:
    rewrite(folder, submodule_name="mlp_out_layer_8")
    assert read(folder, layer=2).config.layer == 2


def test_a_threshold_that_was_never_measured_is_refused(folder: Path) -> None:
    state = torch.load(folder / "ae.pt", weights_only=True)
    torch.save(state | {"threshold": torch.tensor(-1.0)}, folder / "ae.pt")
    assert "threshold" in refusal("dictionary_learning", folder)


def test_k_is_taken_from_either_file(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(_FOLDERS / "AutoEncoderTopK", tmp_path / "sae"))
    state = torch.load(folder / "ae.pt", weights_only=True)
    del state["k"]
    torch.save(state, folder / "ae.pt")
    assert read(folder).config.k == 5
    rewrite(folder, k=None)
    assert "says k" in refusal("dictionary_learning", folder)


@pytest.mark.parametrize("text", ["{}", '{"trainer": []}', "nonsense"])
def test_a_config_without_a_trainer_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "config.json" in refusal("dictionary_learning", folder)
