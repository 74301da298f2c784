"""What the store hands out: frozen records. Knows nothing of SQL or HTTP. All times are UTC."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, get_args

from pydantic import JsonValue

from steersman.facts import fact
from steersman.models.language_model import ModelRef

Scope = Literal["read", "generate", "train", "admin"]
"""`read`: see one's own things and features; `generate`: answers; `train`: jobs, and making or deleting recipes; `admin`: metrics
and everybody's keys. None includes another."""
SCOPES: tuple[Scope, ...] = get_args(Scope)

JobState = Literal["pending", "running", "ready", "failed", "cancelled"]
ENDED: tuple[JobState, ...] = ("ready", "failed", "cancelled")


@fact
class KeyRecord:
    """A key as it is kept: all but the key itself."""

    id: str
    """Public part of the key; also in its first characters, so that a person can tell keys apart."""
    name: str
    owner: str
    """Whose recipes, sets and jobs it reaches; several keys may share an owner."""
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


@fact
class RecipeRecord:
    """A recipe as a list shows it."""

    id: str
    owner: str
    name: str
    """Unique for its owner."""
    description: str
    method: str
    tags: tuple[str, ...]
    created_at: datetime
    evidence: dict[str, JsonValue] | None


@fact
class JobRecord:
    """Work in the background."""

    id: str
    owner: str
    kind: str
    state: JobState
    request: dict[str, JsonValue]
    result: dict[str, JsonValue] | None
    error: str | None
    """Why it failed, in one line."""
    attempts: int
    """How often it was begun."""
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    model: ModelRef | None = None
    """The model that it is for; None: any."""


@fact
class JobEvent:
    """Something that happened in a job."""

    number: int
    """Counted from 1 within the job."""
    at: datetime
    kind: str
    data: dict[str, JsonValue]


@fact
class SetRecord:
    """A set of steering vectors, one a trait, fitted together by a job (the steering API's "steerable model")."""

    id: str
    owner: str
    label: str
    model: str
    method: str
    dimensions: dict[str, JsonValue]
    """As they were given: each trait with its positive and negative examples."""
    created_at: datetime
    job_id: str
    state: JobState
    """Of its job."""
    error: str | None
