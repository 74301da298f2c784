"""`steersman sae`: train, measure, import and list, on a tiny model and real files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.cli.conftest import Run
from tests.sae.toys import toy_sae
from tests.tiny import D_MODEL

from steersman.sae.file import load_sae, save_sae
from steersman.sae.record import load_record

_WORDS = ["sailor", "reads", "an", "old", "map", "of", "hidden", "islands", "while", "rain", "falls", "on", "us"]


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts and chats of two kinds, with sources."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows: list[dict[str, object]] = []
    for n in range(120):
        text = " ".join(_WORDS[(n * i) % len(_WORDS)] for i in range(1, 9)) + f" {n}"
        rows.append({"kind": "web", "source": "harbour", "text": text})
        turns = [{"role": "user", "content": text[:20]}, {"role": "assistant", "content": text}]
        rows.append({"kind": "chat", "source": "talk", "messages": turns})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _train(run: Run, folder: Path, texts: Path, out: object, *more: object) -> dict[str, object]:
    small = ("--latents", 64, "-k", 8, "--tokens", 8192, "--collect", 5000, "--layer", 2, "--held-out", 0.2)
    outcome = run("sae", "train", "--model", folder, "--text", texts, "--out", out, *small, *more, "--json")
    return outcome.facts  # type: ignore[no-any-return]


def test_an_sae_is_trained_measured_and_listed(run: Run, folder: Path, texts: Path) -> None:
    said = _train(run, folder, texts, "harbour-2", "--mix", "web=0.6", "--mix", "talk=0.4", "--on-policy", 50)
    place = Path(str(said["folder"]))
    sae, record = load_sae(place), load_record(place)
    assert (sae.config.d_sae, sae.config.k, sae.config.layer, sae.config.d_model) == (64, 8, 2, D_MODEL)
    assert record is not None
    assert record.on_policy_tokens > 50
    assert record.collected_tokens > 5000 + record.on_policy_tokens - 1
    assert {share.name: share.share for share in record.texts} == {"web": 0.6, "talk": 0.4}
    assert record.quality is not None
    assert record.quality.reconstruction.explained_variance == said["explained_variance"]
    assert "harbour-2" in [entry["sae"] for entry in run("sae", "list", "--json").facts]
    assert "harbour-2 " in run("sae", "list").out
    again = run("sae", "measure", "harbour-2", "--model", folder, "--text", texts, "--tokens", 600, "--json").facts
    assert again["tokens"] >= 600
    assert abs(again["explained_variance"] - said["explained_variance"]) < 0.2  # type: ignore[operator]


def test_the_same_command_gives_the_same_sae_at_once(run: Run, folder: Path, texts: Path, tmp_path: Path) -> None:
    first = _train(run, folder, texts, tmp_path / "one")
    weights = load_sae(tmp_path / "one").weights_hash
    assert _train(run, folder, texts, tmp_path / "one") == first
    assert load_sae(tmp_path / "one").weights_hash == weights


def test_what_is_stored_narrow_is_measured_narrow(run: Run, folder: Path, texts: Path, tmp_path: Path) -> None:
    wide, narrow = (
        _train(run, folder, texts, tmp_path / dtype, "--store-dtype", dtype) for dtype in ("float32", "bfloat16")
    )
    assert wide["explained_variance"] != narrow["explained_variance"]
    tensors = (tmp_path / "bfloat16" / "sae_weights.safetensors").stat().st_size
    assert tensors < 0.6 * (tmp_path / "float32" / "sae_weights.safetensors").stat().st_size


def test_other_settings_do_not_go_on_in_the_same_folder(run: Run, folder: Path, texts: Path, tmp_path: Path) -> None:
    _train(run, folder, texts, tmp_path / "one")
    outcome = run(
        "sae", "train", "--model", folder, "--text", texts, "--out", tmp_path / "one", "--layer", 1, "--tokens", 8192
    )
    assert (outcome.code, outcome.out) == (1, "")
    assert "holds activations of another layer" in outcome.err


def test_a_published_sae_is_imported_by_name(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "layer_3" / "width_40" / "params.npz"
    path.parent.mkdir(parents=True)
    sae = toy_sae("jumprelu", subtract_decoder_bias=False)
    assert sae.threshold is not None
    arrays = {
        "W_enc": sae.W_enc,
        "W_dec": sae.W_dec,
        "b_enc": sae.b_enc,
        "b_dec": sae.b_dec,
        "threshold": sae.threshold,
    }
    np.savez(path, **{name: tensor.numpy() for name, tensor in arrays.items()})
    said = run("sae", "import", tmp_path, "layer_3/width_40", "--name", "scope", "--json").facts
    assert (said["sae"], said["layer"], said["latents"]) == ("scope", 3, 40)
    h = torch.randn(5, sae.config.d_model)
    kept = load_sae(Path(said["folder"]))
    torch.testing.assert_close(kept.encode(h), sae.encode(h))
    refused = run("sae", "import", tmp_path, "layer_3/width_40", "--name", "scope")
    assert (refused.code, refused.out) == (1, "")
    assert "--force" in refused.err
    assert run("sae", "import", tmp_path, "layer_3/width_40", "--name", "scope", "--force").code == 0


def test_an_sae_of_another_width_is_not_bound_to_a_model(run: Run, folder: Path, tmp_path: Path) -> None:
    save_sae(toy_sae("relu"), tmp_path / "toy")
    outcome = run("sae", "import", tmp_path / "toy", "--name", "toy", "--model", folder)
    assert outcome.code == 1
    assert "12 dimensions" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["measure", "nowhere", "--text", "TEXTS"], 1, "there is no SAE 'nowhere'"),
        (["train", "--text", "TEXTS", "--out", "default"], 1, "cannot be called 'default'"),
        (["train", "--text", "missing.jsonl", "--out", "x"], 1, "cannot read texts from missing.jsonl"),
        (["train", "--text", "TEXTS", "--out", "x", "--mix", "poems=1"], 1, "no text for 'poems'"),
        (["train", "--text", "TEXTS", "--out", "x", "--mix", "web"], 2, "NAME=SHARE"),
        (["train", "--text", "TEXTS", "--out", "x", "--architecture", "gated"], 1, "architecture must be"),
        (["train", "--text", "TEXTS", "--out", "x", "--store-dtype", "int4"], 2, "bfloat16"),
        (["train", "--text", "TEXTS", "--out", "x", "--layer", "99", "--tokens", "8192"], 1, "layer"),
        (["import", "gpt2-small-res-jb"], 1, "name the SAE too"),
        (["import", "./nothing-here"], 1, "does not exist"),
    ],
)
def test_sae_commands_refuse_in_one_line(
    run: Run, folder: Path, texts: Path, arguments: list[str], code: int, said: str
) -> None:
    words = [str(texts) if word == "TEXTS" else word for word in arguments]
    more = ["--model", str(folder)] if words[0] == "train" else []
    outcome = run("sae", *words, *more)
    assert (outcome.code, outcome.out) == (code, "")
    assert said in outcome.err
    if code == 1:
        assert outcome.err.count("\n") == 1
        assert outcome.err.startswith("error: ")
