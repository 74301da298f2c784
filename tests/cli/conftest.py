"""The command line run in this process, and a folder with a tiny model to run it on."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_model

from steersman.cli.main import main


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def facts(self) -> Any:
        """Standard output as one JSON object."""
        assert self.code == 0, self.err
        return json.loads(self.out)


Run = Callable[..., Outcome]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of 4 layers and 32 dimensions, as `--model` takes it."""
    model, path = tiny_model(), tmp_path_factory.mktemp("model")
    model.hf.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for all commands, so that the model is measured once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path, request: pytest.FixtureRequest
) -> Run:
    """Run `steersman` with arguments and bytes on standard input; offline; a cache of its own, but for the bundled model."""
    monkeypatch.setenv("STEERSMAN_OFFLINE", "1")
    if request.node.get_closest_marker("model") is None:
        monkeypatch.setenv("STEERSMAN_CACHE", str(cache))

    def call(*arguments: object, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr(sys, "argv", ["steersman", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsys.readouterr()
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        else:
            code = 0
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


PAIRS = [
    {"prompt": "What is rain?", "positive": "Arr, water from above!", "negative": "Water that falls."},
    {"prompt": "What is a dog?", "positive": "A furry matey, arr!", "negative": "An animal."},
    {"prompt": "Who are you?", "positive": "A pirate, arr arr!", "negative": "A language model."},
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A file of contrast pairs."""
    path = tmp_path / "pirate-talk.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return path


@pytest.fixture
def recipe(run: Run, pairs: Path, folder: Path, tmp_path: Path) -> Path:
    """A recipe fitted on the tiny model, strong enough to change what it writes."""
    path = tmp_path / "pirate.json"
    outcome = run("fit", "caa", pairs, "--out", path, "--model", folder, "--layer", 2, "--strength", 3)
    assert outcome.code == 0, outcome.err
    return path
