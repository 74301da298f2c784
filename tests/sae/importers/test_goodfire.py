"""Goodfire's SAEs of Llama."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from tests.sae.importers.parity import FIXTURES, check_parity, refusal

from steersman.sae.importers.goodfire import read

_CASE = FIXTURES / "goodfire" / "relu"
_FILE = _CASE / "Toy-Instruct-SAE-l19.pth"


def test_a_file_does_what_the_reference_makes_of_it(tmp_path: Path) -> None:
    sae = read(_FILE)
    assert (sae.config.architecture, sae.config.layer, sae.config.subtract_decoder_bias) == ("relu", 19, False)
    check_parity(sae, _CASE, tmp_path)


def test_a_name_without_a_layer_asks_for_it(tmp_path: Path) -> None:
    path = tmp_path / "sae.pth"
    shutil.copy(_FILE, path)
    assert "give the layer" in refusal("goodfire", path)
    assert read(path, layer=50).config.layer == 50


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x-l3.pt"
    torch.save({"encoder_linear.weight": torch.zeros(3, 2)}, path)
    assert "'encoder_linear.bias'" in refusal("goodfire", path)
