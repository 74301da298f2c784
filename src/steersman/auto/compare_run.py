"""One combination of an experiment, done in full: auto-steering from the sentence to the proof, scored on unseen prompts.

All runs of an experiment are scored by the same judges, so that their rows can be compared: as the proof scores them where the
local judge tunes, and by the local judge where language models do. Knows nothing of logs and tables.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from pydantic import JsonValue, TypeAdapter

from steersman.auto import autosteer as auto
from steersman.auto.compare_report import Outcome
from steersman.auto.experiment import Experiment, Run
from steersman.auto.facts import AutoResult, Behaviour, ContrastSet, Epoch, Evidence, Report
from steersman.auto.prompts import Prompts, split_prompts
from steersman.auto.writing import asking, write
from steersman.engine.engine import Engine
from steersman.judges.facts import Answered, Judge
from steersman.judges.llm import LlmJudge
from steersman.models.asking import Ask
from steersman.models.sentence_encoder import SentenceEncoder
from steersman.sae.model import SparseAutoencoder
from steersman.steering.features import add_features
from steersman.steering.recipe import Recipe

_CURVE = 6
"""Epochs that are judged afterwards, of optimisers that go by another measure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AutosteerRuns:
    """Does the runs of an experiment, one at a time."""

    experiment: Experiment
    engine: Engine
    """Of at least 32 slots."""
    sae_name: str
    sae: SparseAutoencoder
    """The one of that name."""
    encoder: SentenceEncoder
    judge: Judge
    """The local one, for all runs: it remembers what it has read."""
    ask: Ask | None = None
    """The language model of optimisers and judges that need one."""
    contrasts: Mapping[str, ContrastSet] = field(default_factory=dict)
    """Examples by behaviour; the model's own answers for the others."""

    def __call__(self, run: Run, report: Report | None = None) -> Outcome:
        """Tune and prove.

        Args:
            run: one of the experiment's.
            report: told what happens, as it happens.

        Raises:
            DataError, EndpointError, SaeError: as `autosteer`; and where a judge is wanted that there is no language model for.
        """
        began = time.perf_counter()
        result = auto.autosteer(
            self.engine,
            Behaviour(description=run.behaviour),
            sae=self.sae_name,
            encoder=self.encoder,
            judge=self._tuning_judge(run),
            optimiser=run.optimiser(self.ask),
            contrast=self.contrasts.get(run.behaviour),
            settings=self.experiment.settings(run.seed),
            report=report,
        )
        seconds = time.perf_counter() - began
        evidence = result.evidence
        score, plain = (evidence.scores[way].product.mean for way in ("steered", "plain"))
        judges = evidence.judges
        if self.experiment.judge_prompts:
            prompts = self._prompts(run).test
            score, plain = self._scores(run.behaviour, prompts, [result.recipe, None])
            judges = (self.judge.name,)
        return Outcome(
            score=score,
            history=self._curve(run, result),
            seconds=seconds,
            missing=None if score is not None else "no steered answer could be judged",
            facts={"plain": plain, "scored by": list(judges), **_facts(result)},
        )

    def _tuning_judge(self, run: Run) -> Judge:
        if run.judge_prompt is None or self.ask is None:
            return self.judge
        return LlmJudge(ask=self.ask, prompt=run.judge_prompt)

    def _prompts(self, run: Run) -> Prompts:
        """The prompts that auto-steering itself uses for this run."""
        settings = self.experiment.settings(run.seed)
        return split_prompts(run.seed, settings.train, settings.validation, settings.test)

    def _curve(self, run: Run, result: AutoResult) -> tuple[tuple[int, float], ...]:
        """Epoch and judged score of each. Where an optimiser maximises something else than answers (a likelihood), some of its
        epochs are judged now: their weights at the strength that was chosen in the end, on validation prompts."""
        judged = {epoch.step: epoch.score for epoch in result.history if 0 <= epoch.score <= 1}
        others = [epoch for epoch in result.history if epoch.step not in judged]
        if others and result.strength:
            some = _spread(others, _CURVE)
            recipes = [self._recipe(result, epoch) for epoch in some]
            found = self._scores(run.behaviour, self._prompts(run).validation, recipes)
            judged |= {epoch.step: score for epoch, score in zip(some, found, strict=True) if score is not None}
        return tuple(sorted(judged.items()))

    def _recipe(self, result: AutoResult, epoch: Epoch) -> Recipe | None:
        weights = {feature: weight for feature, weight in epoch.weights.items() if weight}
        if not weights:
            return None
        edit = add_features(self.sae, weights, strength=result.strength)
        return replace(result.recipe, edits=(edit,), evidence=None)

    def _scores(self, behaviour: str, prompts: Sequence[str], recipes: Sequence[Recipe | None]) -> list[float | None]:
        """Mean product of each recipe's answers by the local judge, all in one batch; None where nothing could be judged."""
        texts = write(self.engine, [asking(prompt, recipe) for recipe in recipes for prompt in prompts])
        items = [Answered(prompt, text) for prompt, text in zip(list(prompts) * len(recipes), texts, strict=True)]
        products = [verdict.product for verdict in self.judge.judge(behaviour, items)]
        n = len(prompts)
        parts = ([each for each in products[at * n : (at + 1) * n] if each is not None] for at in range(len(recipes)))
        return [fmean(part) if part else None for part in parts]


def _spread(epochs: Sequence[Epoch], n: int) -> list[Epoch]:
    """At most so many, the first and the last among them, evenly spread."""
    if len(epochs) <= n:
        return list(epochs)
    return [epochs[round(at * (len(epochs) - 1) / (n - 1))] for at in range(n)]


def _facts(result: AutoResult) -> dict[str, JsonValue]:
    """What a log line keeps of a result: all but texts and tensors."""
    evidence = TypeAdapter(Evidence).dump_python(replace(result.evidence, examples=()), mode="json")
    del evidence["examples"]
    return {
        "method": result.recipe.method,
        "strength": result.strength,
        "features": [{"id": each.id, "label": each.label, "weight": each.weight} for each in result.features],
        "strengths": {str(length): score for length, score in result.strengths.items()},
        **evidence,
    }
