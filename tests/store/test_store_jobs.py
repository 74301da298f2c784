"""Jobs: each is claimed once, ends once, is never stuck, and keeps all of what it made or nothing."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select
from tests.store.rooms import Clock, Room, at_once, small_recipe

from steersman.errors import Busy, Conflict, DataError, NotFound, SteersmanError, StorageError
from steersman.models.language_model import ModelRef
from steersman.store import job_rows
from steersman.store import jobs as store_jobs
from steersman.store.facts import ENDED, JobRecord
from steersman.store.store import Store
from steersman.store.tables import EventRow


def _running(store: Store, worker: str = "w", owner: str = "ann", kind: str = "fit") -> JobRecord:
    made = store.jobs.create(owner, kind, {})
    claimed = store.jobs.claim(worker, 30)
    assert claimed is not None
    assert claimed.id == made.id
    return claimed


# --- claims


def test_a_job_waits_until_it_is_claimed_and_the_oldest_is_first(store: Store, clock: Clock) -> None:
    first = store.jobs.create("ann", "fit", {"layer": 3, "text": "日本 \u0000 \"'; DROP TABLE jobs"})
    clock.move(-3600)  # A clock that was put back does not change the order.
    second = store.jobs.create("bob", "fit", {})
    assert (first.state, first.attempts, first.started_at) == ("pending", 0, None)
    claimed = store.jobs.claim("w", 30)
    assert claimed is not None
    assert (claimed.id, claimed.state, claimed.attempts) == (first.id, "running", 1)
    assert claimed.request == first.request
    following = store.jobs.claim("w", 30)
    assert following is not None
    assert following.id == second.id
    assert store.jobs.claim("w", 30) is None


def test_many_workers_never_get_the_same_job(room: Room, store: Store) -> None:
    made = {store.jobs.create("ann", "fit", {"n": n}).id for n in range(40)}
    with room.open() as other:  # As another process has it open.
        found: list[list[str]] = at_once(12, lambda n: _claim_all((store, other)[n % 2], f"worker {n}"))
    counted = Counter(job for jobs in found for job in jobs)
    assert set(counted) == made
    assert set(counted.values()) == {1}


def _claim_all(store: Store, worker: str) -> list[str]:
    claimed = []
    while (job := store.jobs.claim(worker, 30)) is not None:
        claimed.append(job.id)
    return claimed


@pytest.mark.parametrize("lease_s", [0.0, -1.0, float("nan"), float("inf"), 1e300])
def test_a_lease_has_an_end(store: Store, lease_s: float) -> None:
    with pytest.raises(DataError, match="lease"):
        store.jobs.claim("w", lease_s)


# --- models


_ONE = ModelRef(id="one", config_hash="c", weights_hash="w")
_OTHERS = (ModelRef(id="one", config_hash="c", weights_hash="v"), ModelRef(id="one", config_hash="d", weights_hash="w"))


def test_a_job_is_taken_only_by_workers_with_its_model(store: Store) -> None:
    made = store.jobs.create("ann", "fit", {}, model=_ONE)
    in_set = store.sets.create(
        "ann", "s", model="one", method="lat", dimensions={}, prompts=None, request={}, ref=_OTHERS[0]
    )
    for_any = store.jobs.create("ann", "fit", {})
    assert made.model == _ONE
    assert [job.model for job in store.jobs.list("ann")[0]] == [None, _OTHERS[0], _ONE]
    assert store.jobs.claim("w", 30, model=_OTHERS[1]) == store.jobs.get("ann", for_any.id)
    assert store.jobs.claim("w", 30, model=_OTHERS[1]) is None
    assert store.jobs.claim("w", 30) is None
    renamed = ModelRef(id="elsewhere", config_hash="c", weights_hash="w")  # The same model in another place.
    claimed = store.jobs.claim("v", 30, model=renamed)
    assert claimed is not None
    assert (claimed.id, claimed.model) == (made.id, _ONE)
    of_set = store.jobs.claim("u", 30, model=_OTHERS[0])
    assert of_set is not None
    assert of_set.id == in_set.job_id


def test_a_job_that_is_given_back_waits_for_its_model_again(store: Store, clock: Clock) -> None:
    made = store.jobs.create("ann", "fit", {}, model=_ONE)
    assert store.jobs.claim("w", 30, model=_ONE) is not None
    assert store.jobs.release(made.id, "w")
    assert store.jobs.claim("w", 30, model=_OTHERS[0]) is None
    assert store.jobs.claim("w", 30, model=_ONE) is not None
    clock.move(31)
    assert store.jobs.recover() == 1  # Whoever notices.
    assert store.jobs.claim("v", 30, model=_OTHERS[1]) is None
    assert store.jobs.claim("v", 30, model=_ONE) is not None


def test_many_workers_of_two_models_share_the_jobs_out(room: Room, store: Store) -> None:
    refs = (_ONE, _OTHERS[0])
    made = [{store.jobs.create("ann", "fit", {}, model=ref).id for _ in range(10)} for ref in refs]
    with room.open() as other:

        def claim_all(n: int) -> list[str]:
            claimed, opened = [], (store, other)[n // 2 % 2]
            while (job := opened.jobs.claim(f"worker {n}", 30, model=refs[n % 2])) is not None:
                claimed.append(job.id)
            return claimed

        found = at_once(8, claim_all)
    for which in range(2):
        taken = [job for jobs in found[which::2] for job in jobs]
        assert len(taken) == len(set(taken))
        assert set(taken) == made[which]


# --- leases


def test_jobs_of_all_owners_are_counted_by_state(store: Store) -> None:
    assert store.jobs.counts() == {}
    for owner in ("ada", "bo", "bo"):
        store.jobs.create(owner, "fit", {})
    assert store.jobs.claim("w", 10.0) is not None
    assert store.jobs.counts() == {"pending": 2, "running": 1}


def test_nobody_fills_the_queue_for_all_others(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_rows, "MOST_OPEN_JOBS", 2)
    first = store.jobs.create("ada", "fit", {})
    store.jobs.create("ada", "fit", {})
    with pytest.raises(Busy, match="2 of your jobs") as caught:
        store.jobs.create("ada", "fit", {})
    assert caught.value.is_callers
    with pytest.raises(Busy):
        store.sets.create("ada", "s", model="m", method="lat", dimensions={}, prompts=None, request={})
    store.jobs.create("bo", "fit", {})
    store.jobs.cancel("ada", first.id)
    store.jobs.create("ada", "fit", {})


def test_a_beat_keeps_the_job_and_silence_loses_it(store: Store, clock: Clock) -> None:
    job = _running(store)
    for _ in range(4):
        clock.move(20)
        assert store.jobs.beat(job.id, "w", 30)
        assert store.jobs.recover() == 0
    clock.move(31)
    assert store.jobs.recover() == 1
    assert store.jobs.get("ann", job.id).state == "pending"
    assert not store.jobs.beat(job.id, "w", 30)
    again = store.jobs.claim("v", 30)
    assert again is not None
    assert (again.id, again.attempts) == (job.id, 2)
    assert not store.jobs.beat(job.id, "w", 30)
    assert not store.jobs.fail(job.id, "w", "too late")
    assert not store.jobs.release(job.id, "w")
    with pytest.raises(Conflict, match="lease"):
        store.jobs.finish(job.id, "w", {})
    assert store.jobs.get("ann", job.id).state == "running"


def test_what_stops_again_and_again_fails_with_the_reason(store: Store, clock: Clock) -> None:
    made = store.jobs.create("ann", "fit", {})
    for _ in range(3):
        assert store.jobs.claim("w", 30) is not None
        clock.move(31)
        assert store.jobs.recover(max_attempts=3) == 1
    job = store.jobs.get("ann", made.id)
    assert (job.state, job.error) == ("failed", "stopped 3 times while running")
    assert job.ended_at == clock.now
    assert store.jobs.claim("w", 30) is None


def test_a_released_job_counts_as_not_begun(store: Store) -> None:
    job = _running(store)
    for _ in range(5):
        assert store.jobs.release(job.id, "w")
        again = store.jobs.claim("w", 30)
        assert again is not None
        assert (again.id, again.attempts) == (job.id, 1)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(["claim", "beat", "late", "recover", "release", "fail", "finish", "cancel"]), max_size=15)
)
def test_whatever_happens_no_job_is_stuck(store: Store, clock: Clock, steps: list[str]) -> None:
    made = store.jobs.create("ann", "fit", {})
    acts: dict[str, Any] = {
        "claim": lambda: store.jobs.claim("w", 30),
        "beat": lambda: store.jobs.beat(made.id, "w", 30),
        "late": lambda: clock.move(31),
        "recover": store.jobs.recover,
        "release": lambda: store.jobs.release(made.id, "w"),
        "fail": lambda: store.jobs.fail(made.id, "w", "why"),
        "finish": lambda: store.jobs.finish(made.id, "w", {}),
        "cancel": lambda: store.jobs.cancel("ann", made.id),
    }
    ended = None
    for step in steps:
        try:
            acts[step]()
        except Conflict:
            assert step in {"finish", "cancel"}
        job = store.jobs.get("ann", made.id)
        assert job.attempts >= 0
        assert (job.ended_at is not None) == (job.state in ENDED)
        assert (job.error is not None) == (job.state == "failed")
        assert ended is None or job == ended  # What has ended stays as it is.
        ended = job if job.state in ENDED else None
    for _ in range(4):  # Left alone by all workers, it comes to an end.
        clock.move(31)
        store.jobs.recover()
        store.jobs.claim("x", 30)
    clock.move(31)
    store.jobs.recover()
    assert store.jobs.get("ann", made.id).state in ENDED


# --- ends


def test_finish_keeps_recipes_under_free_names_for_the_jobs_owner(store: Store) -> None:
    store.recipes.add("ann", small_recipe("cheerful"))
    job = _running(store)
    done = store.jobs.finish(
        job.id,
        "w",
        {"score": 0.5},
        recipes={
            "cheerful": small_recipe("x", 2.0),
            "très gai; DROP": small_recipe("y", 3.0),
            "日本": small_recipe("z"),
        },
    )
    assert done.state == "ready"
    assert done.result is not None
    ids: Any = done.result["recipes"]
    assert done.result["score"] == 0.5
    assert {wished: store.recipes.get("ann", found).name for wished, found in ids.items()} == {
        "cheerful": "cheerful-2",
        "très gai; DROP": "tr-s-gai-DROP",
        "日本": "recipe",
    }
    loaded = store.recipes.load("ann", "cheerful-2")
    assert loaded.edits == small_recipe("x", 2.0).edits
    assert loaded.name == "cheerful-2"
    assert store.recipes.list("bob") == ([], 0)
    with pytest.raises(Conflict):
        store.jobs.finish(job.id, "w", {})


def test_jobs_that_finish_at_once_share_the_names_out(store: Store) -> None:
    jobs = [_running(store, f"w{n}") for n in range(8)]
    at_once(8, lambda n: store.jobs.finish(jobs[n].id, f"w{n}", {}, recipes={"kind": small_recipe("kind", 1.0 + n)}))
    records, total = store.recipes.list("ann")
    assert total == 8
    assert {record.name for record in records} == {"kind", *(f"kind-{n}" for n in range(2, 9))}


def test_a_crash_before_the_commit_keeps_nothing(room: Room, store: Store) -> None:
    job = _running(store)
    recipes = {"a": small_recipe("a", 1.0), "b": small_recipe("b", 2.0)}
    # The tensors are written and the rows of both recipes are sent when the last part fails.
    with pytest.raises(DataError, match="no set"):
        store.jobs.finish(job.id, "w", {}, recipes=recipes, vectors={"kind": small_recipe("c", 3.0)})
    assert len(room.tensor_files()) == 3
    assert store.recipes.list("ann") == ([], 0)
    assert store.jobs.get("ann", job.id).state == "running"
    assert store.sweep() == 3
    assert room.tensor_files() == []
    # Nothing was promised, so the same work can be finished again.
    assert store.jobs.finish(job.id, "w", {}, recipes=recipes).state == "ready"
    assert store.recipes.list("ann")[1] == 2
    assert store.sweep() == 0
    assert store.recipes.load("ann", "b").edits == recipes["b"].edits


def test_a_lost_lease_keeps_nothing(room: Room, store: Store) -> None:
    job = _running(store)
    store.jobs.cancel("ann", job.id)
    with pytest.raises(Conflict, match="cancelled"):
        store.jobs.finish(job.id, "w", {}, recipes={"a": small_recipe("a")})
    assert store.recipes.list("ann") == ([], 0)
    assert store.sweep() == 1
    assert store.jobs.get("ann", job.id).state == "cancelled"


def test_a_refusing_disk_keeps_nothing(room: Room, store: Store) -> None:
    job = _running(store)
    (room.folder / "tensors").write_bytes(b"a file where a folder should be")
    with pytest.raises(StorageError, match="file, not a folder"):
        store.jobs.finish(job.id, "w", {}, recipes={"a": small_recipe("a")})
    assert store.recipes.list("ann") == ([], 0)
    assert store.jobs.get("ann", job.id).state == "running"
    (room.folder / "tensors").unlink()
    assert store.jobs.finish(job.id, "w", {}, recipes={"a": small_recipe("a")}).state == "ready"


@pytest.mark.parametrize("result", [{"x": float("nan")}, {"x": "\ud800"}, {"x": {1, 2}}, {"x": {1: 2}}, {"x": b"a"}])
def test_a_result_that_is_no_json_is_refused_and_the_job_runs_on(
    room: Room, store: Store, result: dict[str, Any]
) -> None:
    job = _running(store)
    with pytest.raises(DataError, match="result"):
        store.jobs.finish(job.id, "w", result, recipes={"a": small_recipe("a")})
    assert room.tensor_files() == []
    assert store.jobs.fail(job.id, "w", "a\nresult\x00 of \ud800 " + "x" * 9000)
    said = store.jobs.get("ann", job.id).error
    assert said is not None
    assert said.startswith("a result")
    assert len(said) <= 2000
    assert said.isprintable()


def test_what_has_ended_is_not_cancelled(store: Store) -> None:
    waiting = store.jobs.create("ann", "fit", {})
    assert store.jobs.cancel("ann", waiting.id).state == "cancelled"
    assert store.jobs.claim("w", 30) is None
    with pytest.raises(Conflict, match="ended"):
        store.jobs.cancel("ann", waiting.id)
    job = _running(store)
    assert store.jobs.cancel("ann", job.id).state == "cancelled"
    assert not store.jobs.beat(job.id, "w", 30)


def test_cancel_and_finish_at_once_have_one_winner(store: Store) -> None:
    for n in range(6):
        job = _running(store)
        gate = threading.Barrier(2)

        def act(which: int, job: JobRecord = job, gate: threading.Barrier = gate, n: int = n) -> bool:
            gate.wait()
            try:
                if which:
                    store.jobs.cancel("ann", job.id)
                else:
                    store.jobs.finish(job.id, "w", {}, recipes={f"r{n}": small_recipe(f"r{n}")})
            except Conflict:
                return False
            return True

        finished, cancelled = at_once(2, act)
        assert finished != cancelled
        assert store.jobs.get("ann", job.id).state == ("ready" if finished else "cancelled")
        assert any(record.name == f"r{n}" for record in store.recipes.list("ann", limit=1000)[0]) == finished


# --- events


def test_events_are_counted_without_gaps_by_any_number_of_tellers(store: Store) -> None:
    job = store.jobs.create("ann", "fit", {})
    at_once(6, lambda n: [store.jobs.tell(job.id, "log", {"from": n, "i": i}) for i in range(5)])
    events = store.jobs.events("ann", job.id)
    assert [event.number for event in events] == list(range(1, 31))
    for n in range(6):  # Each teller's own are in order.
        assert [event.data["i"] for event in events if event.data["from"] == n] == list(range(5))
    assert store.jobs.events("ann", job.id, after=28) == events[28:]
    assert store.jobs.events("ann", job.id, after=3, limit=2) == events[3:5]
    assert store.jobs.events("ann", job.id, after=10**30) == []
    with pytest.raises(NotFound):
        store.jobs.tell("job_0", "log", {})
    with pytest.raises(DataError):
        store.jobs.tell(job.id, "log", {"x": float("inf")})


# --- removal


def test_what_ended_long_ago_is_removed_with_its_events_and_nothing_else(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_jobs, "_MOST_AT_ONCE", 2)
    ready, failed, cancelled, running = (_running(store, f"w{n}") for n in range(4))
    store.jobs.tell(ready.id, "step", {})
    store.jobs.finish(ready.id, "w0", {}, recipes={"a": small_recipe("a")})
    store.jobs.fail(failed.id, "w1", "why")
    store.jobs.cancel("ann", cancelled.id)
    waiting = store.jobs.create("bob", "fit", {})
    clock.move(100)
    store.jobs.cancel("bob", waiting.id)
    later = _running(store, "w5")
    store.jobs.finish(later.id, "w5", {})
    assert store.jobs.prune(101) == 0
    assert store.jobs.ended([job.id for job in (ready, failed, cancelled, running, later)] + ["job_0", "\0"]) == {
        ready.id, failed.id, cancelled.id, later.id
    }  # fmt: skip
    assert [store.jobs.prune(50) for _ in range(3)] == [2, 1, 0]
    assert [job.id for job in store.jobs.list("ann")[0]] == [later.id, running.id]
    assert store.jobs.list("bob")[1] == 1
    with store._database.reading() as session:
        assert session.scalar(select(func.count()).select_from(EventRow)) == 0
    assert store.recipes.load("ann", "a").edits == small_recipe("a").edits
    for act in (store.jobs.get, store.jobs.standing, store.jobs.events):
        with pytest.raises(NotFound):
            act("ann", ready.id)


def test_the_job_of_a_set_stays_for_as_long_as_the_set(store: Store, clock: Clock) -> None:
    made = store.sets.create("ann", "s", model="m", method="lat", dimensions={}, prompts=None, request={})
    assert store.jobs.claim("w", 30) is not None
    store.jobs.finish(made.job_id, "w", {}, vectors={"a": small_recipe("a")})
    clock.move(100)
    assert store.jobs.prune(50) == 0
    assert [*store.sets.vectors("ann", made.id)] == ["a"]
    store.sets.delete("ann", made.id)
    assert store.jobs.prune(50) == 1


def test_servers_that_remove_at_once_do_not_disturb_each_other(room: Room, store: Store, clock: Clock) -> None:
    for _ in range(20):
        job = _running(store)
        store.jobs.finish(job.id, "w", {})
    clock.move(100)
    with Store.open(room.url, room.folder, clock=clock) as other:
        removed = at_once(6, lambda n: (store, other)[n % 2].jobs.prune(50))
    assert sum(removed) == 20
    assert store.jobs.list("ann") == ([], 0)


# --- lists and owners


def test_lists_are_the_newest_first_in_pages(store: Store) -> None:
    made = [store.jobs.create("ann", "fit" if n % 2 else "evaluate", {}).id for n in range(5)]
    store.jobs.create("bob", "fit", {})
    claimed = store.jobs.claim("w", 30)
    assert claimed is not None
    found, total = store.jobs.list("ann", limit=2, offset=1)
    assert ([job.id for job in found], total) == (made[::-1][1:3], 5)
    assert [job.id for job in store.jobs.list("ann", kind="fit")[0]] == [made[3], made[1]]
    assert [job.id for job in store.jobs.list("ann", state="running")[0]] == [claimed.id]
    assert store.jobs.list("ann", kind="x' OR '1'='1") == ([], 0)
    assert store.jobs.list("ann", kind="\0") == ([], 0)
    assert store.jobs.list("ann", offset=10**40) == ([], 5)
    for wrong in ({"limit": -1}, {"offset": -1}, {"limit": 10**30}):
        with pytest.raises(DataError):
            store.jobs.list("ann", **wrong)


@pytest.mark.parametrize("job_id", ["", "job_0", "\0", "\ud800", "' OR 1=1 --", "x" * 100_000])
def test_an_unknown_job_is_not_there(store: Store, job_id: str) -> None:
    store.jobs.create("ann", "fit", {})
    for act in (store.jobs.get, store.jobs.cancel, store.jobs.events):
        with pytest.raises(NotFound) as caught:
            act("ann", job_id)
        assert len(str(caught.value)) < 1000


def test_somebody_elses_job_is_not_there(store: Store) -> None:
    job = store.jobs.create("ann", "fit", {"secret": 1})
    for act in (store.jobs.get, store.jobs.cancel, store.jobs.events):
        with pytest.raises(NotFound):
            act("bob", job.id)
    assert store.jobs.list("bob") == ([], 0)
    assert store.jobs.get("ann", job.id).state == "pending"


@pytest.mark.parametrize(
    ("owner", "kind", "request_body"),
    [
        ("", "fit", {}),
        ("a\0", "fit", {}),
        ("ann", "", {}),
        ("ann", "a\0", {}),
        ("ann", "x" * 101, {}),
        ("ann", "fit", {"x": "\ud83d"}),
        ("ann", "fit", {"\ud83d": 1}),
        ("ann", "fit", {"x": float("nan")}),
        ("ann", "fit", {"x": 10**5000}),
    ],
)
def test_a_job_that_cannot_be_kept_is_refused(
    store: Store, owner: str, kind: str, request_body: dict[str, Any]
) -> None:
    with pytest.raises(DataError):
        store.jobs.create(owner, kind, request_body)
    assert store.jobs.claim("w", 30) is None


def test_a_document_as_deep_as_json_goes_is_refused(store: Store) -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(DataError, match="deep"):
        store.jobs.create("ann", "fit", {"x": deep})


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda items: st.lists(items, max_size=3) | st.dictionaries(st.text(max_size=5), items, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(st.characters(), max_size=5), _VALUES, max_size=4))
def test_a_request_comes_back_equal_or_is_refused(store: Store, request_body: dict[str, Any]) -> None:
    try:
        made = store.jobs.create("ann", "fit", request_body)
    except SteersmanError as error:
        assert isinstance(error, DataError)
        with pytest.raises(UnicodeEncodeError):  # Only half characters.
            "".join(_texts_of(request_body)).encode()
        return
    assert store.jobs.get("ann", made.id).request == request_body


def _texts_of(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for item in items for text in _texts_of(item)]
