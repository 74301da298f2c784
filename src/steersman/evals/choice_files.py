"""Multiple-choice questions from the files that are passed around, in one form. Knows nothing of models.

Told apart by their keys: `query, choices, gold` (ARC, PIQA, OpenBookQA, COPA, BoolQ), `context_options, continuation, gold`
(WinoGrande), `prompt, correct, incorrect` with the full texts (the CAA copy of MMLU: two choices each), `question, mc1_targets`
(TruthfulQA), and ours, `question, choices, answer`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from steersman.engine.likelihood import ChoiceQuestion
from steersman.errors import DataError
from steersman.evals.items import ItemFile, load_items, text_of
from steersman.facts import fact


@fact
class ContextQuestion:
    """One ending, and beginnings to choose from (WinoGrande's partial scoring, Trinh and Le, arXiv:1806.02847)."""

    contexts: tuple[str, ...]
    continuation: str
    answer_index: int
    """Which beginning is right, counted from 0."""

    def __post_init__(self) -> None:
        if len(self.contexts) < 2 or not all(context.strip() for context in self.contexts):
            raise DataError(f"{self.continuation[:60]!r} needs at least two contexts, none of them empty")
        if not 0 <= self.answer_index < len(self.contexts):
            raise DataError(f"'gold' must lie between 0 and {len(self.contexts) - 1}, not {self.answer_index}")


Question = ChoiceQuestion | ContextQuestion


def load_choices(path: Path) -> ItemFile[Question]:
    """Questions of a file in any of the forms above; equal questions are kept once.

    Raises:
        DataError: unreadable, an unknown form, missing keys, or an answer that is none of the choices, with the place.
    """
    return load_items(path, question_of)


def question_of(row: dict[str, Any]) -> Question:
    """One row as a question.

    Raises:
        DataError: an unknown form, missing keys, or an answer that is none of the choices.
    """
    if "mc1_targets" in row:
        return _truthful(row)
    if "context_options" in row:
        contexts = tuple(text.strip() for text in _texts(row, "context_options"))
        ending = text_of(row, "continuation").strip()
        return ContextQuestion(contexts=contexts, continuation=ending, answer_index=_index(row, "gold"))
    if "correct" in row or "incorrect" in row:
        return _lettered(row)
    asked, key = ("query", "gold") if "query" in row else ("question", "answer")
    question = _unprefixed(text_of(row, asked))
    return ChoiceQuestion(question=question, choices=_texts(row, "choices"), answer_index=_index(row, key))


def _truthful(row: dict[str, Any]) -> ChoiceQuestion:
    targets = row["mc1_targets"]
    if not isinstance(targets, dict) or [*targets.values()].count(1) != 1:
        raise DataError("'mc1_targets' must map answers to 0 or 1, and exactly one of them to 1")
    # The file has the right answer first; alphabetical order tells nothing, not even where two are equally likely.
    choices = sorted(targets)
    right = next(place for place, choice in enumerate(choices) if targets[choice] == 1)
    return ChoiceQuestion(question=text_of(row, "question"), choices=tuple(choices), answer_index=right)


def _lettered(row: dict[str, Any]) -> ChoiceQuestion:
    question = re.split(r"\n+\s*Choices:\s*\n", text_of(row, "prompt"))[0].strip()
    right, wrong = text_of(row, "correct_full_text"), text_of(row, "incorrect_full_text")
    first = text_of(row, "correct") < text_of(row, "incorrect")
    return ChoiceQuestion(
        question=question, choices=(right, wrong) if first else (wrong, right), answer_index=0 if first else 1
    )


def _unprefixed(text: str) -> str:
    """Without a leading `Question:`, which the engine writes itself; a passage before a question stays before it."""
    return re.sub(r"^Question:\s*|(?<=\n)Question:\s*", "", text.strip())


def _texts(row: dict[str, Any], key: str) -> tuple[str, ...]:
    values = row.get(key)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise DataError(f"'{key}' must be a list of texts; known forms have query, choices and gold, or their like")
    return tuple(values)


def _index(row: dict[str, Any], key: str) -> int:
    value = row.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"'{key}' must be the number of the right choice, counted from 0, not {value!r}")
    return value
