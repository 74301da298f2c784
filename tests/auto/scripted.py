"""Parts that do as they are told: a language model with a list of replies, a judge with a list of grades."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import JsonValue

from steersman.auto.facts import Candidate
from steersman.auto.task import Task
from steersman.errors import EndpointError
from steersman.judges.facts import Answered, Verdict
from steersman.models.asking import Messages


class Script:
    """Says one thing after the other, and keeps what it heard."""

    def __init__(self, *replies: str | Exception) -> None:
        self.replies = list(replies)
        self.heard: list[list[Any]] = []

    def __call__(self, messages: Messages) -> str:
        self.heard.append(list(messages))
        if not self.replies:
            raise EndpointError("the script is over")
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def shown(self, call: int) -> Any:
        """What the user's first message of one call says."""
        return json.loads(self.heard[call][1]["content"])


@dataclass
class Grades:
    """A judge whose behaviour grade is a function of how often it was asked; coherence is 1."""

    grade: Callable[[int], float | None]
    name: str = "script"
    asked: list[list[Answered]] = field(default_factory=list)

    def judge(self, behaviour: str, items: Sequence[Answered]) -> list[Verdict]:
        self.asked.append(list(items))
        share = self.grade(len(self.asked))
        if share is None:
            return [Verdict(behaviour=None, coherence=1.0, missing="no words for it") for _ in items]
        return [Verdict(behaviour=share, coherence=1.0, critique=f"critique {len(self.asked)}") for _ in items]


@dataclass
class Reports:
    """Keeps what it is told."""

    told: list[tuple[str, dict[str, JsonValue]]] = field(default_factory=list)

    def __call__(self, event: str, facts: dict[str, JsonValue]) -> None:
        self.told.append((event, facts))

    def of(self, event: str) -> list[dict[str, JsonValue]]:
        return [facts for name, facts in self.told if name == event]


def graded(task: Task, *grades: float | None) -> tuple[Task, Grades, Reports]:
    """The task with a judge that gives these grades one after the other, the last one for ever."""
    judge, reports = Grades(lambda n: grades[min(n, len(grades)) - 1]), Reports()
    return replace(task, judge=judge, report=reports), judge, reports


def candidates(*scores: float) -> list[Candidate]:
    """Features 0, 1, ... with these scores."""
    return [Candidate(id=n, label=f"word {n}", sources=("gradient",), score=score) for n, score in enumerate(scores)]
