"""A job while a worker holds it: how it is stopped, and its events on their way to the store. Knows nothing of the work."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from pydantic import JsonValue

from steersman.errors import Conflict, NotFound, StorageError
from steersman.server.job_kinds.desk import Stopped, as_json
from steersman.store.facts import JobRecord
from steersman.store.store import Store

_log = logging.getLogger(__name__)


class Held:
    """A job that is being worked on here, and its events that the store has not taken yet."""

    def __init__(self, job: JobRecord, worker: str, store: Store, stopping: threading.Event) -> None:
        self.job, self.worker = job, worker
        self.stop = threading.Event()
        self.is_lost = False
        """It is no longer ours: cancelled, deleted, or with somebody else."""
        self._store, self._stopping = store, stopping
        self._unsent: list[tuple[str, dict[str, JsonValue]]] = []

    def tell(self, kind: str, data: Mapping[str, object], /) -> None:
        """As `Tell`. While the database is away, events wait here."""
        self._check()
        self._unsent.append((kind, {str(name): as_json(value) for name, value in data.items()}))
        try:
            self.flush()
        except StorageError as error:
            _log.warning("an event of job %s waits: %s", self.job.id, error)
        self._check()

    def flush(self) -> None:
        """Hand waiting events to the store.

        Raises:
            Stopped: the job has ended without us.
            StorageError: the database is away.
        """
        while self._unsent:
            try:
                self._store.jobs.tell(self.job.id, *self._unsent[0])
            except (Conflict, NotFound) as error:
                self.is_lost = True
                raise Stopped from error
            del self._unsent[0]

    def _check(self) -> None:
        if self.stop.is_set() or self._stopping.is_set():
            raise Stopped
