"""Examples of a behaviour, written by the model itself or by another one behind an endpoint, and screened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from steersman.auto.contrast_set import make_contrast_set
from steersman.auto.facts import Behaviour, ContrastSet, Report
from steersman.auto.prompts import Prompts
from steersman.auto.writing import asking, write
from steersman.engine.engine import Engine
from steersman.judges.facts import Judge
from steersman.models.asking import Ask, in_parallel
from steersman.models.language_model import chat

_AT_ONCE = 8
"""Answers that a language model is asked for at once."""


def written_examples(
    engine: Engine, behaviour: Behaviour, prompts: Prompts, judge: Judge, report: Report, writer: Ask | None
) -> ContrastSet:
    """A contrast set: plain answers of the model itself, and those that show the behaviour, by the writer where there is one.

    Raises:
        DataError: the behaviour is not shown even when it is asked for.
        EndpointError: the writer does not answer.
    """

    def answers(asked: Sequence[tuple[str, str | None]], plain: int) -> list[str]:
        if writer is None:
            return write(engine, [asking(prompt, system=system) for prompt, system in asked])
        own = write(engine, [asking(prompt) for prompt, _ in asked[:plain]])
        return own + in_parallel(lambda each: writer(_messages(*each)), asked[plain:], _AT_ONCE)

    sides = {"train": prompts.train, "validation": prompts.validation}
    n = len(prompts.train) + len(prompts.validation)
    made = make_contrast_set(behaviour, sides, lambda asked: answers(asked, n), judge, report)
    return made if writer is None else replace(made, source="answers of a language model")


def _messages(prompt: str, system: str | None) -> list[dict[str, str]]:
    return [{"role": message["role"], "content": message["content"]} for message in chat(prompt, system)]
