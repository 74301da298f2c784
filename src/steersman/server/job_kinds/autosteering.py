"""Auto-steering as a job: told as it happens, gone on with after a restart behind the last finished stage."""

from __future__ import annotations

import dataclasses

from pydantic import JsonValue

from steersman.auto.autosteer import AutoSettings, autosteer
from steersman.auto.contrast_set import from_examples
from steersman.auto.facts import AutoResult, Behaviour, ContrastItem, ContrastSet
from steersman.auto.optimise import make_optimiser, parts_of
from steersman.auto.report import result_json
from steersman.auto.task import Optimiser
from steersman.errors import Conflict
from steersman.judges.llm import LlmJudge
from steersman.models.asking import Ask
from steersman.server.job_kinds.desk import Desk, Done, as_json
from steersman.server.jobs_bodies import AutosteerBody
from steersman.store.facts import JobRecord


class Autosteer:
    """A proven recipe of its owner's."""

    def run(self, job: JobRecord, desk: Desk) -> Done:
        """As `Kind`. Events are those of `auto.autosteer`: stages, candidates, steps with weights and score, strengths, proof."""
        asked = AutosteerBody.model_validate(job.request)
        ask = endpoint_for(asked, desk.ask)
        result = autosteer(
            desk.engine,
            behaviour_of(asked),
            judge=LlmJudge(ask=ask) if asked.judge == "llm" and ask is not None else None,
            optimiser=optimiser_of(asked, ask),
            contrast=_examples(asked),
            ask=ask,
            settings=AutoSettings(seed=asked.seed),
            report=desk.tell,
            folder=desk.folder,
        )
        name = asked.name or f"autosteer-{job.id[:8].strip('._-')}"
        is_kept = asked.keep_unproven or result.evidence.verdict == "proven"
        recipe = dataclasses.replace(result.recipe, name=name)
        return Done(_told(result, name if is_kept else None), recipes={name: recipe} if is_kept else {})


def behaviour_of(asked: AutosteerBody) -> Behaviour:
    """What the recipe shall do.

    Raises:
        DataError: it is empty, or contradicts itself.
    """
    return Behaviour(description=asked.behaviour, opposite=asked.opposite)


def optimiser_of(asked: AutosteerBody, ask: Ask | None) -> Optimiser:
    """Who chooses the weights.

    Raises:
        DataError: an unknown optimiser.
        Conflict: it needs a language model, and there is none.
    """
    settings = {"features": asked.features}
    parts = parts_of(asked.optimiser)
    return make_optimiser(asked.optimiser, settings if len(parts) == 1 else dict.fromkeys(parts, settings), ask)


def endpoint_for(asked: AutosteerBody, ask: Ask | None) -> Ask | None:
    """The server's language model, where the job asks it anything.

    Raises:
        Conflict: it does, and the server has none.
    """
    if not (asked.judge == "llm" or asked.expand or "textgrad" in asked.optimiser):
        return None
    if ask is None:
        raise Conflict("this server has no language model to ask; leave out what needs one (llm, textgrad, expand)")
    return ask


def _examples(asked: AutosteerBody) -> ContrastSet | None:
    if asked.examples is None:
        return None
    return from_examples(
        [
            ContrastItem(prompt=each.prompt or "", positive=each.positive, negative=each.negative)
            for each in asked.examples
        ]
    )


def _told(result: AutoResult, name: str | None) -> dict[str, JsonValue]:
    """The result for whoever asks: features, scores, the curve of scores against steps, what each strength came to."""
    history = [{"step": each.step, "score": each.score, "note": each.note} for each in result.history]
    told = {**result_json(result), "recipe": name, "why": result.evidence.why, "history": history}
    return {str(key): as_json(value) for key, value in {**told, "strengths": result.strengths}.items()}
