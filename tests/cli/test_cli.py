"""Every command does what its help says, on a tiny model in a folder and on the bundled one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import PAIRS, Run
from tests.tiny import CONTEXT, D_MODEL, N_LAYERS, N_VOCAB

from steersman.engine.engine import Engine
from steersman.engine.request import Request, Sampling
from steersman.models.language_model import chat
from steersman.models.load import load_model
from steersman.models.residuals import load_profile
from steersman.steering.export import from_gguf, from_safetensors
from steersman.steering.recipe_file import load_recipe
from steersman.version import __version__

HELP = """
import contextlib, io, sys
from steersman.cli.main import main
for words in (["--help"], ["generate", "--help"], ["fit", "--help"], ["fit", "caa", "--help"], ["fit", "lat", "--help"],
              ["export", "--help"], ["models", "--help"], ["models", "show", "--help"], ["--version"]):
    sys.argv = ["steersman", *words]
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown):
            main()
    except SystemExit as end:
        assert not end.code, words
    assert shown.getvalue().strip(), words
heavy = {"torch", "transformers", "numpy", "safetensors", "gguf"} & set(sys.modules)
sys.exit(f"imported for a help text: {sorted(heavy)}" if heavy else 0)
"""


def answers(run: Run, folder: Path, *arguments: object, **more: Any) -> list[dict[str, Any]]:
    return run("generate", "--model", folder, "--max-tokens", 12, "--json", *arguments, **more).facts["answers"]  # type: ignore[no-any-return]


# --- at the door


def test_help_answers_without_loading_anything_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_names_every_command(run: Run) -> None:
    outcome = run("--help")
    assert outcome.code == 0
    assert all(name in outcome.out for name in ("generate", "fit", "export", "models"))
    assert run("--version").out == f"steersman {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["fit"], ["models"]])
def test_a_bare_command_shows_its_help(run: Run, arguments: list[str]) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2
    assert "Usage: " in outcome.out + outcome.err


# --- generate


def test_the_settings_reach_the_engine(run: Run, folder: Path, cache: Path) -> None:
    options = {"temperature": 3.0, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.4, "seed": 7, "max_tokens": 9}
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    found = run("generate", "--model", folder, "-p", "hello", *words, "--stop", "q", "--stop", "z", "--json").facts
    model = load_model(str(folder))
    request = Request(prompt=chat("hello"), sampling=Sampling(**options, stop=("q", "z")))  # type: ignore[arg-type]
    result = Engine(model, profile=load_profile(model, cache)).generate([request])[0]
    answer = found["answers"][0]
    assert (answer["text"], tuple(answer["token_ids"]), answer["seed"]) == (result.text, result.token_ids, 7)
    assert answer["finish_reason"] == result.finish_reason
    assert found["model"]["weights_hash"] == model.ref.weights_hash
    assert found["recipe"] is None


def test_without_json_the_answer_alone_is_written(run: Run, folder: Path) -> None:
    options = ["-p", "hello", "--model", folder, "--max-tokens", 12]
    outcome = run("generate", *options)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == run("generate", *options, "--json").facts["answers"][0]["text"] + "\n"


def test_several_prompts_are_answered_in_order(run: Run, folder: Path) -> None:
    words = ["one", "two [bold]", "three"]
    found = answers(run, folder, *(part for word in words for part in ("-p", word)))
    assert [answer["prompt"] for answer in found] == words
    for word, answer in zip(words, found, strict=True):
        assert answer["token_ids"] == answers(run, folder, "-p", word)[0]["token_ids"]
    shown = run("generate", "--model", folder, "--max-tokens", 12, "-p", "one", "-p", "two [bold]").out
    assert shown == f"> one\n{found[0]['text']}\n> two [bold]\n{found[1]['text']}\n"


def test_a_prompt_comes_from_standard_input(run: Run, folder: Path) -> None:
    typed = answers(run, folder, "-p", "grüße, wörld")[0]
    piped = answers(run, folder, "-p", "-", stdin="grüße, wörld".encode())[0]
    assert piped == typed | {"seed": piped["seed"]}


def test_raw_text_is_continued_and_a_system_prompt_is_read(run: Run, folder: Path) -> None:
    asked, raw = answers(run, folder, "-p", "hello")[0], answers(run, folder, "-p", "hello", "--raw")[0]
    assert raw["prompt_tokens"] == 5 < asked["prompt_tokens"]
    told = answers(run, folder, "-p", "hello", "--system", "be brief")[0]
    assert told["prompt_tokens"] == asked["prompt_tokens"] + len("[system]be brief\n")


def test_a_recipe_steers_and_strength_0_does_not(run: Run, folder: Path, recipe: Path) -> None:
    plain = answers(run, folder, "-p", "hello")[0]
    steered = answers(run, folder, "-p", "hello", "--recipe", recipe)[0]
    assert steered["token_ids"] != plain["token_ids"]
    assert (
        answers(run, folder, "-p", "hello", "--recipe", recipe, "--strength", 0)[0]["token_ids"] == plain["token_ids"]
    )
    twice = answers(run, folder, "-p", "hello", "--recipe", recipe, "--strength", 2)[0]
    assert answers(run, folder, "-p", "hello", "-r", recipe, "-r", recipe)[0]["token_ids"] == twice["token_ids"]


def test_compare_shows_both_answers(run: Run, folder: Path, recipe: Path) -> None:
    found = answers(run, folder, "-p", "one", "-p", "two", "--recipe", recipe, "--compare")
    for word, answer in zip(("one", "two"), found, strict=True):
        assert answer["plain"]["token_ids"] == answers(run, folder, "-p", word)[0]["token_ids"]
        assert answer["token_ids"] == answers(run, folder, "-p", word, "--recipe", recipe)[0]["token_ids"]
    shown = run("generate", "--model", folder, "-p", "one", "-r", recipe, "--compare", "--max-tokens", 5)
    assert shown.code == 0
    assert all(word in shown.out for word in ("one", "plain", "steered"))


@pytest.mark.parametrize("mode", ["warn", "soften", "stop"])
def test_the_guard_says_what_it_did(run: Run, folder: Path, recipe: Path, mode: str) -> None:
    # To a model of random weights any text is unlikely.
    options = ["-p", "hello", "--recipe", recipe, "--guard", mode, "--max-tokens", 20]
    answer = answers(run, folder, *options)[0]
    assert {event["reason"] for event in answer["guard_events"]} == {"unlikely"}
    assert (answer["strength"] < 1.0) == (mode == "soften")
    assert (answer["finish_reason"] == "guard") == (mode == "stop")
    shown = run("generate", "--model", folder, *options)
    assert shown.out == answer["text"] + "\n"
    assert shown.err.count("guard: unlikely") == len(answer["guard_events"])
    assert ("ended by the guard" in shown.err) == (mode == "stop")


# --- fit, export, models


@pytest.mark.parametrize(
    ("method", "more"), [("caa", []), ("lat", ["--variant", "pca_diff"]), ("lat", ["--read", "last"])]
)
def test_from_pairs_to_a_steered_answer_and_an_export(
    run: Run, pairs: Path, folder: Path, tmp_path: Path, method: str, more: list[str]
) -> None:
    path, model = tmp_path / "out" / "talk.json", ["--model", folder]
    fitted = run("fit", method, pairs, "-o", path, *model, "-l", 1, "-l", 3, "--strength", 2, "--json", *more).facts
    recipe = load_recipe(path)
    assert fitted["recipe"] == str(path)
    assert (recipe.name, recipe.method, recipe.layers) == ("pirate-talk", method, (1, 3))
    assert [edit["strength"] for edit in fitted["edits"]] == [edit.strength for edit in recipe.edits]
    assert recipe.data["pairs"] == len(PAIRS)
    assert run("generate", "-p", "hello", "-r", path, *model, "--max-tokens", 3).code == 0
    gguf, tensors = tmp_path / "talk.gguf", tmp_path / "exported.safetensors"
    assert run("export", path, "--gguf", gguf, "--safetensors", tensors, *model, "--json").facts["written"] == [
        str(gguf),
        str(tensors),
    ]
    assert from_gguf(gguf).layers == from_safetensors(tensors).layers == (1, 3)
    half = tmp_path / "half.gguf"
    assert run("export", path, "--gguf", half, "--strength", 0.5, *model).out == f"wrote {half}\n"
    for edit, weaker in zip(from_gguf(gguf).edits, from_gguf(half).edits, strict=True):
        assert weaker.vector.norm == pytest.approx(0.5 * edit.vector.norm)  # type: ignore[union-attr]


def test_fit_names_what_it_wrote_and_how_to_try_it(run: Run, pairs: Path, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    outcome = run("fit", "caa", pairs, "-o", path, "--model", folder, "--name", "mine")
    assert outcome.code == 0
    assert str(path) in outcome.out
    assert "steersman generate" in outcome.out
    assert load_recipe(path).name == "mine"
    assert load_recipe(path).layers == (1,)


def test_models_show(run: Run, folder: Path) -> None:
    facts = run("models", "show", folder, "--json").facts
    expected = {
        "layers": N_LAYERS,
        "d_model": D_MODEL,
        "vocabulary": N_VOCAB,
        "context_tokens": CONTEXT,
        "chat_template": True,
    }
    assert {name: facts[name] for name in expected} == expected
    assert facts["parameters"] == sum(p.numel() for p in load_model(str(folder)).hf.parameters())
    assert len(facts["mean_residual_norms"]) == N_LAYERS
    shown = run("models", "show", folder)
    assert (shown.code, shown.err) == (0, "")
    assert f"{facts['parameters']:,}" in shown.out
    assert f"{facts['mean_residual_norms'][2]:.1f}" in shown.out


# --- the real program


def test_the_program_writes_answers_to_a_pipe_and_ends_quietly_when_nobody_reads(folder: Path, cache: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "steersman",
        "generate",
        "--model",
        str(folder),
        "-p",
        "-",
        "--max-tokens",
        "4",
    ]
    environment = {**os.environ, "STEERSMAN_CACHE": str(cache), "STEERSMAN_OFFLINE": "1"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*words, "--json"], env=environment, **pipes) as heard:
        out, err = heard.communicate(b"hello")
    assert (heard.returncode, err) == (0, b"")
    assert len(json.loads(out)["answers"][0]["token_ids"]) == 4
    with subprocess.Popen(words, env=environment, **pipes) as unheard:
        unheard.stdout.close()
        unheard.stdin.write(b"hello")
        unheard.stdin.close()
        err = unheard.stderr.read()
    assert (unheard.returncode, err) == (1, b"")


@pytest.mark.model
def test_the_bundled_model_is_pulled_fitted_steered_and_exported(run: Run, tmp_path: Path) -> None:
    pulled = run("models", "pull", "--json").facts["assets"]
    assert all(Path(path).is_dir() for path in pulled.values())
    path, gguf = tmp_path / "pirate.json", tmp_path / "pirate.gguf"
    fitted = run("fit", "caa", "pirate", "--out", path, "--json").facts
    assert fitted["edits"][0]["layer"] == 9
    found = run(
        "generate", "-p", "What is the moon?", "-r", path, "--strength", 2, "--compare", "--max-tokens", 25, "--json"
    )
    answer = found.facts["answers"][0]
    assert answer["text"] != answer["plain"]["text"]
    assert "moon" in answer["plain"]["text"].lower()
    assert run("export", path, "--gguf", gguf).code == 0
    assert from_gguf(gguf).layers == (9,)


def test_the_package_runs_as_a_module() -> None:
    made = subprocess.run([sys.executable, "-m", "steersman", "--version"], capture_output=True, text=True, check=True)
    assert made.stdout.split()[-1] == __version__
