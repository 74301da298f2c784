"""Evaluations as jobs: steering methods compared on one behaviour, gone on with after a restart where they stopped."""

from __future__ import annotations

import time

from pydantic import JsonValue

from steersman.errors import DataError, did_you_mean
from steersman.evals.behaviours import EvalBehaviour, behaviour_of, known_behaviours, load_behaviour
from steersman.evals.evaluate import Tools, evaluate
from steersman.evals.facts import STRENGTHS, EvalSettings
from steersman.evals.methods import DEFAULT_METHODS
from steersman.evals.tables import facts_of
from steersman.models.sentence_encoder import load_encoder
from steersman.server.job_kinds.desk import Desk, Done, Tell, as_json
from steersman.server.jobs_bodies import EvaluateBody
from steersman.store.facts import JobRecord

_PAUSE_S = 0.5


class Evaluate:
    """A comparison, as `steersman evaluate` makes it."""

    def run(self, job: JobRecord, desk: Desk) -> Done:
        """As `Kind`."""
        asked = EvaluateBody.model_validate(job.request)
        found = evaluate(
            desk.engine,
            asked_behaviour(asked),
            desk.folder,
            tools=Tools(load_encoder(), asked.judge, desk.ask, battles=asked.battles),
            methods=tuple(asked.methods or DEFAULT_METHODS),
            settings=settings_of(asked),
            progress=_Progress(desk.tell),
        )
        result = as_json(facts_of(found, samples=asked.answers))
        assert isinstance(result, dict)
        return Done(result)


def asked_behaviour(asked: EvaluateBody) -> EvalBehaviour:
    """The behaviour by its name, or as it came along. Files are not looked for.

    Raises:
        DataError: an unknown name, or examples that are none.
    """
    if asked.examples is not None:
        value: dict[str, JsonValue] = asked.examples.model_dump(exclude_none=True)
        return behaviour_of(value, asked.describe, "the request")
    name, known = asked.behaviour or "", known_behaviours()
    if name not in known:
        raise DataError(
            f"there is no behaviour {name[:60]!r} (there are: {', '.join(sorted(known))}){did_you_mean(name, known)}"
        )
    return load_behaviour(name, asked.describe)


def settings_of(asked: EvaluateBody) -> EvalSettings:
    """How much is done.

    Raises:
        DataError: a strength that stands twice.
    """
    return EvalSettings(
        prompts=asked.prompts,
        strengths=tuple(asked.strengths) if asked.strengths else STRENGTHS,
        tokens=asked.tokens,
        layer=asked.layer,
        seed=asked.seed,
    )


class _Progress:
    """Progress as events: the first, the last, and at most two a second of those between."""

    def __init__(self, tell: Tell) -> None:
        self._tell, self._stage, self._last = tell, "", 0.0

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if stage == self._stage and done < total and now - self._last < _PAUSE_S:
            return
        self._stage, self._last = stage, now
        self._tell("progress", {"stage": stage, "done": done, "total": total, "note": note})
