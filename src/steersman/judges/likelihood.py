"""How far an answer shows a behaviour, by what the unsteered model makes of it: the tokens of a text that shows a behaviour are
likelier once the model has been told to behave so. Knows nothing of coherence: a loop may score high here.

The score of an answer is the mean over its tokens of log p(answer | behaviour asked for) - log p(answer | asked plainly),
averaged over fixed ways of asking and mapped to [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from steersman.engine.engine import Engine
from steersman.engine.likelihood import AnswerItem, answer_logprobs
from steersman.errors import DataError
from steersman.judges.facts import Answered
from steersman.models.language_model import chat

PHRASINGS = (
    "Whatever the user asks, follow this instruction in your answer. {behaviour}",
    "This is how you speak and write: {behaviour} Stay that way in all of your answers.",
)
"""System prompts that ask for a behaviour. Other words than those by which auto-steering lets the model write examples."""

CENTRE, WIDTH = 0.2, 0.2
"""Difference, in nats a token, that scores 0.5, and by how much it must grow to score 0.73."""


def asked(behaviour: str, item: Answered) -> tuple[AnswerItem, ...]:
    """The answer under each phrasing of the behaviour, and last to the plain prompt: what the score is made of.

    A plain prompt is one without a system prompt of ours; a chat template may put its own there.

    Raises:
        DataError: the behaviour is empty.
        RequestError: the answer is empty.
    """
    systems = [*(phrasing.format(behaviour=sentence(behaviour)) for phrasing in PHRASINGS), None]
    return tuple(AnswerItem(prompt=chat(item.prompt, system), answer=item.answer) for system in systems)


def log_ratio(told: Sequence[Float[Tensor, " tokens"]], plain: Float[Tensor, " tokens"]) -> float:
    """By how many nats a token the answer is likelier when told to behave so: the mean over phrasings and tokens."""
    return float(sum((logprobs - plain).mean() for logprobs in told)) / len(told)


def score(ratio: float) -> float:
    """A log-ratio on [0, 1]: the logistic function that best tells prompted from plain answers.

    The constants are those of 20 behaviours, 8 prompts each: `python bench/judges.py --fit`.
    """
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, (ratio - CENTRE) / WIDTH))))


def behaviour_scores(engine: Engine, behaviour: str, items: Sequence[Answered]) -> list[float]:
    """Score of each answer; an empty answer shows nothing and scores 0.

    Raises:
        DataError: the behaviour is empty.
        RequestError: an answer is too long for the model.
    """
    full = [index for index, item in enumerate(items) if item.answer.strip()]
    asks = [ask for index in full for ask in asked(behaviour, items[index])]
    found = answer_logprobs(engine, asks)
    scores, n = [0.0] * len(items), len(PHRASINGS) + 1
    for place, index in enumerate(full):
        *told, plain = found[place * n : (place + 1) * n]
        scores[index] = score(log_ratio(told, plain))
    return scores


def sentence(behaviour: str) -> str:
    """A behaviour as a sentence that other sentences can follow.

    Raises:
        DataError: it is empty.
    """
    said = " ".join(behaviour.split())
    if not said:
        raise DataError("the behaviour is empty; say in a sentence how the model should behave")
    return said[0].upper() + said[1:] + ("" if said[-1] in ".!?" else ".")
