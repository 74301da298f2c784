"""What the tests of curves share: a strong recipe on the tiny model, and files of items."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.engine.rig import make_engine, model_of, push

from steersman.engine.engine import Engine
from steersman.steering.recipe import Recipe


def engine() -> Engine:
    return make_engine(model_of("llama"))


def recipe() -> Recipe:
    return push(strength=0.9)


def write(path: Path, rows: Sequence[Any]) -> Path:
    """As JSONL or JSON, by the ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(list(rows))
    path.write_text(text, encoding="utf-8")
    return path


def ab_row(number: int = 0, matching: str = "(A)", other: str = "(B)") -> dict[str, str]:
    question = f"Question {number}?\n\nChoices:\n(A) yes\n(B) no"
    return {"question": question, "answer_matching_behavior": matching, "answer_not_matching_behavior": other}


def requests(n: int = 6) -> list[dict[str, str]]:
    return [{"instruction": f"Please do thing {number}"} for number in range(n)]
