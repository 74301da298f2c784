"""EleutherAI's sparsify."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tests.sae.importers.parity import FIXTURES, check_parity, refusal

from steersman.sae.importers.sparsify import read

_CASE = FIXTURES / "sparsify" / "topk"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(_CASE / "layers.10", tmp_path / "layers.10"))


def rewrite(folder: Path, **facts: Any) -> None:
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | facts))


def test_a_folder_does_what_sparsify_makes_of_it(tmp_path: Path) -> None:
    sae = read(_CASE / "layers.10")
    assert (sae.config.architecture, sae.config.k, sae.config.layer) == ("topk", 5, 10)
    check_parity(sae, _CASE, tmp_path)


def test_the_working_folder_has_a_name_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert read(Path()).config.layer == 10


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"transcode": True}, "transcode"),
        ({"skip_connection": True}, "skip_connection"),
        ({"signed": True}, "signed"),
        ({"activation": "groupmax"}, "groupmax"),
        ({"k": None}, "does not say k"),
        ({"k": 41}, "k=41"),
    ],
)
def test_variants_are_refused_by_name(folder: Path, wrong: dict[str, Any], said: str) -> None:
    rewrite(folder, **wrong)
    assert said in refusal("sparsify", folder)


@pytest.mark.parametrize(("name", "said"), [("layers.10.mlp", "layers.10.mlp"), ("embed_tokens", "first block")])
def test_other_places_in_the_model_are_refused(folder: Path, name: str, said: str) -> None:
    other = folder.rename(folder.with_name(name))
    assert said in refusal("sparsify", other)
    assert read(other, layer=1).config.layer == 1


def test_missing_tensors_are_named(folder: Path) -> None:
    tensors = load_file(folder / "sae.safetensors")
    save_file({"encoder.weight": tensors["encoder.weight"]}, folder / "sae.safetensors")
    assert "'encoder.bias'" in refusal("sparsify", folder)
