"""SAELens' folders of every version and its releases."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.sae.importers.parity import FIXTURES, check_parity, close, refusal

from steersman.errors import SaeError
from steersman.sae.config import Architecture
from steersman.sae.importers.sae_lens import read, read_release
from steersman.settings import Settings

_CASES: dict[str, tuple[Architecture, int]] = {
    "standard": ("relu", 3),
    "standard_resid_pre": ("relu", 2),
    "standard_layer_norm": ("relu", 3),
    "standard_constant_norm": ("relu", 3),
    "standard_plain_input": ("relu", 3),
    "standard_centred": ("relu", 3),
    "gated": ("jumprelu", 3),
    "jumprelu": ("jumprelu", 3),
    "topk": ("topk", 3),
    "topk_rescaled": ("topk", 3),
    "topk_version_3": ("topk", 3),
}
_FOLDERS = FIXTURES / "sae_lens"


def changed(
    tmp_path: Path, case: str, facts: dict[str, Any] | None = None, metadata: dict[str, Any] | None = None
) -> Path:
    """A case's folder with another config."""
    folder = tmp_path / "changed"
    shutil.copytree(_FOLDERS / case, folder, dirs_exist_ok=True)
    config = json.loads((folder / "cfg.json").read_text())
    config.update(facts or {})
    config["metadata"].update(metadata or {})
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def test_every_case_has_its_line() -> None:
    assert sorted(_CASES) == sorted(path.name for path in _FOLDERS.iterdir())


@pytest.mark.parametrize("case", _CASES)
def test_a_folder_does_what_sae_lens_makes_of_it(case: str, tmp_path: Path) -> None:
    sae = read(_FOLDERS / case)
    assert (sae.config.architecture, sae.config.layer) == _CASES[case]
    assert "toy" in sae.config.origin
    check_parity(sae, _FOLDERS / case, tmp_path)


def test_a_layer_that_is_given_wins() -> None:
    assert read(_FOLDERS / "standard", layer=7).config.layer == 7


@pytest.mark.parametrize("subtract", [True, False])
def test_inputs_of_a_fixed_mean_norm_need_their_factor(tmp_path: Path, subtract: bool) -> None:
    facts = {"normalize_activations": "expected_average_only_in", "apply_b_dec_to_input": subtract}
    folder = changed(tmp_path, "standard", facts)
    assert "input_scale" in refusal("sae_lens", folder)
    scaled, plain = (
        read(folder, input_scale=0.25),
        read(changed(tmp_path, "standard", {"normalize_activations": "none", "apply_b_dec_to_input": subtract})),
    )
    h = load_file(_FOLDERS / "standard" / "expected.safetensors")["h"]
    assert close(scaled.encode(h), plain.encode(h * 0.25))
    assert close(scaled.reconstruct(h) * 0.25, plain.reconstruct(h * 0.25))


def test_a_factor_on_activations_is_worked_into_the_decoder(tmp_path: Path) -> None:
    folder = changed(tmp_path, "standard")
    tensors = load_file(folder / "sae_weights.safetensors")
    factor = torch.rand(len(tensors["b_enc"])) + 0.5
    save_file(tensors | {"scaling_factor": factor}, folder / "sae_weights.safetensors")
    plain, scaled = read(_FOLDERS / "standard"), read(folder)
    h = load_file(_FOLDERS / "standard" / "expected.safetensors")["h"]
    assert close(scaled.encode(h), plain.encode(h))
    assert close(scaled.reconstruct(h), plain.decode(plain.encode(h) * factor))


