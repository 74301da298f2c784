"""Whatever is wrong, a command says so in one line, writes nothing, and tells by its exit code whose mistake it was."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tests.cli.conftest import Outcome, Run
from tests.engine.rig import push, vector

from steersman.engine.engine import Engine
from steersman.models.language_model import ModelRef
from steersman.steering.edits import Ablate
from steersman.steering.recipe import Recipe
from steersman.steering.recipe_file import load_recipe, save_recipe
from steersman.steering.target import Direction


def refused(outcome: Outcome, *says: str) -> None:
    """Exit code 1, one line of error, and nothing on standard output."""
    assert outcome.code == 1, outcome
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    for word in says:
        assert word in outcome.err


# --- usage


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generate"], "--prompt"),
        (["generate", "-p", "x", "--strenght", "2"], "--strength"),
        (["generate", "-p", "x", "--max-tokens", "many"], "--max-tokens"),
        (["generate", "-p", "x", "--guard", "sometimes"], "soften"),
        (["generate", "-p", "x", "--compare"], "--recipe"),
        (["generate", "-p", "x", "--raw", "--system", "y"], "--system"),
        (["fit", "caa", "pirate"], "--out"),
        (["fit", "caa", "pirate", "-o", "x.json", "--read", "none"], "last"),
        (["fit", "lat", "pirate", "-o", "x.json", "--variant", "none"], "pca_diff"),
        (["fit", "caa", "pirate", "-o", "x.json", "--layer", "nine"], "--layer"),
        (["export", "x.json"], "--gguf"),
        (["nonsense"], "nonsense"),
    ],
)
def test_wrong_usage_is_told_on_standard_error(run: Run, arguments: list[str], says: str) -> None:
    outcome = run(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert says in outcome.err


# --- models


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./nowhere", "does not exist"),
        ("nowhere.gguf", "does not exist"),
        ("defualt", "'default'"),
        ("someone/some-model", "OFFLINE"),
        ("empty", "config.json"),
        ("text.txt", ".gguf"),
        ("text.gguf", "GGUF"),
        ("short.gguf", "truncated"),
        ("broken", "broken"),
    ],
)
def test_models_that_cannot_be_loaded(
    run: Run, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("text.txt").write_text("no model")
    Path("text.gguf").write_text("no model either, though it is named like one")
    Path("short.gguf").write_bytes(b"GGUF\x03\0\0\0")
    shutil.copytree(folder, "broken")
    weights = Path("broken/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(run("generate", "-p", "x", "--model", name), says)
    refused(run("models", "show", name, "--json"), says)


@pytest.mark.parametrize(
    ("options", "environment", "says"),
    [
        (["--device", "tpu"], {}, "tpu"),
        (["--device", "cuda:99"], {}, "cuda"),
        (["--dtype", "int3"], {}, "int3"),
        ([], {"STEERSMAN_DTYPE": "int3"}, "STEERSMAN_DTYPE"),
        ([], {"STEERSMAN_OFFLINE": "maybe"}, "STEERSMAN_OFFLINE"),
        ([], {"STEERSMAN_CACHE": "/dev/null/cache"}, "/dev/null/cache"),
    ],
)
def test_devices_formats_and_surroundings(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], environment: dict[str, str], says: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    refused(run("generate", "-p", "x", "--model", folder, *options), says)


# --- prompts and settings


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-p", ""], "empty"),
        (["-p", " \n"], "empty"),
        (["-p", "fine", "-p", ""], "empty"),
        (["-p", "x" * 600], "511"),
        (["-p", "a\udcffb"], "surrogate"),
        (["-p", "x", "--temperature", "-1"], "temperature"),
        (["-p", "x", "--temperature", "nan"], "temperature"),
        (["-p", "x", "--top-p", "0"], "top_p"),
        (["-p", "x", "--top-k", "-1"], "top_k"),
        (["-p", "x", "--repetition-penalty", "0"], "repetition_penalty"),
        (["-p", "x", "--max-tokens", "0"], "max_tokens"),
        (["-p", "x", "--seed", "-1"], "seed"),
        (["-p", "x", "--stop", ""], "stop"),
        (["-p", "x", "--strength", "nan"], "strength"),
        (["-p", "x", "--strength", "inf"], "strength"),
        (["-p", "x", "--recipe", "missing.json"], "missing.json"),
        (["-p", "x", "--recipe", "."], "."),
    ],
)
@pytest.mark.parametrize("json_too", [[], ["--json"]], ids=["text", "json"])
def test_prompts_and_settings_that_cannot_be_used(
    run: Run, folder: Path, arguments: list[str], says: str, json_too: list[str]
) -> None:
    refused(run("generate", "--model", folder, *arguments, *json_too), says)


@pytest.mark.parametrize(
    ("stdin", "says"), [(b"", "empty"), (b"\n", "empty"), (b"\xff\xfe", "UTF-8"), (b"x" * (2 << 20), "million")]
)
def test_standard_input_that_is_no_prompt(run: Run, folder: Path, stdin: bytes, says: str) -> None:
    refused(run("generate", "--model", folder, "-p", "-", stdin=stdin), says)


def test_a_model_without_a_chat_template_continues_text_but_takes_no_system_prompt(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "chat_template.jinja").unlink()
    answer = run("generate", "--model", bare, "-p", "hello", "--max-tokens", 2, "--json").facts["answers"][0]
    assert answer["prompt_tokens"] == 5
    refused(run("generate", "--model", bare, "-p", "hello", "--system", "be brief"), "chat template")


# --- recipes


def other_model(path: Path) -> None:
    recipe = dataclasses.replace(
        load_recipe(path), model=ModelRef(id="other", config_hash="0" * 64, weights_hash="1" * 64)
    )
    save_recipe(recipe, path)


def unknown_field(path: Path) -> None:
    facts = json.loads(path.read_text())
    facts["edits"][0]["strenght"] = facts["edits"][0].pop("strength")
    path.write_text(json.dumps(facts))


def not_a_number(path: Path) -> None:
    tensors = path.with_suffix(".safetensors")
    save_file({name: tensor / 0.0 for name, tensor in load_file(tensors).items()}, tensors)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no JSON": (lambda path: path.write_text("{"), "JSON"),
    "not a recipe": (lambda path: path.write_text("{}"), "steersman_recipe"),
    "unknown field": (unknown_field, "'strength'"),
    "no tensors": (lambda path: path.with_suffix(".safetensors").unlink(), ".safetensors"),
    "damaged tensors": (lambda path: path.with_suffix(".safetensors").write_bytes(b"12345678"), "damaged"),
    "NaN": (not_a_number, "NaN"),
    "another model": (other_model, "other"),
    "missing layer": (lambda path: save_recipe(push(layer=50), path), "layer 50"),
    "wrong width": (
        lambda path: save_recipe(
            Recipe(name="w", edits=(Ablate(layer=1, target=Direction(vector=vector(0, 7))),)), path
        ),
        "7",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_recipes_that_cannot_be_used(run: Run, folder: Path, recipe: Path, tmp_path: Path, name: str) -> None:
    damage, says = DAMAGE[name]
    damage(recipe)
    refused(run("generate", "--model", folder, "-p", "x", "--recipe", recipe), says)
    before = sorted(tmp_path.iterdir())
    refused(run("export", recipe, "--model", folder, "--gguf", tmp_path / "out.gguf"), says)
    assert sorted(tmp_path.iterdir()) == before


# --- what is written, and what is not


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "no pairs"),
        ("{\n", "line 1"),
        ('{"positive": "a", "negative": "b"}\n', "one pair"),
        ('{"positive": "a", "negatve": "b"}\n', "'negative'"),
    ],
)
def test_pairs_that_cannot_be_used(run: Run, folder: Path, tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(content)
    refused(run("fit", "caa", path, "-o", tmp_path / "r.json", "--model", folder), says)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl"),
        (["pirat"], "'pirate'"),
        (["PAIRS", "-l", "4"], "layers 0 to 3"),
        (["PAIRS", "-l", "-1"], "-1"),
    ],
)
def test_a_fit_that_cannot_be_done_writes_nothing(
    run: Run, folder: Path, tmp_path: Path, pairs: Path, arguments: list[str], says: str
) -> None:
    words = [str(pairs) if word == "PAIRS" else word for word in arguments]
    refused(run("fit", "caa", *words, "-o", tmp_path / "r.json", "--model", folder), says)
    assert list(tmp_path.iterdir()) == [pairs]


def test_nothing_is_replaced_without_force(run: Run, folder: Path, recipe: Path, pairs: Path, tmp_path: Path) -> None:
    fit = ["fit", "lat", pairs, "-o", recipe, "--model", folder]
    before = recipe.read_bytes()
    refused(run(*fit), "--force")
    assert recipe.read_bytes() == before
    assert run(*fit, "--force").code == 0
    assert load_recipe(recipe).method == "lat"
    for option in ("--gguf", "--safetensors"):
        taken = tmp_path / "taken"
        taken.write_bytes(b"precious")
        refused(run("export", recipe, option, taken, "--model", folder), "--force")
        assert taken.read_bytes() == b"precious"
        assert run("export", recipe, option, taken, "--model", folder, "--force").code == 0
        assert taken.read_bytes() != b"precious"


def test_the_tensors_beside_a_recipe_replace_nothing_without_force(
    run: Run, folder: Path, pairs: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"precious")
    fit = ["fit", "caa", pairs, "-o", tmp_path / "model.json", "--model", folder]
    refused(run(*fit), "model.safetensors", "--force")
    assert weights.read_bytes() == b"precious"
    assert run(*fit, "--force").code == 0


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
def test_output_that_cannot_be_written_leaves_nothing(
    run: Run, folder: Path, recipe: Path, pairs: Path, tmp_path: Path, force: list[str]
) -> None:
    (tmp_path / "directory").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for place in (pairs / "below-a-file", tmp_path / "directory", Path("/proc/nowhere/x")):
        refused(run("fit", "caa", pairs, "-o", place, "--model", folder, *force), str(place))
        refused(run("export", recipe, "--gguf", place, "--model", folder, *force), str(place))
        refused(run("export", recipe, "--safetensors", place, "--model", folder, *force), str(place))
    assert sorted(tmp_path.rglob("*")) == before


def test_what_cannot_be_exported_is_named(run: Run, folder: Path, recipe: Path, tmp_path: Path) -> None:
    save_recipe(Recipe(name="a", edits=(Ablate(layer=1, target=Direction(vector=vector(0))),)), recipe)
    refused(run("export", recipe, "--safetensors", tmp_path / "x", "--model", folder), "ablate")
    save_recipe(push(layer=0), recipe)
    refused(run("export", recipe, "--gguf", tmp_path / "x", "--model", folder), "layer 0")
    assert not (tmp_path / "x").exists()


# --- interruptions and terminals


@pytest.mark.parametrize("where", ["stream", "__init__"])
def test_an_interrupt_ends_with_130(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def interrupt(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, where, interrupt)
    outcome = run("generate", "--model", folder, "-p", "x")
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "interrupted\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize("json_too", [[], ["--json"]], ids=["text", "json"])
def test_a_terminal_that_knows_few_characters_gets_an_answer(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, json_too: list[str]
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, write_through=True))
    outcome = run("generate", "--model", folder, "-p", "déjà vu 🎉", "-p", "two", "--max-tokens", 9, *json_too)
    assert (outcome.code, outcome.err) == (0, "")
    shown = written.getvalue().decode(encoding)
    assert not json_too or json.loads(shown)["answers"][0]["prompt"] == "déjà vu 🎉"
