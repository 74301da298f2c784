"""What steering costs elsewhere: accuracy on multiple-choice questions. Knows nothing of files, strengths or curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steersman.engine.engine import Engine
from steersman.engine.likelihood import AnswerItem, ChoiceQuestion, answer_logprobs, choose
from steersman.evals.choice_files import ContextQuestion, Question
from steersman.evals.items import Gap, Scored, scored_items
from steersman.steering.recipe import Recipe


def right_choices(
    engine: Engine, questions: Sequence[Question | Gap], recipe: Recipe | None = None, *, strength: float = 1.0
) -> list[Scored]:
    """1 where the model finds the right choice likeliest, 0 where another one.

    A question with choices is read as `choose` reads it; one with contexts by how likely its ending is behind each of them.
    One that does not fit into the context, or at which the model's output is no number, is a gap.

    Raises:
        RecipeMismatch, SaeError: as a request.
    """

    def score(some: Sequence[Any]) -> list[float]:
        return _right(engine, some, recipe, strength)

    return scored_items(questions, score)


def _right(engine: Engine, questions: Sequence[Question], recipe: Recipe | None, strength: float) -> list[float]:
    by_choice = [asked for asked in questions if isinstance(asked, ChoiceQuestion)]
    by_context = [asked for asked in questions if isinstance(asked, ContextQuestion)]
    chosen = iter(choose(engine, by_choice, recipe, strength=strength))
    begun = iter(_likeliest_contexts(engine, by_context, recipe, strength))
    found = [next(chosen if isinstance(asked, ChoiceQuestion) else begun) for asked in questions]
    return [float(index == asked.answer_index) for index, asked in zip(found, questions, strict=True)]


def _likeliest_contexts(
    engine: Engine, questions: Sequence[ContextQuestion], recipe: Recipe | None, strength: float
) -> list[int]:
    items = [
        AnswerItem(prompt=context, answer=f" {asked.continuation}", recipe=recipe, strength=strength)
        for asked in questions
        for context in asked.contexts
    ]
    sums = iter([float(logprobs.sum()) for logprobs in answer_logprobs(engine, items)])
    found = []
    for asked in questions:
        scores = [next(sums) for _ in asked.contexts]
        found.append(scores.index(max(scores)))
    return found
