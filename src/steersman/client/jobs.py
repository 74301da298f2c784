"""Work in the background: begin it, follow it live, wait for it, cancel it; auto-steering and evaluation. No connection."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast
from urllib.parse import quote

from pydantic import JsonValue

from steersman.client.facts import AutosteerOutcome, Job, JobEvent, JobState, Page
from steersman.client.flow import ask, each, follow, poll
from steersman.client.methods import Method, StreamMethod
from steersman.client.steps import Call, Flow, Item, Streamed
from steersman.client.streaming import ServerEvent
from steersman.errors import ApiError

Progress: TypeAlias = Callable[[JobEvent], None]
"""Called with every event of a job, as it happens."""

_ROOT = "/v1/jobs"
_ENDED = "ended"
_POLL_S = 2.0


def create(kind: str, request: Mapping[str, Any]) -> Flow[Job]:
    """Begin a job.

    Args:
        kind: `fit`, `autosteer` or `evaluate`.
        request: what it is to do, see the server's OpenAPI document.

    Raises:
        ApiError: as of `Client.chat`.
    """
    call = Call(method="POST", path=_ROOT, body={"kind": kind, **request}, read=Job.model_validate)
    return (yield from ask(call))


def list_jobs(
    *, limit: int = 20, offset: int = 0, kind: str | None = None, state: JobState | None = None
) -> Flow[Page[Job]]:
    """A page of your jobs, newest first.

    Args:
        limit: 1 to 100.
        offset: how many to pass over.
        kind: only those.
        state: only those.

    Raises:
        ApiError: as of `Client.chat`.
    """
    chosen = {"kind": kind, "state": state}
    query: dict[str, str | int] = {"limit": limit, "offset": offset}
    query |= {name: value for name, value in chosen.items() if value is not None}
    call = Call(method="GET", path=_ROOT, query=query, read=Page[Job].model_validate, is_harmless=True)
    return (yield from ask(call))


def get(job_id: str) -> Flow[Job]:
    """One job.

    Raises:
        ApiError: status 404 where there is none of yours; else as of `Client.chat`.
    """
    return (yield from ask(_job(job_id)))


def cancel(job_id: str) -> Flow[Job]:
    """Stop a job; what it was to make is not made. Errors as of `get`; status 409 where it has ended."""
    return (yield from ask(Call(method="DELETE", path=_at(job_id), read=Job.model_validate)))


def events(job_id: str, *, after: int = 0) -> Streamed[JobEvent]:
    """The events of a job, live, up to its end; goes on by itself after a lost connection, each event once.

    Args:
        job_id: which.
        after: number of the last event that is known already.

    Raises:
        ApiError: as of `get`; also where the connection is lost time and again.
    """
    call = Call(
        method="GET",
        path=f"{_at(job_id)}/events",
        read=JobEvent.model_validate,
        is_harmless=True,
        is_stream=True,
        last_event_id=str(after) if after else None,
    )
    flow = follow(call, _ENDED)
    got: Any = None
    last = after
    while True:
        try:
            step = flow.send(got)
        except StopIteration:
            return
        if not isinstance(step, Item):
            got = yield step
            continue
        got = None
        if step.value.kind == _ENDED:  # Holds the job, for those who want no more.
            return
        event = _event(call, step.value)
        if event.number > last:
            last = event.number
            yield Item(event)


def wait(job_id: str, progress: Progress | None = None) -> Flow[Job]:
    """Follow a job to its end, well or not: look at its `state`.

    Args:
        job_id: which.
        progress: called with every event, unless so many jobs are being watched that the server lets nobody else.

    Raises:
        ApiError: as of `events`.
    """
    try:
        yield from each(events(job_id), progress or (lambda event: None))
    except ApiError as error:
        if error.status != 503:
            raise
        return (yield from poll(_job(job_id), lambda job: job.has_ended, _POLL_S))
    return (yield from get(job_id))


def done(kind: str, request: Mapping[str, Any], progress: Progress | None) -> Flow[Job]:
    """Begin a job and wait for what it comes to.

    Raises:
        ApiError: kind `job_failed` where it came to nothing; else as of `create` and `events`.
    """
    job = yield from create(kind, request)
    job = yield from wait(job.id, progress)
    if job.state != "ready" or job.result is None:
        why = job.error or f"it was {job.state}"
        raise ApiError(f"job {job.id} ({kind}) came to nothing: {why}", status=200, kind="job_failed")
    return job


def autosteer(behaviour: str, *, progress: Progress | None = None, **request: JsonValue) -> Flow[AutosteerOutcome]:
    """Turn a sentence into a recipe with its proof, and wait for it (minutes on a laptop).

    Args:
        behaviour: how the model should behave: "Talk like a pirate."
        progress: called with every event.
        request: more of the job's fields: `name`, `opposite`, `examples`, `features`, `optimiser`, `judge`, `seed`.

    Raises:
        ApiError: as of `done`.
    """
    job = yield from done("autosteer", {"behaviour": behaviour, **request}, progress)
    result = cast("dict[str, JsonValue]", job.result)
    evidence = {name: result.get(name) for name in ("scores", "choice_accuracy", "examples")}
    try:
        return AutosteerOutcome.model_validate({**result, "job_id": job.id, "evidence": evidence, "result": result})
    except ValueError:
        told = f"job {job.id} (autosteer) came to a result of another form"
    raise ApiError(f"{told}; is this a steersman server of the client's version?", status=200, kind="not_understood")


def evaluate(behaviour: str | None = None, *, progress: Progress | None = None, **request: JsonValue) -> Flow[Job]:
    """Compare steering methods on a behaviour, and wait for the tables in the job's `result`.

    Args:
        behaviour: one that ships, by name; None where `examples` are given.
        progress: called with every event.
        request: more of the job's fields: `examples`, `methods`, `prompts`, `strengths`, `tokens`, `judge`, `seed`.

    Raises:
        ApiError: as of `done`.
    """
    named = {} if behaviour is None else {"behaviour": behaviour}
    return (yield from done("evaluate", {**named, **request}, progress))


class JobMethods:
    """`client.jobs`."""

    create = Method(create)
    list = Method(list_jobs)
    get = Method(get)
    cancel = Method(cancel)
    events = StreamMethod(events)
    wait = Method(wait)


def _job(job_id: str) -> Call[Job]:
    return Call(method="GET", path=_at(job_id), read=Job.model_validate, is_harmless=True)


def _at(job_id: str) -> str:
    return f"{_ROOT}/{quote(job_id, safe='')}"


def _event(call: Call[Any], event: ServerEvent) -> JobEvent:
    try:
        return cast("JobEvent", call.read(json.loads(event.data)))
    except ValueError:
        told = f"GET {call.path}: an event is not in the form expected"
    raise ApiError(f"{told}; is this a steersman server of the client's version?", status=200, kind="not_understood")
