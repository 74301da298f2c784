"""Sets of vectors: made together with their job, ready when it is, gone with their vectors."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.store.rooms import Clock, Room, small_recipe

from steersman.errors import Conflict, DataError, NotFound
from steersman.store.facts import SetRecord
from steersman.store.sets import KIND
from steersman.store.store import Store

_DIMENSIONS: dict[str, Any] = {
    "happy \0 日本": {"positive_examples": ["yes \u0000"], "negative_examples": []},
    "'; DROP": {},
}


def _make(store: Store, label: str = "my-model", owner: str = "ann", **changed: Any) -> SetRecord:
    given: dict[str, Any] = {
        "model": "default",
        "method": "lat",
        "dimensions": _DIMENSIONS,
        "prompts": ["One.", "Two."],
        "request": {"layers": [1, 2]},
    }
    return store.sets.create(owner, label, **{**given, **changed})


def test_a_set_comes_with_its_job(store: Store, clock: Clock) -> None:
    made = _make(store)
    assert re.fullmatch("my-model-[0-9a-f]{8}", made.id)
    assert (made.state, made.error, made.created_at) == ("pending", None, clock.now)
    assert made.dimensions == _DIMENSIONS
    job = store.jobs.get("ann", made.job_id)
    assert (job.kind, job.request) == (KIND, {"layers": [1, 2], "set": made.id})
    assert store.sets.get("ann", made.id) == made


def test_vectors_are_there_when_the_job_is_ready(room: Room, store: Store) -> None:
    made = _make(store)
    with pytest.raises(Conflict, match="pending"):
        store.sets.vectors("ann", made.id)
    job = store.jobs.claim("w", 30)
    assert job is not None
    assert store.sets.get("ann", made.id).state == "running"
    vectors = {trait: small_recipe(f"{trait}!", 1.0 + n) for n, trait in enumerate(_DIMENSIONS)}
    store.jobs.finish(job.id, "w", {"layers": 2}, vectors=vectors)
    assert store.sets.get("ann", made.id).state == "ready"
    assert store.sweep() == 0
    with room.open() as again:
        found = again.sets.vectors("ann", made.id)
    assert found == vectors
    assert [*found] == [*_DIMENSIONS]


def test_a_failed_set_says_why(store: Store) -> None:
    made = _make(store)
    job = store.jobs.claim("w", 30)
    assert job is not None
    store.jobs.fail(job.id, "w", "too few examples")
    found = store.sets.get("ann", made.id)
    assert (found.state, found.error) == ("failed", "too few examples")
    with pytest.raises(Conflict, match="too few examples"):
        store.sets.vectors("ann", made.id)


def test_a_deleted_set_takes_its_vectors_along_and_stops_its_job(room: Room, store: Store) -> None:
    ready, waiting, running = (_make(store, label) for label in ("ready", "waiting", "running"))
    jobs = []
    for _ in range(2):
        jobs.append(store.jobs.claim("w", 30))
        assert jobs[-1] is not None
    first, _second = jobs
    assert first is not None
    store.jobs.finish(first.id, "w", {}, vectors={"a": small_recipe()})
    for made in (ready, waiting, running):
        store.sets.delete("ann", made.id)
        for act in (store.sets.get, store.sets.delete, store.sets.vectors):
            with pytest.raises(NotFound):
                act("ann", made.id)
    states = [store.jobs.get("ann", made.job_id).state for made in (ready, waiting, running)]
    assert states == ["ready", "cancelled", "cancelled"]
    assert store.sets.list("ann") == ([], 0)
    assert store.sweep() == 1
    assert room.tensor_files() == []


def test_somebody_elses_set_is_not_there(store: Store) -> None:
    made = _make(store)
    for act in (store.sets.get, store.sets.delete, store.sets.vectors):
        for owner, set_id in (
            ("bob", made.id),
            ("ann", "\0"),
            ("ann", "\ud800"),
            ("a\0", made.id),
            ("ann", "' OR 1=1 --"),
        ):
            with pytest.raises(NotFound):
                act(owner, set_id)
    assert store.sets.list("bob") == ([], 0)
    assert store.sets.list("\0") == ([], 0)
    assert store.sets.get("ann", made.id).state == "pending"


def test_set_lists_are_the_newest_first_in_pages(store: Store) -> None:
    made = [_make(store, f"s{n}") for n in range(4)]
    _make(store, owner="bob")
    assert store.sets.list("ann") == (made[::-1], 4)
    assert store.sets.list("ann", 2, 1) == (made[::-1][1:3], 4)
    assert store.sets.list("ann", 2, 10**40) == ([], 4)
    with pytest.raises(DataError):
        store.sets.list("ann", -1, 0)


@pytest.mark.parametrize("label", ["a b", "'; DROP TABLE sets", "日本", "../..", "x" * 100, "a:b"])
def test_any_printable_label_gives_an_id_for_addresses(store: Store, label: str) -> None:
    made = _make(store, label)
    assert made.label == label
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", made.id)
    assert store.sets.get("ann", made.id) == made


@pytest.mark.parametrize(
    "wrong",
    [
        {"label": ""},
        {"label": " "},
        {"label": "a\0"},
        {"label": "\ud800"},
        {"label": "x" * 101},
        {"label": "a\nb"},
        {"owner": ""},
        {"model": "\0"},
        {"method": ""},
        {"dimensions": {"a": float("nan")}},
        {"dimensions": {"\ud800": 1}},
        {"prompts": ["\ud800"]},
        {"request": {"x": float("inf")}},
    ],
)
def test_a_set_that_cannot_be_kept_is_refused_with_its_job(store: Store, wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        _make(store, **wrong)
    assert store.sets.list("ann") == ([], 0)
    assert store.jobs.list("ann") == ([], 0)
