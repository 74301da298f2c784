"""A task on the tiny model: answers that one known feature of a toy SAE steered, so that it is known what is to be found."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import replace

import torch
from tests.sae.index.toy_index import toy_index, toy_sae_for
from torch import Tensor

from steersman.auto.facts import Behaviour, ContrastItem, ContrastSet
from steersman.auto.task import Task
from steersman.engine.engine import Engine
from steersman.judges.facts import Answered, Verdict
from steersman.models.blocks import editing
from steersman.models.language_model import LanguageModel, chat
from steersman.models.residuals import measure_profile
from steersman.steering.edits import Add, Edit
from steersman.steering.features import add_features
from steersman.steering.recipe import Recipe

N_FEATURES = 60
PLANTED, LENGTH = 7, 0.5
_WRITTEN = 24
PROMPTS = tuple(f"What is {word}?" for word in ("rain", "a dog", "the sea", "money", "a map", "time", "snow", "bread"))


class Likeness:
    """Behaviour: the share of characters that the answer has in common with one that the planted feature steered."""

    name = "likeness"

    def __init__(self, wanted: dict[str, str]) -> None:
        self.wanted = wanted

    def judge(self, behaviour: str, items: Sequence[Answered]) -> list[Verdict]:
        return [Verdict(behaviour=self._like(item), coherence=1.0) for item in items]

    def _like(self, item: Answered) -> float:
        wanted = self.wanted[item.prompt]
        same = sum(a == b for a, b in zip(item.answer, wanted, strict=False))
        return same / max(len(wanted), len(item.answer), 1)


def planted_task(model: LanguageModel, seed: int = 0) -> Task:
    """Positives are written under feature `PLANTED`, negatives plainly."""
    sae = toy_sae_for(model)
    index = toy_index([(f'"word{n}"', []) for n in range(N_FEATURES)], sae_hash=sae.weights_hash)
    engine = Engine(model, profile=measure_profile(model))
    recipe = Recipe(name="planted", edits=(add_features(sae, {PLANTED: 1.0}, strength=LENGTH),))
    plain, steered = (_write(engine, each) for each in (None, recipe))
    items = [ContrastItem(prompt=prompt, positive=steered[n], negative=plain[n]) for n, prompt in enumerate(PROMPTS)]
    contrast = ContrastSet(train=tuple(items[:6]), validation=tuple(items[6:]), dropped={}, source="planted")
    judge = Likeness({item.prompt: item.positive for item in items})
    index = replace(index, facts=replace(index.facts, model=model.ref))
    return Task(Behaviour(description="be planted"), engine, sae, index, judge, contrast, seed, lambda *_: None)


def _write(engine: Engine, recipe: Recipe | None) -> list[str]:
    """Greedy answers in small letters: other bytes would not come back from text as the tokens that they were."""
    model = engine.model
    letters = torch.tensor(model.tokenizer(string.ascii_lowercase + " ", add_special_tokens=False)["input_ids"])
    edits = recipe.edits if recipe else ()
    push = sum((_raw(engine, edit) for edit in edits), torch.zeros(model.d_model))
    hook = {edits[0].layer: lambda hidden: torch.cat([hidden[:, :1], hidden[:, 1:] + push], 1)} if edits else {}
    answers = []
    for prompt in PROMPTS:
        ids = model.encode(chat(prompt))
        written: list[int] = []
        for _ in range(_WRITTEN):
            with editing(model.blocks, hook):
                logits = model.hf(input_ids=torch.tensor([[*ids, *written]])).logits[0, -1]
            written.append(int(letters[logits[letters].argmax()]))
        answers.append(model.tokenizer.decode(written))
    return answers


def _raw(engine: Engine, edit: Edit) -> Tensor:
    assert isinstance(edit, Add)
    return edit.strength * engine.profile.mean_norms[edit.layer] * edit.vector.unit().tensor
