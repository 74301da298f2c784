"""Work in the background: threads that take jobs from the store, lease by lease, so that none is lost and none is stuck.

A worker takes the jobs that are for its engine's model and holds a lease on the one it works on; one thread renews all leases.
When the process dies, they run out, and the job is begun again (here or by another server on the same database), or failed when
that has happened too often. Knows nothing of what the jobs do, of SQL or of HTTP.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from steersman.engine.engine import Engine
from steersman.errors import Conflict, NotFound, SteersmanError, StorageError
from steersman.models.asking import Ask
from steersman.models.language_model import ModelRef
from steersman.server.housekeeping import Housekeeping
from steersman.server.job_kinds.desk import Desk, Done, Kind, Stopped
from steersman.server.job_kinds.held import Held
from steersman.server.steering import public_name
from steersman.server.words import told
from steersman.store.facts import ENDED, JobRecord
from steersman.store.store import Store

__all__ = ["LEASE_S", "MOST_ATTEMPTS", "Desk", "Done", "JobRunner", "Kind", "Stopped"]

LEASE_S = 30.0
"""How long a job stays with a worker that is not heard of."""
MOST_ATTEMPTS = 3
"""A job that stopped so often while running is failed: it may be what brings the server down."""
_POLL_S = 0.5
_STORAGE_PAUSE_S = 1.0
_STORAGE_PATIENCE_S = 300.0
_log = logging.getLogger(__name__)


class JobRunner:
    """Runs the store's jobs. Safe to share between threads."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        kinds: Mapping[str, Kind],
        *,
        workers: int = 1,
        lease_s: float = LEASE_S,
        ask: Ask | None = None,
        keep_jobs_s: float = 0.0,
    ) -> None:
        """Nothing runs before `start`.

        Args:
            store: where jobs come from.
            engine: what jobs work with; what people ask for goes ahead of their requests.
            kinds: what does the work, by the jobs' `kind`.
            workers: jobs that run at once; 0 leaves them to other servers.
            lease_s: how long a job stays with a worker that is not heard of.
            ask: a language model behind an endpoint.
            keep_jobs_s: how long jobs are kept that have ended; 0 is for ever.
        """
        self._store, self._kinds, self._ask = store, kinds, ask
        self._engine, self._lease_s = engine, lease_s
        self._model = dataclasses.replace(engine.model.ref, id=public_name(engine.model.ref))
        self._stopping, self._news, self._over = threading.Event(), threading.Event(), threading.Event()
        self._chores = Housekeeping(store, keep_jobs_s)
        self._lock = threading.Lock()
        self._held: dict[str, Held] = {}
        """By worker: a job whose lease ran out may be with two of them for a moment."""
        name = f"{socket.gethostname()[:40]}:{os.getpid()}:{secrets.token_hex(4)}"
        self._workers = [
            threading.Thread(target=self._work, args=(f"{name}:{n}",), name=f"job-worker-{n}", daemon=True)
            for n in range(workers)
        ]
        self._beats = threading.Thread(target=self._beat, name="job-beat", daemon=True)

    @property
    def model(self) -> ModelRef:
        """Whose jobs it takes, under the name that callers know it by: a model's own may be a place on the disk."""
        return self._model

    @property
    def ask(self) -> Ask | None:
        """The language model that jobs may ask."""
        return self._ask

    @property
    def is_stopping(self) -> bool:
        """Whether no further job is begun."""
        return self._stopping.is_set()

    @property
    def is_computing(self) -> bool:
        """Whether a worker still runs: after `stop`, one whose job has not looked up yet."""
        return any(thread.is_alive() for thread in self._workers)

    def start(self) -> None:
        """Take up what an earlier process left behind, and begin.

        Raises:
            StorageError: the database does not answer.
        """
        self._store.jobs.recover(MOST_ATTEMPTS)
        self._chores.tidy()
        for thread in (*self._workers, self._beats):
            thread.start()

    def wake(self) -> None:
        """There is a new job: look at once."""
        self._news.set()

    def drop(self, job_id: str) -> None:
        """A job was cancelled or deleted: if it runs here, stop it at its next word, not only at the next beat."""
        with self._lock:
            there = [held for held in self._held.values() if held.job.id == job_id]
        for held in there:
            held.is_lost = True
            held.stop.set()

    def stop(self, grace_s: float) -> None:
        """Ask running jobs to stop and give them back to the store, where the next process finds them at once.

        Args:
            grace_s: how long to wait for them; those that are still at it then are given back all the same. Stopped again, it
                does not wait again.
        """
        if self._over.is_set():
            return
        self._stopping.set()
        self._news.set()
        with self._lock:
            for held in self._held.values():
                held.stop.set()
        until = time.monotonic() + grace_s
        for thread in self._workers:
            if thread.is_alive():
                thread.join(max(0.0, until - time.monotonic()))
        with self._lock:
            left = list(self._held.values())
        for held in left:
            held.is_lost = True
            self._give_back(held)
        self._over.set()
        if self._beats.is_alive():
            self._beats.join()

    # --- workers

    def _work(self, worker: str) -> None:
        while not self._stopping.is_set():
            self._news.clear()
            job = self._claimed(worker)
            if job is None:
                self._news.wait(_POLL_S)
            else:
                self._run(job, worker)

    def _claimed(self, worker: str) -> JobRecord | None:
        try:
            return self._store.jobs.claim(worker, self._lease_s, model=self._model)
        except StorageError as error:
            _log.warning("no job can be looked for: %s", error)
        except Exception:  # noqa: BLE001 - a worker that dies leaves all jobs waiting for ever.
            _log.exception("looking for a job failed")
        self._stopping.wait(_STORAGE_PAUSE_S)
        return None

    def _run(self, job: JobRecord, worker: str) -> None:
        held = Held(job, worker, self._store, self._stopping)
        with self._lock:
            self._held[worker] = held
        _log.info("job %s (%s) begins, attempt %d", job.id, job.kind, job.attempts)
        try:
            try:
                self._worked_on(held)
            finally:
                with self._lock:
                    del self._held[worker]
            self._clear(job)
        except Exception:  # noqa: BLE001 - the store failed in a way that it does not own up to; the lease runs out.
            _log.exception("job %s could not be ended", job.id)

    def _worked_on(self, held: Held) -> None:
        job, jobs = held.job, self._store.jobs
        try:
            kind = self._kinds.get(job.kind)
            if kind is None:
                raise NotFound(f"this server knows no jobs of kind {job.kind!r} (there are: {', '.join(self._kinds)})")
            done = kind.run(job, Desk(self._engine, self._folder(job), held.tell, self._ask))
        except Stopped:
            if not held.is_lost:
                self._give_back(held)
        except SteersmanError as error:
            _log.info("job %s failed: %s", job.id, error)
            self._end(held, lambda: jobs.fail(job.id, held.worker, told(error)))
        except Exception:  # noqa: BLE001 - the job's reason tells no more than that
            _log.exception("job %s met an internal error", job.id)
            self._end(held, lambda: jobs.fail(job.id, held.worker, f"internal error (the log has it under {job.id})"))
        else:
            self._finish(held, done)

    def _finish(self, held: Held, done: Done) -> None:
        job, jobs = held.job, self._store.jobs

        def finish() -> object:
            held.flush()
            return jobs.finish(job.id, held.worker, done.result, recipes=done.recipes, vectors=done.vectors)

        try:
            self._end(held, finish)
        except SteersmanError as error:  # What was made cannot be kept, whoever asks: a name that was taken meanwhile.
            _log.info("job %s cannot be kept: %s", job.id, error)
            self._end(held, lambda: jobs.fail(job.id, held.worker, told(error)))
        else:
            _log.info("job %s is done", job.id)

    def _end(self, held: Held, act: Callable[[], object]) -> None:
        """Say how a job ended, patiently: what took minutes is not thrown away because the database is being restarted."""
        until = time.monotonic() + _STORAGE_PATIENCE_S
        while not held.is_lost:
            try:
                act()
            except StorageError as error:
                _log.warning("job %s cannot be ended yet: %s", held.job.id, error)
                if time.monotonic() > until or self._over.wait(_STORAGE_PAUSE_S):
                    raise
            except (Conflict, NotFound):
                # Lost while it was finished, unless the store says that it is ours still.
                if self._is_ours(held):
                    raise
                held.is_lost = True
            except Stopped:
                return
            else:
                return

    def _is_ours(self, held: Held) -> bool:
        return self._store.jobs.beat(held.job.id, held.worker, self._lease_s)

    def _give_back(self, held: Held) -> None:
        try:
            self._store.jobs.release(held.job.id, held.worker)
        except (Conflict, NotFound):
            return  # Cancelled, or with somebody else.
        except StorageError as error:
            _log.warning("job %s stays leased for a while: %s", held.job.id, error)

    def _folder(self, job: JobRecord) -> Path:
        return self._store.folder / "jobs" / job.id

    def _clear(self, job: JobRecord) -> None:
        """Remove the folder of a job that has ended; one that goes on needs it."""
        try:
            has_ended = self._store.jobs.get(job.owner, job.id).state in ENDED
        except NotFound:
            has_ended = True
        except StorageError:
            return
        if has_ended:
            shutil.rmtree(self._folder(job), ignore_errors=True)

    # --- leases

    def _beat(self) -> None:
        while not self._over.wait(self._lease_s / 3):
            with self._lock:
                there = list(self._held.values())
            try:
                for held in there:
                    if not held.is_lost and not self._store.jobs.beat(held.job.id, held.worker, self._lease_s):
                        held.is_lost = True
                        held.stop.set()
                if self._store.jobs.recover(MOST_ATTEMPTS):
                    self.wake()
                self._chores.when_due({held.job.id for held in there})
            except SteersmanError as error:
                _log.warning("leases could not be renewed: %s", error)
            except Exception:  # noqa: BLE001 - without this thread every lease runs out.
                _log.exception("renewing leases failed")
