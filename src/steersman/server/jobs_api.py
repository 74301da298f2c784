"""The job routes: ask for work in the background, watch it as it happens, cancel it. Knows nothing of how it is done.

POST /v1/jobs      202 with the job; `kind` says what is asked for
GET  /v1/jobs, /v1/jobs/{id}      DELETE /v1/jobs/{id} cancels
GET  /v1/jobs/{id}/events      server-sent events from the first one on, or behind Last-Event-ID; `ended` is the last
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Depends, Header, Path, Query
from fastapi.responses import StreamingResponse

from steersman.errors import Conflict, NotFound, RequestError
from steersman.evals.evaluate import judge_names
from steersman.evals.methods import methods_of
from steersman.models.asking import Ask
from steersman.server.auth import Caller, needs
from steersman.server.context import Context, Deps
from steersman.server.errors import ERRORS
from steersman.server.events import told
from steersman.server.job_kinds.autosteering import behaviour_of, endpoint_for, optimiser_of
from steersman.server.job_kinds.evaluating import asked_behaviour, settings_of
from steersman.server.job_kinds.fitting import pairs_of
from steersman.server.jobs_bodies import (
    AutosteerBody,
    EvaluateBody,
    FitBody,
    JobBody,
    JobList,
    JobView,
)
from steersman.server.layers import check_layers
from steersman.steering.pairs import distinct, load_named
from steersman.steering.personas import enough_openings, persona_pairs
from steersman.store.facts import JobState

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses={**ERRORS})

_Reader = Annotated[Caller, needs("read")]
_Trainer = Annotated[Caller, needs("train")]
_Id = Annotated[str, Path(min_length=1, max_length=200, description="Id of one of your jobs.")]
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events: `id` counts from 1, `event` is the kind, `data` an EventView; the last is `ended`.",
        "content": {"text/event-stream": {"schema": {}}},
    }
}


@router.post("", operation_id="create_job", status_code=202, summary="Ask for work in the background")
def create_job(caller: _Trainer, deps: Deps, body: JobBody) -> JobView:
    """Fit a recipe, auto-steer, or evaluate. The result stands in the job when its state is `ready`; recipes are yours then."""
    if isinstance(body, FitBody):
        _check_fit(body, deps)
    elif isinstance(body, AutosteerBody):
        _check_autosteer(body, deps.runner.ask)
    else:
        _check_evaluate(body, deps)
    if isinstance(body, FitBody | AutosteerBody) and body.name is not None:
        _check_free(deps, caller.owner, body.name)
    made = deps.store.jobs.create(caller.owner, body.kind, body.model_dump(mode="json"), model=deps.runner.model)
    deps.runner.wake()
    return JobView.of(made)


@router.get("", operation_id="list_jobs", summary="Your jobs")
def list_jobs(
    caller: _Reader,
    deps: Deps,
    kind: Annotated[str | None, Query(min_length=1, max_length=40)] = None,
    state: JobState | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
) -> JobList:
    """A page of your jobs, newest first; those that fit sets are among them."""
    records, total = deps.store.jobs.list(caller.owner, kind=kind, state=state, limit=limit, offset=offset)
    return JobList(data=[JobView.of(record) for record in records], total=total)


@router.get("/{job_id}", operation_id="get_job", summary="One of your jobs")
def get_job(caller: _Reader, deps: Deps, job_id: _Id) -> JobView:
    """As it stands."""
    return JobView.of(deps.store.jobs.get(caller.owner, job_id))


@router.delete("/{job_id}", operation_id="cancel_job", summary="Cancel a job")
def cancel_job(caller: _Trainer, deps: Deps, job_id: _Id) -> JobView:
    """It stays in the list as `cancelled`; nothing that it would have made is kept."""
    record = deps.store.jobs.cancel(caller.owner, job_id)
    deps.runner.drop(job_id)
    return JobView.of(record)


async def _seat(caller: _Reader, deps: Deps) -> AsyncIterator[None]:
    """A place among those who watch, kept until the last byte was sent."""
    with deps.watchers.seat(caller.key_id):
        yield


@router.get(
    "/{job_id}/events",
    operation_id="watch_job",
    summary="Watch a job",
    responses=_EVENTS,
    response_class=StreamingResponse,
    dependencies=[Depends(_seat, scope="request")],
)
async def watch_job(
    caller: _Reader,
    deps: Deps,
    job_id: _Id,
    last_event_id: Annotated[int, Header(ge=0, lt=1 << 31, description="Begin behind this event.")] = 0,
) -> StreamingResponse:
    """What happened so far and what happens, until the job ends."""
    await anyio.to_thread.run_sync(deps.store.jobs.standing, caller.owner, job_id)
    lines = told(deps.store.jobs, caller.owner, job_id, last_event_id, lambda: deps.runner.is_stopping)
    return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


# --- what can be seen to be wrong is refused at once, not by a failed job


def _check_fit(body: FitBody, deps: Context) -> None:
    given = [name for name in ("pairs", "contrast_set", "personas", "trait") if getattr(body, name) is not None]
    if len(given) != 1:
        raise RequestError(
            f"give one of pairs, contrast_set, personas and trait, not {' and '.join(given) or 'none of them'}"
        )
    if body.trait is not None and body.method is not None:
        raise RequestError("a trait is fitted by caa at a strength that is found for it; leave 'method' out")
    check_layers(deps.engine.model, body.layers or ())
    if body.contrast_set is not None:
        load_named(body.contrast_set)
    if body.pairs is not None:
        distinct(pairs_of(body.pairs))
    if body.personas is not None:
        said = body.personas
        persona_pairs(said.positive_examples, said.negative_examples, enough_openings(said.prompts), most=2)


def _check_autosteer(body: AutosteerBody, ask: Ask | None) -> None:
    if body.examples is not None and any(pair.prompt is None for pair in body.examples):
        raise RequestError("every one of the examples needs a 'prompt' that both answers belong to")
    behaviour_of(body)
    optimiser_of(body, endpoint_for(body, ask))


def _check_evaluate(body: EvaluateBody, deps: Context) -> None:
    check_layers(deps.engine.model, () if body.layer is None else (body.layer,))
    if (body.behaviour is None) == (body.examples is None):
        raise RequestError("give either 'behaviour' (a name) or 'examples'")
    asked_behaviour(body)
    settings_of(body)
    if body.methods is not None:
        methods_of(body.methods)
    if (body.battles or "llm" in judge_names(body.judge)) and deps.runner.ask is None:
        raise Conflict("this server has no language model to ask; leave out 'battles' and the judge 'llm'")


def _check_free(deps: Context, owner: str, name: str) -> None:
    try:
        deps.store.recipes.get(owner, name)
    except NotFound:
        return
    raise Conflict(f"you have a recipe {name!r} already; choose another name, or delete that one")
