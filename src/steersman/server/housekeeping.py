"""What a running server removes now and then: old jobs, what ended jobs left on the disk, tensors that nothing refers to.

Knows nothing of threads or HTTP.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Collection

from steersman.store.store import Store

_EVERY_S = 3600.0
_log = logging.getLogger(__name__)


class Housekeeping:
    """The chores of one server; several servers on one database do no harm to each other."""

    def __init__(self, store: Store, keep_jobs_s: float) -> None:
        """Remove jobs from `store` that ended so long ago; 0 keeps them for ever."""
        self._store, self._keep_jobs_s = store, keep_jobs_s
        self._at = time.monotonic() + _EVERY_S

    def tidy(self, in_use: Collection[str] = ()) -> None:
        """Remove folders of jobs that have ended, and then jobs that ended long ago; what these made stays.

        Args:
            in_use: jobs whose worker still writes.

        Raises:
            StorageError: the database does not answer.
        """
        # A folder here may be of a job in another database; those that no job here has are left alone.
        folders = {folder.name: folder for folder in (self._store.folder / "jobs").glob("job_*")}
        for job_id in self._store.jobs.ended(folders) - set(in_use):
            shutil.rmtree(folders[job_id], ignore_errors=True)
        removed = self._store.jobs.prune(self._keep_jobs_s) if self._keep_jobs_s else 0
        if removed:
            _log.info("%d jobs that ended long ago are removed", removed)
            self._at = time.monotonic()  # There may be more of them.

    def when_due(self, in_use: Collection[str]) -> None:
        """Once an hour: tidy up, and sweep tensors of what was deleted away; they must not fill the disk until the next start.

        Raises:
            StorageError: the disk or the database refused.
        """
        if time.monotonic() < self._at:
            return
        self._at = time.monotonic() + _EVERY_S
        self._store.sweep()
        self.tidy(in_use)