@pytest.mark.parametrize(
    ("facts", "metadata", "said"),
    [
        ({"architecture": "transcoder"}, {}, "transcoder"),
        ({"architecture": "batchtopk"}, {}, "batchtopk"),
        ({"normalize_activations": "covariance_whitening"}, {}, "covariance_whitening"),
        ({"architecture": "jumprelu"}, {}, "'threshold'"),
        ({}, {"hook_name": "blocks.0.hook_resid_pre"}, "before the first block"),
        ({}, {"hook_name": "blocks.3.attn.hook_z"}, "hook_z"),
        ({}, {"hook_name": None}, "None"),
        ({"d_in": 5}, {}, None),
    ],
)
def test_what_is_not_read_is_named(
    tmp_path: Path, facts: dict[str, Any], metadata: dict[str, Any], said: str | None
) -> None:
    folder = changed(tmp_path, "standard", facts, metadata)
    if said is None:  # the weights themselves say how wide they are
        assert read(folder).config.d_model == 12
    else:
        assert said in refusal("sae_lens", folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("W_dec"), "no tensor 'W_dec'"),
        (lambda tensors: tensors.update(W_skip=torch.zeros(2, 2)), "W_skip"),
        (lambda tensors: tensors["b_enc"][:1].fill_(float("nan")), "b_enc must be finite"),
        (lambda tensors: tensors.update(b_dec=torch.zeros(3)), "b_dec has shape"),
        (lambda tensors: tensors.update(W_dec=torch.zeros(3)), "shape"),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], said: str) -> None:
    folder = changed(tmp_path, "standard")
    tensors = load_file(folder / "sae_weights.safetensors")
    change(tensors)
    save_file(tensors, folder / "sae_weights.safetensors")
    assert said in refusal("sae_lens", folder)


def test_a_folder_without_its_files_is_refused(tmp_path: Path) -> None:
    assert "cfg.json" in refusal("sae_lens", tmp_path)
    shutil.copy(_FOLDERS / "standard" / "cfg.json", tmp_path)
    assert "sae_weights.safetensors" in refusal("sae_lens", tmp_path)


# --- releases


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache=tmp_path)


def test_without_sae_lens_the_extra_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sae_lens", None)
    with pytest.raises(SaeError, match=r"steersman\[sae\]"):
        read_release("gpt2-small-res-jb", "blocks.8.hook_resid_pre", settings)


@pytest.mark.filterwarnings("ignore")  # SAELens and what it imports warn of their own affairs
def test_a_release_is_fetched_and_converted(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sae_lens", reason="SAELens (extra `sae`) is not installed")
    from sae_lens.loading import pretrained_sae_loaders as loaders

    # The hub, at the one place where SAELens asks it; with a config as old as that release's.
    weights = _FOLDERS / "standard_resid_pre" / "sae_weights.safetensors"
    old = {"d_in": 12, "d_sae": 40, "dtype": "torch.float32", "device": "cpu", "model_name": "gpt2-small"}
    old |= {"hook_point": "blocks.3.hook_resid_pre", "hook_point_layer": 3}
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    here = {"cfg.json": tmp_path / "cfg.json", "sae_weights.safetensors": weights}

    def download(repo_id: str, filename: str, **_: Any) -> str:
        assert repo_id == "jbloom/GPT2-Small-SAEs-Reformatted"
        if Path(filename).name not in here:
            raise loaders.EntryNotFoundError("none")
        return str(here[Path(filename).name])

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    sae = read_release("gpt2-small-res-jb", "blocks.3.hook_resid_pre", settings)
    plain = read(_FOLDERS / "standard_resid_pre")
    h = load_file(_FOLDERS / "standard" / "expected.safetensors")["h"]
    # SAELens' directory says of this release that the residuals were centred.
    assert sae.config.layer == 2
    assert close(sae.encode(h), plain.encode(h - h.mean(-1, keepdim=True)))


@pytest.mark.filterwarnings("ignore")
def test_unknown_releases_and_ids_are_named(settings: Settings) -> None:
    pytest.importorskip("sae_lens", reason="SAELens (extra `sae`) is not installed")
    with pytest.raises(SaeError, match="did you mean 'gpt2-small-res-jb'"):
        read_release("gpt2-small-res-jp", "blocks.8.hook_resid_pre", settings)
    with pytest.raises(SaeError, match=r"did you mean 'blocks\.\d+\.hook_resid_pre'"):
        read_release("gpt2-small-res-jb", "blocks.99.hook_resid_pre", settings)
    with pytest.raises(SaeError, match="it has blocks"):
        read_release("gpt2-small-res-jb", "?", settings)
    with pytest.raises(SaeError, match="offline mode"):
        read_release("gpt2-small-res-jb", "blocks.8.hook_resid_pre", Settings(cache=settings.cache, offline=True))
