"""Answers are written once: kept by what made them, gaps stay gaps, an interrupted file goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.evals.eval_rig import PROMPTS, engine_of

from steersman.engine.engine import Engine
from steersman.engine.request import Request, Sampling
from steersman.errors import DataError, StorageError
from steersman.evals.facts import Asked
from steersman.evals.store import Ledger, RunFolder, cache_key, content_hash, recipe_hash
from steersman.evals.sweep import answer_all
from steersman.models.language_model import LanguageModel, chat
from steersman.steering.edits import Add
from steersman.steering.recipe import Recipe
from steersman.steering.vector import Vector


def _recipe(seed: int = 0, strength: float = 1.0, name: str = "r") -> Recipe:
    vector = Vector(torch.randn(32, generator=torch.Generator().manual_seed(seed)))
    return Recipe(name=name, edits=(Add(layer=2, vector=vector, strength=strength),))


def test_a_ledger_finds_again_what_was_put_even_behind_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.jsonl"
    Ledger(path).put({"one": "1", "two": {"x": None}})
    with path.open("ab") as file:
        file.write(b'["three", "cut o')
    again = Ledger(path)
    assert again.get("two") == {"x": None}
    assert "three" not in again
    again.put({"three": 3})
    assert [Ledger(path).get(key) for key in ("one", "three")] == ["1", 3]
    assert len(Ledger(path)) == 3


def test_a_ledger_that_cannot_be_read_or_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="cannot read"):
        Ledger(tmp_path / "folder")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        RunFolder(tmp_path / "file" / "run")


def test_recipes_are_told_apart_by_what_they_do_alone() -> None:
    assert recipe_hash(_recipe(name="a")) == recipe_hash(_recipe(name="b"))
    assert recipe_hash(_recipe()) != recipe_hash(_recipe(strength=2.0))
    assert recipe_hash(_recipe()) != recipe_hash(_recipe(seed=1))
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})


def test_what_another_version_worked_out_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    now = cache_key(["answer", 1])
    assert cache_key(["answer", 1]) == now
    monkeypatch.setattr("steersman.evals.store.__version__", "99.0")
    assert cache_key(["answer", 1]) != now


def test_recipes_are_kept_and_a_damaged_one_is_not_there(tmp_path: Path) -> None:
    kept, recipe = RunFolder(tmp_path), _recipe()
    assert kept.recipe("k") is None
    kept.keep_recipe("k", recipe)
    assert kept.recipe("k") == recipe
    (tmp_path / "fits" / "k.json").write_text("{")
    assert kept.recipe("k") is None


def test_swept_answers_are_the_engine_s_own(tiny: LanguageModel, tmp_path: Path) -> None:
    engine, recipe = engine_of(tiny), _recipe()
    asked = [Asked(prompt, recipe, s) for s in (0.2, 0.8) for prompt in PROMPTS[:2]] + [Asked(PROMPTS[0], system="Be.")]
    found = answer_all(engine, asked, tokens=8, kept=Ledger(tmp_path / "a.jsonl"))
    sampling = Sampling(max_tokens=8, repetition_penalty=1.1)
    own = [
        Request(prompt=chat(each.prompt, each.system), recipe=each.recipe, strength=each.strength, sampling=sampling)
        for each in asked
    ]
    assert [each.text for each in found] == [result.text for result in engine.generate(own)]


def test_what_was_written_before_is_not_written_again(
    tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, recipe = engine_of(tiny), _recipe()
    submitted: list[Request] = []
    submit = Engine.submit
    monkeypatch.setattr(Engine, "submit", lambda self, request: submitted.append(request) or submit(self, request))
    asked = [Asked(prompt, recipe, 0.5) for prompt in PROMPTS[:3]]
    first = answer_all(engine, [*asked, *asked], tokens=6, kept=Ledger(tmp_path / "a.jsonl"))
    assert len(submitted) == 3
    again = answer_all(engine, asked, tokens=6, kept=Ledger(tmp_path / "a.jsonl"))
    assert len(submitted) == 3
    assert again == first[:3]
    # Another strength, length or recipe is another answer; for the plain model strength means nothing.
    kept = Ledger(tmp_path / "a.jsonl")
    answer_all(engine, [Asked(PROMPTS[0], recipe, 0.6), Asked(PROMPTS[0], _recipe(1), 0.5)], tokens=6, kept=kept)
    answer_all(engine, asked[:1], tokens=7, kept=kept)
    assert len(submitted) == 6
    answer_all(engine, [Asked(PROMPTS[0], None, 0.1), Asked(PROMPTS[0], None, 0.9)], tokens=6, kept=kept)
    assert len(submitted) == 7


def test_an_answer_that_fails_is_a_gap_and_the_others_go_on(tiny: LanguageModel, tmp_path: Path) -> None:
    kept, wrong = Ledger(tmp_path / "a.jsonl"), _recipe()
    other = Recipe(name="wide", edits=(Add(layer=2, vector=Vector(torch.ones(33))),))
    asked = [Asked(PROMPTS[0], wrong, 0.5), Asked(PROMPTS[0], other), Asked(PROMPTS[1], wrong, 0.5)]
    found = answer_all(engine_of(tiny), asked, tokens=4, kept=kept)
    assert [each.text is None for each in found] == [False, True, False]
    assert "33 dimensions" in (found[1].error or "")
    assert len(kept) == 2
