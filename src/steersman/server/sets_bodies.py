"""The bodies of the steering API: sets of vectors ("steerable models") and completions. Knows nothing of how they are made."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from steersman.server.closed import Closed
from steersman.server.steering_body import MOST_FACTOR
from steersman.store.facts import JobState, SetRecord

Status = Literal["pending", "training", "ready", "failed"]
STATUS: dict[JobState, Status] = {
    "pending": "pending",
    "running": "training",
    "ready": "ready",
    "failed": "failed",
    "cancelled": "failed",
}
"""What the steering API calls the state of a set's job."""

Word = Annotated[str, Field(min_length=1, max_length=500)]
Opening = Annotated[str, Field(max_length=2000)]
Multiplier = Annotated[float, Field(ge=-MOST_FACTOR, le=MOST_FACTOR)]


class Dimension(Closed):
    """A trait by examples of people who have it and who have not."""

    positive_examples: list[Word] = Field(min_length=1, max_length=64)
    negative_examples: list[Word] = Field(min_length=1, max_length=64)


class SetBody(Closed):
    """A set of steering vectors to be fitted."""

    model_label: Annotated[str, Field(min_length=1, max_length=80)]
    control_dimensions: dict[Annotated[str, Field(min_length=1, max_length=100)], Dimension] = Field(
        min_length=1, max_length=32
    )
    prompt_list: list[Opening] | None = Field(
        default=None,
        max_length=512,
        description="Words that both personas go on with; by default general ones, which are added to fewer than 12.",
    )
    method: Literal["lat", "caa"] = Field(default="lat", description="How vectors are fitted.")
    layers: list[Annotated[int, Field(ge=0, le=1000)]] | None = Field(
        default=None, min_length=1, max_length=64, description="Decoder blocks, from 0; by default the middle ones."
    )

    @model_validator(mode="before")
    @classmethod
    def _older_form(cls, value: Any) -> Any:
        """Take `{trait: [[positive ...], [negative ...]]}` too, as older clients send it."""
        if not isinstance(value, dict) or not isinstance(value.get("control_dimensions"), dict):
            return value
        named = {
            trait: {"positive_examples": sides[0], "negative_examples": sides[1]}
            if isinstance(sides, list) and len(sides) == 2
            else sides
            for trait, sides in value["control_dimensions"].items()
        }
        return {**value, "control_dimensions": named}

    @field_validator("prompt_list")
    @classmethod
    def _something_to_say(cls, value: list[str] | None) -> list[str] | None:
        if value and not any(text.strip() for text in value):
            raise ValueError("give at least one prompt that is not empty, or null for the ones that ship")
        return value or None


class SetAnswer(Closed):
    """A set of steering vectors."""

    id: str
    object: Literal["steerable_model"] = "steerable_model"
    created_at: int = Field(description="Seconds since 1970, UTC.")
    model: str = Field(description="The model that it steers.")
    model_label: str | None = Field(default=None, description="As it was given; told when a set is created.")
    control_dimensions: dict[str, Dimension]
    status: Status
    error: str | None = Field(default=None, description="Why fitting failed; told only then.")

    @classmethod
    def of(cls, record: SetRecord, *, label: bool = False) -> Self:
        """What is told of a record."""
        return cls(
            id=record.id,
            created_at=int(record.created_at.timestamp()),
            model=record.model,
            model_label=record.label if label else None,
            control_dimensions={name: Dimension.model_validate(each) for name, each in record.dimensions.items()},
            status=STATUS[record.state],
            error=record.error,
        )


class SetList(Closed):
    """A page of sets."""

    data: list[SetAnswer]


class SetStatus(Closed):
    """How far a set is."""

    id: str
    status: Status
    error: str | None = Field(default=None, description="Why fitting failed; told only then.")


class SetDeleted(Closed):
    """A set that is gone."""

    id: str
    object: Literal["steerable_model"] = "steerable_model"
    deleted: Literal[True] = True


class CompletionSettings(Closed):
    """How text is generated; names and defaults are those of transformers' `generate`."""

    do_sample: bool = Field(default=False, description="Choose tokens at random instead of the likeliest.")
    max_new_tokens: int = Field(default=256, ge=1, le=1 << 20)
    repetition_penalty: float = Field(default=1.1, ge=0.01, le=100.0)
    temperature: float = Field(default=1.0, gt=0.0, le=100.0, description="Only with do_sample.")
    top_p: float = Field(default=1.0, gt=0.0, le=1.0, description="Only with do_sample.")
    top_k: int = Field(default=50, ge=0, le=1 << 20, description="Only with do_sample; 0 is all.")
    seed: int | None = Field(default=None, ge=0, lt=2**63)


class SteeredCompletionBody(Closed):
    """A completion by a set of steering vectors."""

    model: Annotated[str, Field(min_length=1, max_length=200)] = Field(description="Id of a set.")
    prompt: Annotated[str, Field(min_length=1)]
    control_settings: dict[str, Multiplier] | None = Field(
        default=None, max_length=32, description="Multiplier of each trait; one that is left out counts 0."
    )
    settings: CompletionSettings | None = None


class SteeredCompletion(Closed):
    """What a set of steering vectors had the model write."""

    model_id: str
    object: Literal["text_completion"] = "text_completion"
    created: str = Field(description="ISO 8601, UTC.")
    model: str
    content: str


class Hello(Closed):
    """That the server is there."""

    status: Literal["success"] = "success"
    message: str
