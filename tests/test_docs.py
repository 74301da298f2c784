"""The documentation runs: Python blocks in order, shell commands as they stand, generated pages as fresh as the code."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


_LONG = {"autosteer.md", "optimised-vector.md"}
"""Pages whose examples take minutes."""


def commands(page: Path) -> list[str]:
    lines = [line.split(" #")[0].strip() for block in blocks(page, "bash") for line in block.splitlines()]
    return [line for line in lines if line.startswith("steersman ")]


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\((?!https?://)([^)#]+)", prose)
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.model
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.name in _LONG else [])
        for page in PAGES
        if blocks(page, "(?:python|bash)")
    ],
)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for lines in blocks(page, "json"):  # Pages that show a file of pairs use it afterwards.
        Path("pairs.jsonl").write_text(lines, encoding="utf-8")
    for line in commands(page):
        if any(word.isupper() and len(word) > 1 for word in shlex.split(line)):
            continue  # A pattern such as `steersman export RECIPE`, not an example.
        done = subprocess.run(shlex.split(line), capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    names: dict[str, object] = {}
    for code in blocks(page, "python"):
        exec(compile(code, f"{page.name} (example)", "exec"), names)
