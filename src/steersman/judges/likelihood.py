"""How far an answer shows a behaviour, by what the unsteered model makes of it: the tokens of a text that shows a behaviour are
likelier once the model has been told to behave so. Knows nothing of coherence: a loop may score high here.

The score is the mean over tokens of log p(answer | behaviour asked for) - log p(answer | nothing in particular asked for), each
averaged over fixed ways of asking, mapped to [0, 1]. "Nothing in particular" is mostly a system prompt in the same words: beside
a prompt without any, every text that is not quite the model's own becomes likelier, whatever behaviour is asked for.
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

TOLD = (
    "Whatever the user asks, follow this instruction in your answer. {behaviour}",
    "{behaviour} Answer every question in this way.",
)
"""System prompts that ask for a behaviour. Other words than those by which auto-steering lets the model write examples."""
NEUTRAL = "Whatever the user asks, follow this instruction in your answer. Answer the question."
"""One that asks for nothing in particular."""
NEUTRAL_SHARE = 2 / 3
"""Its weight beside the prompt without a system prompt of ours (where a chat template may put its own)."""

CENTRE, WIDTH = 0.155, 0.120
"""Difference, in nats a token, that scores 0.5, and by how much it must grow to score 0.73."""


def asked(behaviour: str, item: Answered) -> tuple[AnswerItem, ...]:
    """What the score is made of: the answer under each of `TOLD`, under `NEUTRAL`, and to the plain prompt.

    Raises:
        DataError: the behaviour is empty.
        RequestError: the answer is empty.
    """
    systems = [*(told.format(behaviour=sentence(behaviour)) for told in TOLD), NEUTRAL, None]
    return tuple(AnswerItem(prompt=chat(item.prompt, system), answer=item.answer) for system in systems)


def log_ratio(found: Sequence[Float[Tensor, " tokens"]]) -> float:
    """By how many nats a token the answer is likelier when told to behave so; `found` is of the items of `asked`, in order."""
    *told, neutral, plain = (float(logprobs.mean()) for logprobs in found)
    return sum(told) / len(told) - NEUTRAL_SHARE * neutral - (1 - NEUTRAL_SHARE) * plain


def score(ratio: float) -> float:
    """A log-ratio on [0, 1] by the logistic function.

    The constants let plain answers score 0.1 (the median) and the clearest tenth of prompted ones 0.95, over 20 behaviours of 8
    prompts each: `python bench/judges.py --ask twice --fit`. Logistic regression of the one on the other would be many times
    steeper, and call everything that is clear at all a 1.
    """
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, (ratio - CENTRE) / WIDTH))))


def behaviour_scores(engine: Engine, behaviour: str, items: Sequence[Answered]) -> list[float]:
    """Score of each answer; an empty answer shows nothing and scores 0.

    Raises:
        DataError: the behaviour is empty.
        RequestError: an answer is too long for the model, or the model has no chat template.
    """
    full = [index for index, item in enumerate(items) if item.answer.strip()]
    asks = [ask for index in full for ask in asked(behaviour, items[index])]
    found = answer_logprobs(engine, asks)
    scores, n = [0.0] * len(items), len(TOLD) + 2
    for place, index in enumerate(full):
        scores[index] = score(log_ratio(found[place * n : (place + 1) * n]))
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
