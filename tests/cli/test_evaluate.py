"""`steersman evaluate`: what is refused before a model is loaded, and a whole run on the tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import PAIRS, Run
from tests.sae.index.toy_index import WordEncoder

from steersman.cli import evaluate


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--behaviour", "pirat"], 1, "did you mean 'pirate'"),
        (["--methods", "caa,latt"], 2, "Invalid value for --methods: unknown method 'latt'"),
        (["--methods", "caa,latt"], 2, "did you mean 'lat'"),
        (["--methods", ""], 2, "no method that steers"),
        (["--judge", "locl+llm"], 2, "did you mean 'local'"),
        (["--strengths", "a,b"], 2, "Invalid value for --strengths: give numbers with commas"),
        (["--strengths", "0.1,0"], 2, "numbers above 0"),
        (["--judge", "llm"], 1, "STEERSMAN_LLM_URL"),
        (["--prompt-file", "nowhere.txt"], 1, "cannot read prompts"),
        (["--sae", "nowhere"], 1, "nowhere"),
        (["--effects", "nowhere.safetensors"], 1, "there is no effect map at nowhere.safetensors"),
    ],
)
def test_wrong_questions_cost_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.setattr(evaluate, "load", lambda *_: pytest.fail("a model was loaded"))
    if "--behaviour" not in arguments:
        arguments = ["--behaviour", "pirate", *arguments]
    outcome = run("evaluate", *arguments, "--out", tmp_path / "run")
    assert outcome.code == code
    assert message in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_run_prints_json_alone_and_leaves_a_report(
    run: Run, tmp_path: Path, folder: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "load_encoder", WordEncoder)
    asked = tmp_path / "asked.txt"
    asked.write_text("".join(f"Say {word}\n" for word in ("one", "two", "three", "four")))
    arguments = [
        "evaluate", "--behaviour", pairs, "--describe", "Talk like a pirate.", "--methods", "caa", "--prompts", 4,
        "--prompt-file", asked, "--strengths", "0.3", "--tokens", 4, "--model", folder, "--sae", "none",
        "--out", tmp_path / "run",
    ]  # fmt: skip
    facts = run(*arguments, "--json").facts
    assert [each["name"] for each in facts["methods"]] == ["caa", "prompt", "plain"]
    assert facts["methods"][0]["scores"]["product"]["total"] == 4
    assert facts["examples"].startswith(f"{len(PAIRS)} pairs")
    assert Path(facts["report"]).is_file()
    assert json.loads((tmp_path / "run" / "results.json").read_text())["methods"] == facts["methods"]
    outcome = run(*arguments)
    assert outcome.code == 0, outcome.err
    assert "report" in outcome.out
    # A method more goes on in the folder; another question does not, unless it is told to.
    assert run(*arguments, "--methods", "caa,random").code == 0
    before = (tmp_path / "run" / "results.json").read_bytes()
    refused = run(*arguments, "--seed", 1)
    assert refused.code == 1
    assert "(seed: 0 there, 1 here); choose another folder, or replace them with --force" in refused.err
    assert (tmp_path / "run" / "results.json").read_bytes() == before
    assert run(*arguments, "--seed", 1, "--force").code == 0
    assert run(*arguments).code == 1
    assert run(*arguments, "--seed", 1).code == 0
