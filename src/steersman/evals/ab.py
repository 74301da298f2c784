"""A/B behaviours as the CAA paper measures them: how probable is the answer that matches the behaviour.

Knows nothing of strengths. Files are CAA's: `question` (with its choices), `answer_matching_behavior` and
`answer_not_matching_behavior`, each a letter in brackets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from steersman.engine.engine import Engine
from steersman.engine.likelihood import AnswerItem, answer_logprobs
from steersman.evals.items import Gap, ItemFile, Scored, load_items, scored_items, text_of
from steersman.facts import fact
from steersman.models.language_model import LanguageModel, Prompt, chat
from steersman.steering.pairs import Pair
from steersman.steering.recipe import Recipe

AnsweredBy = Literal["letter", "text"]
"""What stands for an answer: its `letter`, behind `(`, as in the paper; or its `text`, with the choices cut from the question,
for models too small to tie letters to what they stand for."""


@fact
class AbItem:
    """A question with lettered choices."""

    question: str
    matching: str
    """Letter of the choice that shows the behaviour."""
    other: str
    """Letter of the one it is weighed against."""


def load_ab(path: Path) -> ItemFile[AbItem]:
    """Items of a CAA file; one whose letters cannot be read, or are not among its choices, is a gap.

    Raises:
        DataError: unreadable, or an item without one of its three keys, with the place.
    """
    return load_items(path, ab_item)


def ab_item(row: dict[str, Any]) -> AbItem | Gap:
    """One row as an item, or why its letters cannot be read.

    Raises:
        DataError: a key is missing or holds no text.
    """
    question = text_of(row, "question")
    keys = ("answer_matching_behavior", "answer_not_matching_behavior")
    matching, other = (_letter(text_of(row, key)) for key in keys)
    if matching is None or other is None:
        return Gap("a letter cannot be read; answers are written (A) or (B)")
    if matching == other:
        return Gap("both answers have the same letter")
    if any(f"({letter})" not in question for letter in (matching, other)):
        return Gap("a letter is not among the question's choices")
    return AbItem(question=question, matching=matching, other=other)


def ab_pairs(items: Sequence[AbItem | Gap], by: AnsweredBy = "letter") -> list[Pair]:
    """Contrast pairs to fit CAA on: the same question, answered in either way; what cannot be is left out.

    By letter, `(A` or `(B`, fit with `read="last"`: Panickssery et al., arXiv:2312.06681, section 3, read the residuals at the
    letter, so the answer ends there. By text, fit with `read="answer"`.
    """
    sides = [_sides(item, by) for item in items if isinstance(item, AbItem)]
    return [Pair.answers(*side) for side in sides if not isinstance(side, Gap)]


def matching_probabilities(
    engine: Engine,
    items: Sequence[AbItem | Gap],
    recipe: Recipe | None = None,
    *,
    strength: float = 1.0,
    by: AnsweredBy = "letter",
) -> list[Scored]:
    """For each item `p(matching) / (p(matching) + p(other))`; by letter it is read where the letter stands behind `(`.

    As arXiv:2312.06681 section 4 does, but with the letters of the item where these are others than A and B. 0.5 is
    indifference. By text, p is the probability of the choice's whole text behind the question without its choices. An item
    that does not fit into the context, whose choices cannot be told apart, or at which the output is no number, is a gap.

    Raises:
        RecipeMismatch, SaeError: as a request.
    """

    def score(some: Sequence[tuple[str, str, str]]) -> list[float]:
        return shares(engine, [(asked(engine.model, q), one, other) for q, one, other in some], recipe, strength)

    return scored_items([item if isinstance(item, Gap) else _sides(item, by) for item in items], score)


def asked(model: LanguageModel, question: str) -> Prompt:
    """The question as a chat, or as text where the model knows no chats."""
    return chat(question) if model.is_chat else f"{question}\n\nAnswer:\n"


def shares(
    engine: Engine, sides: Sequence[tuple[Prompt, str, str]], recipe: Recipe | None, strength: float
) -> list[float]:
    """Of each (prompt, one answer, other answer), the share of the first in the probability of both."""
    items = [
        AnswerItem(prompt=prompt, answer=answer, recipe=recipe, strength=strength)
        for prompt, *answers in sides
        for answer in answers
    ]
    sums = [float(logprobs.sum()) for logprobs in answer_logprobs(engine, items)]
    return [_sigmoid(one - other) for one, other in zip(sums[::2], sums[1::2], strict=True)]


def _sides(item: AbItem, by: AnsweredBy) -> tuple[str, str, str] | Gap:
    """What is asked, the matching answer and the other one."""
    if by == "letter":
        return item.question, f"({item.matching}", f"({item.other}"
    marks = list(re.finditer(r"(?:^|(?<=\s))\(([A-Z])\)", item.question))
    ends = [mark.start() for mark in marks[1:]] + [len(item.question)]
    texts = {mark[1]: item.question[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)}
    answers = [texts.get(letter, "") for letter in (item.matching, item.other)]
    if len(texts) < len(marks) or not all(answers) or answers[0] == answers[1]:
        return Gap("its choices cannot be told apart")
    question = re.sub(r"\s*(Choices:)?\s*$", "", item.question[: marks[0].start()])
    return (question, answers[0], answers[1]) if question else Gap("nothing is asked before its choices")


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _letter(text: str) -> str | None:
    found = re.fullmatch(r"\s*\(([A-Z])\)\s*", text) or re.fullmatch(r"\s*([A-Z])[.)]?\s*", text)
    return found.group(1) if found else None
