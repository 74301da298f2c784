"""The proof: on prompts used nowhere before, do steered answers show the behaviour, stay sensible, and beat the controls?

Four ways of answering: plain; steered; prompted (the behaviour asked for in a system prompt); and steered by a random vector of
the same length, which shows what any push of that size would do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import torch

from steersman.auto.contrast_set import system_prompt
from steersman.auto.facts import ChoiceAccuracy, Evidence, Example, Scores, Verdict
from steersman.auto.task import Task
from steersman.auto.writing import asking, write
from steersman.intervals import Interval, bootstrap, paired_difference
from steersman.judges.embedding import EmbeddingJudge
from steersman.judges.facts import Answered, Judge
from steersman.judges.facts import Verdict as JudgeVerdict
from steersman.models.sentence_encoder import TextEncoder
from steersman.steering.edits import Add
from steersman.steering.recipe import Recipe
from steersman.steering.vector import Vector

WAYS = ("plain", "steered", "prompted", "random")
_EXAMPLES = 8
_PROOF_TOKENS = 48
Choices = Callable[[Recipe | None], float]
"""Accuracy on multiple-choice questions, plain (None) or steered."""


def prove(
    task: Task,
    recipe: Recipe,
    prompts: Sequence[str],
    judges: Sequence[Judge],
    choices: Choices | None = None,
    n_choices: int = 0,
) -> Evidence:
    """Answer held-out prompts in all four ways, judge them, and weigh the evidence.

    Args:
        task: its model and behaviour; its judge is only used when it is among `judges`.
        recipe: what is to be proven.
        prompts: used nowhere before.
        judges: scores are the mean over them, so that the judge that tuned is not the only one that proves.
        choices: accuracy on multiple-choice questions, plain and steered.
        n_choices: how many questions that are.
    """
    told, random = system_prompt(task.behaviour), random_control(recipe, task.seed)
    asked = {
        "plain": [asking(prompt, tokens=_PROOF_TOKENS) for prompt in prompts],
        "steered": [asking(prompt, recipe, tokens=_PROOF_TOKENS) for prompt in prompts],
        "prompted": [asking(prompt, system=told, tokens=_PROOF_TOKENS) for prompt in prompts],
        "random": [asking(prompt, random, tokens=_PROOF_TOKENS) for prompt in prompts],
    }
    written = iter(write(task.engine, [request for way in WAYS for request in asked[way]]))
    answers = {way: [next(written) for _ in prompts] for way in WAYS}
    verdicts = _verdicts(task, prompts, answers, judges)
    for way in WAYS:
        task.report("proof", {"way": way, "n": len(prompts)})
    products = {way: _mean_over_judges(verdicts[way], "product") for way in WAYS}
    differences = {way: paired_difference(products["steered"], products[way]) for way in WAYS if way != "steered"}
    verdict, why = _weigh(differences)
    return Evidence(
        scores={way: _scores(verdicts[way]) for way in WAYS},
        against_plain=differences["plain"],
        against_random=differences["random"],
        against_prompted=differences["prompted"],
        judges=tuple(judge.name for judge in judges),
        choice_accuracy=(
            ChoiceAccuracy(plain=choices(None), steered=choices(recipe), n=n_choices) if choices is not None else None
        ),
        examples=tuple(
            Example(prompt=prompt, **{way: answers[way][number] for way in ("plain", "steered", "prompted")})
            for number, prompt in enumerate(prompts[:_EXAMPLES])
        ),
        verdict=verdict,
        why=why,
    )


def proving_judges(task: Task, encoder: TextEncoder) -> list[Judge]:
    """The judge that tuned, and one that knows nothing of likelihoods: it has learnt the behaviour from the examples."""
    positives = [item.positive for item in task.contrast.train]
    negatives = [item.negative for item in task.contrast.train]
    return [task.judge, EmbeddingJudge(encoder, positives, negatives, coherence=task.judge)]


def scored(
    task: Task, prompts: Sequence[str], answers: Mapping[str, Sequence[str]], judges: Sequence[Judge]
) -> dict[str, Scores]:
    """What ways of answering the same prompts come to, each the mean over the judges."""
    verdicts = _verdicts(task, prompts, answers, judges)
    return {way: _scores(verdicts[way]) for way in answers}


def _verdicts(
    task: Task, prompts: Sequence[str], answers: Mapping[str, Sequence[str]], judges: Sequence[Judge]
) -> dict[str, list[list[JudgeVerdict]]]:
    """Of each way, the verdicts of each judge."""
    flat = [Answered(prompt, text) for way in answers for prompt, text in zip(prompts, answers[way], strict=True)]
    given = [judge.judge(task.behaviour.description, flat) for judge in judges]
    n = len(prompts)
    return {way: [each[at * n : (at + 1) * n] for each in given] for at, way in enumerate(answers)}


def random_control(recipe: Recipe, seed: int) -> Recipe:
    """The same recipe with every added vector replaced by a random one of the same length."""
    made = torch.Generator().manual_seed(seed)
    edits = tuple(
        replace(edit, vector=Vector(torch.randn(len(edit.vector), generator=made)), features=())
        if isinstance(edit, Add)
        else edit
        for edit in recipe.edits
    )
    return replace(recipe, name="random", edits=edits, evidence=None)


def _scores(verdicts: Sequence[Sequence[JudgeVerdict]]) -> Scores:
    return Scores(
        **{name: bootstrap(_mean_over_judges(verdicts, name)) for name in ("behaviour", "coherence", "product")}
    )


def _mean_over_judges(verdicts: Sequence[Sequence[JudgeVerdict]], name: str) -> list[float | None]:
    """One number a prompt: the mean over judges; None where any of them has none."""
    values = [[getattr(verdict, name) for verdict in of_judge] for of_judge in verdicts]
    return [None if None in column else fmean(column) for column in zip(*values, strict=True)]


def _weigh(differences: Mapping[str, Interval]) -> tuple[Verdict, str]:
    """The verdict, and the reason in words."""
    low = {way: differences[way].low for way in ("plain", "random")}
    missing = [way for way, value in low.items() if value is None]
    if missing:
        return "not proven", "fewer than two answers could be judged"
    failed = [way for way, value in low.items() if value is not None and value <= 0]
    if failed:
        return "not proven", (
            f"steered answers are not clearly better than {' and '.join(failed)} ones: the 95 % interval of the difference "
            f"reaches {min(value for value in low.values() if value is not None):+.2f}"
        )
    gain = differences["plain"].mean or 0.0
    return "proven", (
        f"steered answers score {gain:+.2f} against plain ones, and beat a random vector of the same length; both 95 % "
        "intervals lie above 0"
    )
