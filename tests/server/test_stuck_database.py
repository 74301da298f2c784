"""A database that is held up by somebody else: callers are told to come back, in time, and the server goes on afterwards."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from tests.postgres import Cluster, postgres
from tests.server.rig import app_over, asking, error_of

from steersman.models.language_model import LanguageModel
from steersman.store import connections
from steersman.store.store import Store

__all__ = ["postgres"]


def test_callers_are_told_to_come_back(
    postgres: Cluster, tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "BUSY_S", 0.3)
    url = postgres.new_database()
    body = {"kind": "fit", "name": "ahoy", "contrast_set": "pirate"}
    with Store.open(url, tmp_path) as store, asking(app_over(tiny, store)) as client:
        with psycopg.connect(url) as other:
            other.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
            error_of(client.get("/v1/jobs"), 503)
            error_of(client.post("/v1/jobs", json=body), 503)
            error_of(client.get("/v1/jobs/job_1/events"), 503)
            assert client.get("/v1/recipes").status_code == 200
        assert client.post("/v1/jobs", json=body).status_code == 202
        assert client.get("/v1/jobs").json()["total"] == 1
