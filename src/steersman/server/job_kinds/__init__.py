"""What the server does in the background, one file a kind: a class with a `run`, a line in `KINDS`, and a test."""

from __future__ import annotations

from steersman.server.job_kinds.autosteering import Autosteer
from steersman.server.job_kinds.desk import Desk, Done, Kind, Stopped
from steersman.server.job_kinds.evaluating import Evaluate
from steersman.server.job_kinds.fit_set import FitSet
from steersman.server.job_kinds.fitting import Fit

__all__ = ["KINDS", "Desk", "Done", "Kind", "Stopped"]

KINDS: dict[str, Kind] = {"fit-set": FitSet(), "fit": Fit(), "autosteer": Autosteer(), "evaluate": Evaluate()}
