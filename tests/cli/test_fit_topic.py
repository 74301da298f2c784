"""`steersman fit topic` on the tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from tests.cli.conftest import Run
from tests.steering.topics import MIXED, SHIPS, WordEncoder, tiny_sae

from steersman.cli import fit, fit_topic
from steersman.sae.file import save_sae
from steersman.steering.edits import Swap, Weight
from steersman.steering.recipe_file import load_recipe


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """An SAE and two files of texts; the encoder of words instead of the bundled one."""
    monkeypatch.setattr(fit_topic, "load_encoder", WordEncoder)
    if not any(command.name == "topic" for command in fit.app.registered_commands):
        app = typer.Typer()
        app.command("topic")(fit_topic.topic)
        monkeypatch.setattr(fit.app, "registered_commands", [*fit.app.registered_commands, *app.registered_commands])
    save_sae(tiny_sae(), tmp_path / "sae")
    (tmp_path / "ships.txt").write_text("\n".join(SHIPS))
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in MIXED))
    return {"sae": tmp_path / "sae", "align": tmp_path / "ships.txt", "reference": tmp_path / "mixed.jsonl"}


def arguments(files: dict[str, Path], folder: Path, out: Path) -> list[object]:
    given = [word for name, path in files.items() for word in (f"--{name}", path)]
    return ["fit", "topic", *given, "--out", out, "--model", folder]


def test_a_topic_becomes_a_recipe_with_its_uncertainty(
    run: Run, files: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    call = arguments(files, folder, tmp_path / "ships.json")
    facts = run(*call, "--scores-out", tmp_path / "scores.csv", "--json").facts
    assert facts["uncertainty"]["verdict"] in {"can", "can hardly"}
    assert facts["uncertainty"]["number"]["total"] == facts["data"]["align_texts"] == 9
    (edit,) = load_recipe(tmp_path / "ships.json").edits
    assert isinstance(edit, Swap)
    assert edit.keep_error
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 1 + tiny_sae().config.d_sae
    again = run(*call)
    assert again.code == 1
    assert "--force" in again.err
    shown = run(*call, "--method", "weight", "--drop-error", "--force")
    assert shown.code == 0, shown.err
    assert "represent this topic" in shown.out
    (edit,) = load_recipe(tmp_path / "ships.json").edits
    assert isinstance(edit, Weight)
    assert not edit.keep_error


def test_wrong_wishes_for_a_topic_are_refused(run: Run, files: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    call = arguments(files, folder, tmp_path / "x.json")
    assert run(*call, "--method", "shift").code == 2
    assert run(*call, "--summary", "median").code == 2
    assert run(*call, "--method", "sae", "--keep-error").code == 2
    files["reference"].write_text("")
    empty = run(*call)
    assert empty.code == 1
    assert "mixed.jsonl holds no text" in empty.err
    files["reference"].unlink()
    assert "cannot read texts from" in run(*call).err
    assert not (tmp_path / "x.json").exists()
