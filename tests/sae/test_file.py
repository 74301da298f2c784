"""Our files: what is loaded is what was saved, SAELens reads the same folder, and nothing damaged or foreign gets in."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.sae.toys import ARCHITECTURES, D_SAE, NORMALISATIONS, PER_TOKEN, residuals, toy_sae

from steersman.errors import SaeError, StorageError
from steersman.files import sha256_file
from steersman.models.language_model import ModelRef
from steersman.sae.config import Architecture, Normalise
from steersman.sae.file import CONFIG_FILE, WEIGHTS_FILE, StoreDtype, load_sae, save_sae

_MODEL = ModelRef(id="toy", config_hash="a", weights_hash="b")
_FILES = [CONFIG_FILE, WEIGHTS_FILE]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_sae(toy_sae("jumprelu").for_model(_MODEL), tmp_path / "sae")
    return tmp_path / "sae"


def change_json(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    facts = json.loads((folder / CONFIG_FILE).read_text())
    change(facts)
    (folder / CONFIG_FILE).write_text(json.dumps(facts))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Other tensors, with a hash that vouches for them."""
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)
    digest = sha256_file(folder / WEIGHTS_FILE)
    change_json(folder, lambda facts: facts["steersman"].update(weights_sha256=digest))


def refusal(folder: Path) -> str:
    with pytest.raises(SaeError) as refused:
        load_sae(folder)
    message = str(refused.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


# --- round trips


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("normalise", ["none", *PER_TOKEN])
def test_what_is_loaded_is_what_was_saved(architecture: Architecture, normalise: Normalise, tmp_path: Path) -> None:
    sae = toy_sae(architecture, normalise, origin="a toy; größer").for_model(_MODEL)
    save_sae(sae, tmp_path)
    again = load_sae(tmp_path)
    assert again.config == sae.config
    assert again.weights_hash == sae.weights_hash
    assert torch.equal(again.encode(residuals()), sae.encode(residuals()))
    assert sorted(path.name for path in tmp_path.iterdir()) == _FILES


def test_an_input_scale_is_worked_into_the_weights(tmp_path: Path) -> None:
    sae, h = toy_sae("jumprelu", "expected_norm"), residuals()
    save_sae(sae, tmp_path)
    again = load_sae(tmp_path)
    assert again.config.normalise == "none"
    assert torch.allclose(again.encode(h), sae.encode(h), atol=1e-5)
    assert torch.allclose(again.reconstruct(h), sae.reconstruct(h), atol=1e-5)


@pytest.mark.parametrize(("store_dtype", "error"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_narrow_files_are_half_as_large_and_compute_in_float32(
    store_dtype: StoreDtype, error: float, tmp_path: Path
) -> None:
    sae = toy_sae("jumprelu")
    save_sae(sae, tmp_path / "wide")
    save_sae(sae, tmp_path / "narrow", store_dtype=store_dtype)
    again = load_sae(tmp_path / "narrow")
    assert again.encode(residuals()).dtype == again.W_enc.dtype == torch.float32
    assert torch.allclose(again.W_dec, sae.W_dec, rtol=error, atol=1e-6)
    assert torch.equal(again.b_enc, sae.b_enc)
    assert again.threshold is not None
    assert sae.threshold is not None
    assert torch.equal(again.threshold, sae.threshold)
    wide, narrow = ((tmp_path / name / WEIGHTS_FILE).stat().st_size for name in ("wide", "narrow"))
    assert narrow < 0.7 * wide
    save_sae(again, tmp_path / "twice", store_dtype=store_dtype)
    assert load_sae(tmp_path / "twice").weights_hash == again.weights_hash


def test_weights_too_large_for_a_format_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    sae = toy_sae("relu")
    big = type(sae)(sae.config, W_enc=sae.W_enc * 1e6, b_enc=sae.b_enc, W_dec=sae.W_dec, b_dec=sae.b_dec)
    with pytest.raises(SaeError, match="W_enc has values too large"):
        save_sae(big, tmp_path / "sae", store_dtype="float16")
    with pytest.raises(SaeError, match="unknown store_dtype"):
        save_sae(big, tmp_path / "sae", store_dtype="int8")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")  # SAELens and what it imports warn of their own affairs
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("subtract", [True, False])
def test_sae_lens_reads_the_same_folder(
    architecture: Architecture, normalise: Normalise, subtract: bool, tmp_path: Path
) -> None:
    sae_lens = pytest.importorskip("sae_lens", reason="SAELens (extra `sae`) is not installed")
    sae, h = toy_sae(architecture, normalise, subtract_decoder_bias=subtract).for_model(_MODEL), residuals()
    save_sae(sae, tmp_path)
    theirs = sae_lens.SAE.load_from_disk(tmp_path)
    assert theirs.cfg.metadata.hook_name == "blocks.3.hook_resid_post"
    with torch.no_grad():
        acts = theirs.encode(h)
        assert torch.allclose(acts, sae.encode(h), atol=1e-5)
        assert torch.allclose(theirs.decode(acts), sae.reconstruct(h), atol=1e-5)


# --- what is refused


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "nowhere")
    assert "No such file" in refusal(tmp_path)


def test_missing_weights_are_said(saved: Path) -> None:
    (saved / WEIGHTS_FILE).unlink()
    assert WEIGHTS_FILE in refusal(saved)


@pytest.mark.parametrize("name", ["ae.pt", "sae.pth", "pytorch_model.bin", "sae.pkl"])
def test_pickles_are_not_opened(tmp_path: Path, name: str) -> None:
    torch.save({"W_enc": torch.zeros(2, 2)}, tmp_path / name)
    assert "steersman sae import" in refusal(tmp_path / name)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\ud800", "\xff"])
def test_a_config_that_is_no_object_is_refused(saved: Path, text: str) -> None:
    (saved / CONFIG_FILE).write_bytes(text.encode("latin-1" if text == "\xff" else "utf-8", "surrogatepass"))
    assert CONFIG_FILE in refusal(saved)


def test_a_folder_of_sae_lens_is_sent_to_the_importer(saved: Path) -> None:
    change_json(saved, lambda facts: facts.pop("steersman"))
    assert "steersman sae import" in refusal(saved)


def test_another_format_is_refused(saved: Path) -> None:
    change_json(saved, lambda facts: facts["steersman"].update(format=2))
    assert "format 1" in refusal(saved)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"normalize": "none"}, "unknown field 'normalize'; did you mean 'normalise'?"),
        ({"d_sae": "many"}, "d_sae"),
        ({"layer": -2}, "layer -2"),
        ({"architecture": "gelu"}, "architecture"),
        ({"model": {"id": "toy"}}, "missing field"),
        ({"k": 3}, "no k"),
        ({"d_model": 11}, "W_enc has shape"),
        ({"architecture": "relu"}, "unknown tensor 'threshold'"),
    ],
)
def test_wrong_facts_are_named(saved: Path, wrong: dict[str, Any], said: str) -> None:
    change_json(saved, lambda facts: facts["steersman"]["config"].update(wrong))
    assert said in refusal(saved)


