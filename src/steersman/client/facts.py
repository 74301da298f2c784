"""What a steersman server answers, as frozen data. Fields that a newer server adds are passed over; missing ones are errors."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

T = TypeVar("T")

JobState = Literal["pending", "running", "ready", "failed", "cancelled"]
ENDED = ("ready", "failed", "cancelled")
SetStatus = Literal["pending", "training", "ready", "failed"]


def _seconds(value: object) -> object:
    """Unix time as a date; pydantic would take large numbers for milliseconds."""
    return datetime.fromtimestamp(value, UTC) if isinstance(value, int) else value


_Time = Annotated[datetime, BeforeValidator(_seconds)]


class Fact(BaseModel):
    """Frozen, and open to fields that are not known yet."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Page(Fact, Generic[T]):
    """Part of a list."""

    data: tuple[T, ...]
    total: int | None = None
    """In all, on every page; None where the server does not count."""


# --- answers


class Usage(Fact):
    """Tokens that were read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


def _as_text(value: object) -> object:
    """A chat's choice in the form of a completion's."""
    if isinstance(value, dict) and isinstance(said := value.get("message") or value.get("delta"), dict):
        return {**value, "text": said.get("content") or ""}
    return value


class _Choice(Fact):
    index: int
    text: str = ""
    finish_reason: str | None = None
    """`stop`, `length`, or what the server says of its guard."""
    logprobs: dict[str, JsonValue] | None = None
    """In OpenAI's form; None where they were not asked for."""


Choice = Annotated[_Choice, BeforeValidator(_as_text)]


class Plain(Fact):
    """The same request without steering."""

    choices: tuple[Choice, ...] = Field(min_length=1)
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """Of the first choice."""
        return self.choices[0].text


class Answer(Plain):
    """What the model wrote."""

    id: str
    model: str
    steersman: dict[str, JsonValue] = {}
    """How it was steered: recipe, strength at the end, what the guard did, the route."""
    plain: Plain | None = None
    """With `compare=True`."""


class PlainPiece(Fact):
    """A piece of the answer without steering."""

    choices: tuple[Choice, ...] = ()
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """What is new, of the first choice; may be empty."""
        return self.choices[0].text if self.choices else ""


class Piece(PlainPiece):
    """A piece of an answer, as it comes; the last one carries the usage."""

    steersman: dict[str, JsonValue] | None = None
    """Where an answer ends: how it was steered."""
    plain: PlainPiece | None = None
    """With `compare=True`."""


class ModelInfo(Fact):
    """A name to ask by."""

    id: str
    owned_by: str | None = None


# --- recipes


class RecipeInfo(Fact):
    """A recipe as a list shows it."""

    id: str
    name: str
    """Unique among yours; good wherever the id is."""
    description: str
    method: str
    tags: tuple[str, ...]
    created_at: _Time
    evidence: dict[str, JsonValue] | None
    """What was measured, on which prompts, by which judge."""


class EditInfo(Fact):
    """One edit, without its vectors."""

    kind: str
    layer: int
    strength: float
    is_conditional: bool


class RecipeDetails(RecipeInfo):
    """One recipe, all but its vectors."""

    edits: tuple[EditInfo, ...]
    aborts: bool
    """Whether it may end an answer."""
    model: dict[str, JsonValue] | None
    """What it was made for."""
    sae: dict[str, JsonValue] | None
    data: dict[str, JsonValue]
    """What it was found from."""


class TraitInfo(Fact):
    """A pre-made recipe, to be used by its name."""

    name: str
    description: str
    method: str
    fits: bool = True
    """Whether it was made for the server's model."""
    evidence: dict[str, JsonValue] | None


# --- sets of vectors


class SetInfo(Fact):
    """A set of steering vectors, one a trait."""

    id: str
    created_at: _Time
    model: str
    control_dimensions: dict[str, JsonValue]
    status: SetStatus
    error: str | None = None
    """Why fitting failed."""


class SetProgress(Fact):
    """How far a set is."""

    id: str
    status: SetStatus
    error: str | None = None


class SetAnswer(Fact):
    """What a set of steering vectors had the model write."""

    model_id: str
    created: datetime
    model: str
    content: str


# --- jobs


class Job(Fact):
    """Work in the background."""

    id: str
    kind: str
    state: JobState
    request: dict[str, JsonValue]
    result: dict[str, JsonValue] | None
    error: str | None
    """Why it failed."""
    attempts: int
    """How often it was begun."""
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    model: dict[str, JsonValue] | None = None
    """The model that it is for; None: any, or an older server."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ENDED


class JobEvent(Fact):
    """Something that happened in a job."""

    number: int
    """Counted from 1 within the job."""
    at: datetime
    kind: str
    data: dict[str, JsonValue]


class AutosteerOutcome(Fact):
    """What auto-steering came to."""

    job_id: str
    recipe: str | None
    """Name of the recipe, good for `recipe=`; None where it was not kept."""
    verdict: str
    """`proven`, `not proven` or `no effect`."""
    why: str
    """The verdict in words."""
    evidence: dict[str, JsonValue]
    """On prompts used nowhere before: `scores` with intervals by way of answering, `choice_accuracy`, `examples`."""
    result: dict[str, JsonValue]
    """All that the job told."""
