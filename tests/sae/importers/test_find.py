"""From what a user names to an SAE."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tests.sae.importers.parity import FIXTURES
from tests.sae.toys import toy_sae

import steersman.sae.importers.find as find_module
from steersman.errors import SaeError
from steersman.sae.file import save_sae
from steersman.sae.importers import FORMATS
from steersman.sae.importers.find import detect, import_sae
from steersman.settings import Settings

_PATHS = {
    "dictionary_learning": FIXTURES / "dictionary_learning" / "GatedAutoEncoder",
    "gemma_scope": FIXTURES / "gemma_scope" / "jumprelu" / "layer_20" / "width_16k" / "average_l0_71",
    "goodfire": FIXTURES / "goodfire" / "relu" / "Toy-Instruct-SAE-l19.pth",
    "openai": FIXTURES / "openai" / "topk" / "resid_post_mlp_v5_32k" / "autoencoders" / "6.pt",
    "sae_lens": FIXTURES / "sae_lens" / "gated",
    "sparsify": FIXTURES / "sparsify" / "topk" / "layers.10",
}


@pytest.fixture
def offline(tmp_path: Path) -> Settings:
    return Settings(cache=tmp_path, offline=True)


def test_every_format_is_tried() -> None:
    assert list(_PATHS) == sorted(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_the_format_is_told_from_the_files(name: str, offline: Settings) -> None:
    path = _PATHS[name]
    assert detect(path) == name
    ours = FORMATS[name](path)
    assert import_sae(str(path), settings=offline).weights_hash == ours.weights_hash
    assert import_sae(str(path.parent), path.name, settings=offline).weights_hash == ours.weights_hash
    assert import_sae(str(path), format=name, layer=1, settings=offline).config.layer == 1


def test_files_are_known_as_their_folders_are(tmp_path: Path) -> None:
    assert detect(_PATHS["gemma_scope"] / "params.npz") == "gemma_scope"
    (tmp_path / "params.safetensors").touch()
    assert detect(tmp_path) == detect(tmp_path / "params.safetensors") == "gemma_scope"


def test_our_own_folder_comes_in_as_that_of_sae_lens(tmp_path: Path, offline: Settings) -> None:
    sae = toy_sae("topk", "layer_norm")
    save_sae(sae, tmp_path)
    assert import_sae(str(tmp_path), settings=offline).weights_hash == sae.weights_hash


def test_what_is_nothing_of_the_kind_is_refused(tmp_path: Path, offline: Settings) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    (tmp_path / "notes.txt").touch()
    for path in (tmp_path, tmp_path / "a.pt", tmp_path / "notes.txt", tmp_path / "missing"):
        with pytest.raises(SaeError, match=str(path)):
            detect(path)
    with pytest.raises(SaeError, match="did you mean 'openai'"):
        import_sae(str(tmp_path), format="open-ai", settings=offline)
    for source in ("./nowhere", "/nowhere/at/all", "a/b/c"):
        with pytest.raises(SaeError, match="does not exist"):
            import_sae(source, settings=offline)
    with pytest.raises(SaeError, match="name the SAE too"):
        import_sae("gpt2-small-res-jb", settings=offline)


def test_a_repo_of_the_hub_is_fetched_first(tmp_path: Path, offline: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(repo: str, path: str | None, settings: Settings) -> Path:
        asked.append((repo, path, settings))
        return Path(shutil.copytree(_PATHS["sparsify"], tmp_path / "layers.10"))

    monkeypatch.setattr(find_module, "fetch", fetch)
    sae = import_sae("EleutherAI/sae-toy", "layers.10", settings=offline)
    assert sae.config.layer == 10
    assert asked == [("EleutherAI/sae-toy", "layers.10", offline)]


def test_a_release_goes_to_sae_lens(offline: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    sae = toy_sae()
    monkeypatch.setattr(find_module, "read_release", lambda *asked: sae if asked == ("toy", "id", offline) else None)
    assert import_sae("toy", "id", settings=offline) is sae
