"""A whole evaluation on the tiny model: behaviours of a few pairs, a judge of letters, and no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from tests.auto.rig import planted_task
from tests.sae.index.toy_index import WordEncoder

from steersman.auto.task import Task
from steersman.engine.engine import Engine
from steersman.errors import RequestError
from steersman.evals.behaviours import EvalBehaviour
from steersman.evals.context import Context
from steersman.judges.facts import Answered, Verdict
from steersman.models.language_model import LanguageModel
from steersman.models.residuals import measure_profile

PROMPTS = tuple(f"Say {word}" for word in ("one", "two", "three", "four", "five", "six"))


@dataclass
class Letters:
    """Behaviour: the share of letters among the characters. Fails on what holds a forbidden text."""

    forbidden: str | None = None
    name: str = "letters"
    calls: list[int] = field(default_factory=list)

    def judge(self, behaviour: str, items: Sequence[Answered]) -> list[Verdict]:
        self.calls.append(len(items))
        if self.forbidden is not None and any(self.forbidden in item.prompt for item in items):
            raise RequestError("this one is beyond me")
        shares = [sum(map(str.isalpha, item.answer)) / max(len(item.answer), 1) for item in items]
        return [Verdict(behaviour=share, coherence=1.0) for share in shares]


def engine_of(model: LanguageModel) -> Engine:
    return Engine(model, profile=measure_profile(model))


@cache
def context_of(model: LanguageModel) -> tuple[Context, Task]:
    """A context whose examples one planted feature of a toy SAE wrote."""
    task = planted_task(model)
    items = (*task.contrast.train, *task.contrast.validation)
    behaviour = EvalBehaviour(name="planted", description="Be planted.", criterion="It is planted.", items=items)
    context = Context(
        behaviour=behaviour,
        contrast=task.contrast,
        engine=task.engine,
        encoder=WordEncoder(),
        judge=task.judge,
        layer=task.sae.config.layer,
        prompts=("a", "b"),
        seed=0,
        sae=task.sae,
        index=task.index,
    )
    return context, task