@pytest.mark.parametrize("name", ["architecture", "d_model", "d_sae", "layer"])
def test_missing_facts_are_named(saved: Path, name: str) -> None:
    change_json(saved, lambda facts: facts["steersman"]["config"].pop(name))
    assert f"missing field '{name}'" in refusal(saved)


def test_damage_anywhere_in_the_weights_is_noticed(saved: Path) -> None:
    path = saved / WEIGHTS_FILE
    whole = path.read_bytes()
    for place in (0, 9, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert "damaged" in refusal(saved)
    path.write_bytes(whole[:-1])
    assert "damaged" in refusal(saved)
    path.write_bytes(b"")
    assert "damaged" in refusal(saved)
    path.write_bytes(whole)
    load_sae(saved)


def test_weights_of_another_sae_are_noticed(saved: Path, tmp_path: Path) -> None:
    save_sae(toy_sae("jumprelu", seed=5), tmp_path / "other")
    (saved / WEIGHTS_FILE).write_bytes((tmp_path / "other" / WEIGHTS_FILE).read_bytes())
    assert "of another SAE" in refusal(saved)


def test_a_weights_file_that_is_none_is_refused_even_where_its_hash_fits(saved: Path) -> None:
    (saved / WEIGHTS_FILE).write_bytes(b"\x80\x04]\x94.")
    digest = sha256_file(saved / WEIGHTS_FILE)
    change_json(saved, lambda facts: facts["steersman"].update(weights_sha256=digest))
    assert "damaged" in refusal(saved)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("b_dec"), "lacks tensor 'b_dec'"),
        (lambda tensors: tensors.pop("threshold"), "lacks tensor 'threshold'"),
        (lambda tensors: tensors.update(W_skip=torch.zeros(2)), "unknown tensor 'W_skip'"),
        (lambda tensors: tensors.update(b_enc=torch.zeros(D_SAE + 1)), "b_enc has shape"),
        (lambda tensors: tensors["W_dec"].view(-1)[5].fill_(float("nan")), "W_dec must be finite"),
        (lambda tensors: tensors["threshold"][5].fill_(float("inf")), "threshold must be finite"),
    ],
)
def test_wrong_tensors_are_named(saved: Path, change: Callable[[dict[str, torch.Tensor]], None], said: str) -> None:
    change_weights(saved, change)
    assert said in refusal(saved)


# --- the disk


@pytest.mark.parametrize("failing", ["write_bytes", "write_text"])
def test_a_disk_that_fills_up_leaves_the_old_sae(saved: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    before = load_sae(saved).weights_hash

    def full(*_args: Any, **_kwargs: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, failing, full)
    with pytest.raises(StorageError, match="disk is full"):
        save_sae(toy_sae("jumprelu", seed=9), saved)
    monkeypatch.undo()
    assert load_sae(saved).weights_hash == before
    assert sorted(path.name for path in saved.iterdir()) == _FILES


def test_others_may_read_what_is_saved(tmp_path: Path) -> None:
    save_sae(toy_sae(), tmp_path)
    (tmp_path / "plain").touch()
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "plain").stat().st_mode}


def test_saving_over_an_sae_replaces_it(saved: Path) -> None:
    other = toy_sae("topk", seed=9)
    save_sae(other, saved)
    assert load_sae(saved).weights_hash == other.weights_hash


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "sae").write_text("in the way")
    with pytest.raises(StorageError, match="sae"):
        save_sae(toy_sae(), tmp_path / "sae")
    assert (tmp_path / "sae").read_text() == "in the way"
