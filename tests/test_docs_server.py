"""The examples of docs/server.md, as they stand, against a real server on the bundled model.

That page marks them as `sh` and `py`: what is marked `bash` or `python` is run without a server (tests/test_docs.py).
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.server.rig import Served, serving, settings_in

from steersman.client.client import Client
from steersman.engine.engine import Engine
from steersman.models.language_model import LanguageModel
from steersman.server.app import create_app
from steersman.store.store import Store

pytestmark = pytest.mark.model

_PAGE = Path(__file__).parents[1] / "docs" / "server.md"
_ADDRESS = "http://127.0.0.1:8765"
_LONG = "# Minutes"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", _PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def running(bundled: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with jobs, open to this machine."""
    settings = settings_in(tmp_path_factory.mktemp("server"), job_workers=1, max_tokens=1024)
    with Store.open(None, settings.folder) as store:
        app = create_app(settings, engine=Engine(bundled), store=store)
        with serving(app, settings) as made:
            yield made
            with Client(made.url) as client:  # A thread that still computes when Python ends brings the process down.
                for job in client.jobs.list(limit=100).data:
                    client.jobs.wait(job.id)


def _run(running: Served, blocks: list[str]) -> None:
    names: dict[str, Any] = {}
    try:
        for block in blocks:
            exec(compile(block.replace(_ADDRESS, running.url), "server.md (example)", "exec"), names)
    finally:  # Examples leave that to the end of the program.
        for name in ("client", "official"):
            if name in names:
                names[name].close()


def test_python_examples_run(
    running: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = [block for block in _blocks("py") if not block.startswith(_LONG)]
    assert len(blocks) >= 6
    _run(running, blocks)
    assert (tmp_path / "pirate.gguf").stat().st_size > 0
    assert "ready" in capsys.readouterr().out


def test_curl_examples_run(running: Served) -> None:
    for block in _blocks("sh"):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.replace(_ADDRESS, running.url)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        decoder, said = json.JSONDecoder(), done.stdout.strip()
        while said:
            answer, end = decoder.raw_decode(said)
            assert "error" not in answer, answer
            said = said[end:].strip()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_long_python_examples_run(running: Served) -> None:
    first = next(block for block in _blocks("py") if "st.Client(" in block)
    _run(running, [first, *(block for block in _blocks("py") if block.startswith(_LONG))])


def test_the_page_names_addresses_that_there_are(running: Served) -> None:
    paths = set(running.app.openapi()["paths"])
    text = _PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|GET |POST |DELETE )(/[a-z{][\w/{}-]*)`", text))
    assert named
    known = {re.sub(r"\{[^}]*\}", "{id}", path) for path in paths} | {"/v1"}
    assert named <= known, named - known
