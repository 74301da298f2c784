"""What every part of an auto-steering run works with: the behaviour, the model, the SAE, the judge, and shorthands on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from steersman.auto.facts import Behaviour, Candidate, ContrastSet, Report, Tuned
from steersman.auto.lessons import Lessons, make_lessons
from steersman.auto.writing import ANSWER_TOKENS, asking, write
from steersman.engine.engine import Engine
from steersman.judges.facts import Answered, Judge, Verdict
from steersman.models.language_model import LanguageModel
from steersman.sae.index.facts import FeatureIndex
from steersman.sae.model import SparseAutoencoder
from steersman.steering.features import add_features
from steersman.steering.recipe import Recipe


@dataclass(frozen=True)
class Task:
    """One behaviour to be steered to."""

    behaviour: Behaviour
    engine: Engine
    sae: SparseAutoencoder
    index: FeatureIndex
    judge: Judge
    contrast: ContrastSet
    seed: int
    report: Report
    """Told what happens, as it happens."""

    @cached_property
    def lessons(self) -> Lessons:
        """What weights are trained on; prepared when first asked for."""
        return make_lessons(self.model, self.sae.config.layer, self.behaviour, self.contrast, self.seed)

    @property
    def model(self) -> LanguageModel:
        """The model that is steered."""
        return self.engine.model

    def labels(self, features: Sequence[int]) -> dict[int, str]:
        """Labels of features, as far as they have one."""
        found = {feature: self.index.labels[feature] for feature in features}
        return {feature: label.text for feature, label in found.items() if label is not None}

    def recipe(self, weights: Mapping[int, float], strength: float, method: str = "autosteer") -> Recipe:
        """Weights and a strength (in mean residual norms) as a recipe."""
        edit = add_features(self.sae, weights, strength=strength, labels=self.labels(list(weights)))
        return Recipe(
            name="autosteer",
            edits=(edit,),
            description=self.behaviour.description,
            model=self.model.ref,
            sae=self.index.facts.sae,
            method=method,
        )

    def answers(
        self, prompts: Sequence[str], recipe: Recipe | None = None, *, tokens: int = ANSWER_TOKENS
    ) -> list[str]:
        """Greedy answers, all prompts in one batch."""
        return write(self.engine, [asking(prompt, recipe, tokens=tokens) for prompt in prompts])

    def judged(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        """The judge's verdicts on answers to prompts."""
        items = [Answered(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        return self.judge.judge(self.behaviour.description, items)


class Optimiser(Protocol):
    """Chooses weights for candidate features; the fields of an implementation are its settings."""

    def tune(self, task: Task, candidates: Sequence[Candidate]) -> Tuned:
        """Weights, with the history of how they came about. Interrupted (KeyboardInterrupt), it lets the best so far go up in
        `task.report` before the interrupt does."""
