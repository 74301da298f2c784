"""What a job is asked by, and what is told of it: the HTTP border of jobs. Knows nothing of how they are run.

No field is a path: what a job reads comes with the request, or ships under a name.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationError,
)

from steersman.server.closed import Closed
from steersman.store.checks import NAME
from steersman.store.facts import JobEvent, JobRecord, JobState

RecipeName = Annotated[str, Field(min_length=1, max_length=100, pattern=NAME)]
Text = Annotated[str, Field(min_length=1, max_length=8000)]
Words = Annotated[str, Field(min_length=1, max_length=500)]
Layers = Annotated[list[Annotated[int, Field(ge=0, le=1000)]], Field(min_length=1, max_length=64)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
KIND_NAMES = ("fit", "autosteer", "evaluate")


class PairBody(Closed):
    """Two answers to one prompt, or two texts where there is no prompt."""

    positive: Text = Field(description="Shows the behaviour.")
    negative: Text = Field(description="Does not.")
    prompt: Text | None = None


class PersonaBody(Closed):
    """A trait in words."""

    positive_examples: list[Words] = Field(min_length=1, max_length=64)
    negative_examples: list[Words] = Field(min_length=1, max_length=64)
    prompts: list[Annotated[str, Field(max_length=2000)]] | None = Field(default=None, max_length=512)


class FitBody(Closed):
    """Fit a recipe: from pairs, from a shipped set of them, from personas, or from nothing but a trait's name."""

    kind: Literal["fit"]
    name: RecipeName = Field(description="Of the recipe; free among the owner's.")
    pairs: list[PairBody] | None = Field(default=None, min_length=2, max_length=2000)
    contrast_set: Words | None = Field(default=None, description="Name of a contrast set that ships.")
    personas: PersonaBody | None = None
    trait: Words | None = Field(
        default=None, description="A word or a sentence; examples are written, and the recipe is proven."
    )
    method: Literal["caa", "lat"] | None = Field(
        default=None, description="caa, or lat for personas, where none is named."
    )
    layers: Layers | None = Field(default=None, description="Decoder blocks, from 0.")
    strength: float = Field(default=1.0, gt=-100, lt=100, description="Factor on what is fitted.")
    description: str = Field(default="", max_length=2000)
    seed: Seed = 0


class AutosteerBody(Closed):
    """Find, tune and prove a recipe for a behaviour."""

    kind: Literal["autosteer"]
    behaviour: Annotated[str, Field(min_length=1, max_length=2000)] = Field(description="In a sentence.")
    opposite: Annotated[str, Field(min_length=1, max_length=2000)] | None = None
    name: RecipeName | None = Field(default=None, description="Of the recipe; by default made from the job's id.")
    examples: list[PairBody] | None = Field(default=None, min_length=8, max_length=500)
    optimiser: Words = Field(default="gradient", description="gradient, bayes, textgrad, or several joined by +.")
    features: int = Field(default=8, ge=1, le=64)
    judge: Literal["local", "llm"] = "local"
    expand: bool = Field(default=False, description="Ask the endpoint for more words to search features by.")
    keep_unproven: bool = Field(
        default=True, description="Keep the recipe where the evidence does not support it, too."
    )
    seed: Seed = 0


class BehaviourBody(Closed):
    """A behaviour to evaluate on, by example."""

    name: Words
    positive: list[Text] = Field(min_length=2, max_length=500)
    negative: list[Text] = Field(min_length=2, max_length=500)
    description: Text | None = None
    score_criterion: Text | None = None


class EvaluateBody(Closed):
    """Compare steering methods on a behaviour."""

    kind: Literal["evaluate"]
    behaviour: Words | None = Field(default=None, description="A behaviour that ships, by name.")
    examples: BehaviourBody | None = Field(default=None, description="Your own, in place of a name.")
    describe: Text | None = Field(default=None, description="The behaviour in a sentence.")
    methods: list[Words] | None = Field(default=None, min_length=1, max_length=32)
    judge: Words = Field(default="local", description="local, embedding or llm, or several joined by +.")
    battles: bool = False
    prompts: int = Field(default=16, ge=4, le=256)
    strengths: list[Annotated[float, Field(gt=0, le=10)]] | None = Field(default=None, min_length=1, max_length=16)
    tokens: int = Field(default=40, ge=1, le=512)
    layer: int | None = Field(default=None, ge=0, le=1000)
    answers: bool = Field(default=False, description="Have every answer with its scores in the result.")
    seed: Seed = 0


def _known_kind(value: Any) -> Any:
    """Say that the kind is wrong, where it is; pydantic itself would blame the whole body."""
    if isinstance(value, dict) and "kind" not in value:
        raise ValidationError.from_exception_data("job", [{"type": "missing", "loc": ("kind",), "input": value}])
    if isinstance(value, dict) and value["kind"] not in KIND_NAMES:
        expected = ", ".join(map(repr, KIND_NAMES))
        error: Any = {
            "type": "literal_error", "loc": ("kind",), "input": value["kind"], "ctx": {"expected": expected}
        }  # fmt: skip
        raise ValidationError.from_exception_data("job", [error])
    return value


def _tag(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return f"({kind})"


# Tags in brackets: messages leave them out of the place.
JobBody = Annotated[
    Annotated[FitBody, Tag("(fit)")]
    | Annotated[AutosteerBody, Tag("(autosteer)")]
    | Annotated[EvaluateBody, Tag("(evaluate)")],
    Discriminator(_tag),
    BeforeValidator(_known_kind),
]
"""What `POST /v1/jobs` takes."""


class JobModel(Closed):
    """The model that a job is for, as recipes name theirs."""

    id: str
    config_hash: str
    weights_hash: str


class JobView(Closed):
    """A job as its owner sees it."""

    id: str
    object: Literal["job"] = "job"
    kind: str
    state: JobState
    model: JobModel | None = Field(description="The only model whose servers take it; null: any.")
    request: dict[str, JsonValue]
    result: dict[str, JsonValue] | None
    error: str | None = Field(description="Why it failed, in one line.")
    attempts: int = Field(description="How often it was begun.")
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None

    @classmethod
    def of(cls, job: JobRecord) -> Self:
        """What is told of a record."""
        ref = job.model
        model = JobModel(id=ref.id, config_hash=ref.config_hash, weights_hash=ref.weights_hash) if ref else None
        told = {name: getattr(job, name) for name in cls.model_fields if name not in ("object", "model")}
        return cls(model=model, **told)


class JobList(Closed):
    """A page of jobs, the newest first."""

    object: Literal["list"] = "list"
    data: list[JobView]
    total: int


class EventView(Closed):
    """Something that happened in a job; the data of a server-sent event."""

    number: int
    at: datetime
    kind: str
    data: dict[str, JsonValue]

    @classmethod
    def of(cls, event: JobEvent) -> Self:
        """What is told of a record."""
        return cls(number=event.number, at=event.at, kind=event.kind, data=event.data)
