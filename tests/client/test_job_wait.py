"""Waiting for a job when the server lets nobody else watch: its end is asked for instead."""

from __future__ import annotations

import json
from typing import Any

import pytest

from steersman.client import jobs
from steersman.client.steps import Again, Flow, Head, Pause, Read, Send
from steersman.errors import ApiError

_JOB = {
    "id": "job_1", "kind": "fit", "request": {}, "result": None, "error": None, "attempts": 1,
    "created_at": "2030-01-01T00:00:00Z", "started_at": None, "ended_at": None,
}  # fmt: skip


def _drive(flow: Flow[Any], refusal: int, states: list[str]) -> tuple[Any, list[str], list[float]]:
    """Carry a flow out: streams are refused, the job stands as written. What it comes to, what was asked, and the pauses."""
    asked, pauses, body = [], [], list[bytes | None]()
    left = iter(states)
    answer: Any = None
    while True:
        try:
            step = flow.send(answer)
        except StopIteration as done:
            return done.value, asked, pauses
        answer = None
        if isinstance(step, Send):
            asked.append(step.call.path)
            is_stream = step.call.path.endswith("/events")
            said = {"error": {"message": "not now"}} if is_stream else {**_JOB, "state": next(left)}
            body = [json.dumps(said).encode(), None]
            answer = Head(refusal if is_stream else 200, {"content-type": "application/json"}, str)
        elif isinstance(step, Read):
            answer = body.pop(0)
        elif isinstance(step, Again):
            answer = step.attempt < 3
        elif isinstance(step, Pause):
            pauses.append(step.seconds)


def test_a_job_that_may_not_be_watched_is_asked_for_until_it_has_ended() -> None:
    job, asked, pauses = _drive(jobs.wait("job_1"), 503, ["pending", "running", "ready"])
    assert job.state == "ready"
    assert asked == ["/v1/jobs/job_1/events"] * 3 + ["/v1/jobs/job_1"] * 3
    assert pauses == [2.0, 2.0]


def test_other_refusals_are_told() -> None:
    with pytest.raises(ApiError, match="not now") as caught:
        _drive(jobs.wait("job_1"), 403, [])
    assert caught.value.status == 403
