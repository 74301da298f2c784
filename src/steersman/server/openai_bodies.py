"""The bodies of OpenAI's chat and completion requests, with our additions, and the engine's requests that they stand for.

What cannot be done here is refused by name rather than ignored. Knows nothing of HTTP or of answers.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from steersman.engine.guard import Guard
from steersman.engine.request import Request, Sampling
from steersman.models.language_model import Message, Prompt
from steersman.server.closed import Closed
from steersman.server.steering import Chosen
from steersman.server.steering_body import SteeringBody

MOST_CHOICES = 16
COMPLETION_TOKENS = 16
"""Of a completion that does not say; as OpenAI's."""
_SEEDS = 2**63
_LEAST_TOP_P = 1e-6


def _refuse_penalty(value: float) -> float:
    if value != 0.0:
        raise ValueError("is not supported; leave it out, or use 'repetition_penalty'")
    return value


def _refuse_token_ids(value: Any) -> Any:
    if isinstance(value, list) and value and all(isinstance(item, int | list) for item in value):
        raise ValueError("token ids are not taken; send the text")
    return value


_Zero = Annotated[float, AfterValidator(_refuse_penalty), Field(json_schema_extra={"minimum": 0, "maximum": 0})]
# Each token is compared with every beginning of each, so they are kept short.
_Stop = Annotated[str, Field(min_length=1, max_length=256)]
_Text = Annotated[str, Field(min_length=1)]


class _Closed(Closed):
    # Strict: the text "1" is no number, and 1 no truth value.
    model_config = ConfigDict(strict=True)


class StreamOptions(_Closed):
    """What a stream tells besides the text."""

    include_usage: bool | None = Field(default=None, description="Count tokens in a chunk of its own before the end.")


class TextPart(_Closed):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(_Closed):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1, max_length=1000)]
    # What client libraries write into answers, and send back as they got it.
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None

    @property
    def text(self) -> str:
        """What it says."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class _Generation(_Closed):
    """What chats and completions have in common."""

    model: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        description="A name of GET /v1/models: the model's, with `:recipe` or `:trait` behind it, or a set's id."
    )
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = Field(default=1, description="Answers to each prompt.")
    max_tokens: Annotated[int, Field(ge=1, le=1 << 30)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = Field(
        default=1.0, description="0 takes the likeliest token."
    )
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = 1.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] | None = Field(
        default=1.0, description="Divides the chances of tokens that were there before; not in OpenAI's protocol."
    )
    frequency_penalty: _Zero | None = None
    presence_penalty: _Zero | None = None
    seed: Annotated[int, Field(ge=-_SEEDS, lt=_SEEDS)] | None = Field(
        default=None, description="Makes sampled answers repeatable; the k-th answer gets seed + k."
    )
    stop: _Stop | Annotated[list[_Stop], Field(max_length=16)] | None = None
    user: Annotated[str, Field(max_length=512)] | None = Field(default=None, description="Taken, and not used.")
    steering: SteeringBody | None = Field(default=None, description="How the answer is steered; ours.")
    compare: bool | None = Field(default=False, description="Also answer without any steering, as `plain`; ours.")

    @property
    def choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @field_validator("stream_options")
    @classmethod
    def _only_for_streams(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise ValueError("is only for streams; leave it out, or set 'stream' to true")
        return value

    def sampling(self, max_tokens: int) -> Sampling:
        """How tokens are chosen, but for the seed."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=max(_LEAST_TOP_P, 1.0 if self.top_p is None else self.top_p),
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            stop=tuple(stop),
            max_tokens=max_tokens,
        )


class ChatBody(_Generation):
    """A chat to be answered."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=2000)
    max_completion_tokens: Annotated[int, Field(ge=1, le=1 << 30)] | None = Field(
        default=None, description="The newer name of `max_tokens`."
    )
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @field_validator("max_completion_tokens")
    @classmethod
    def _only_one_limit(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("max_tokens") not in (None, value):
            raise ValueError("is the newer name of 'max_tokens'; give one of them")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _only_with_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("logprobs"):
            raise ValueError("needs 'logprobs' to be true")
        return value

    @property
    def asked_tokens(self) -> int | None:
        """Most tokens of an answer, where it says."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def top(self) -> int | None:
        """For the engine: how many likely tokens to tell of, None for no log-probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def prompts(self) -> list[Prompt]:
        """The chat, as the model takes it."""
        chat: list[Message] = [
            {"role": "system" if item.role == "developer" else item.role, "content": item.text}
            for item in self.messages
        ]
        return [chat]

    @property
    def question(self) -> str:
        """What the user says last."""
        return next((item.text for item in reversed(self.messages) if item.role == "user"), "")


class CompletionBody(_Generation):
    """Text to be continued."""

    prompt: Annotated[
        _Text | Annotated[list[_Text], Field(min_length=1, max_length=MOST_CHOICES)], BeforeValidator(_refuse_token_ids)
    ]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @field_validator("prompt")
    @classmethod
    def _not_too_many(cls, value: str | list[str], info: ValidationInfo) -> str | list[str]:
        if isinstance(value, list) and len(value) * (info.data.get("n") or 1) > MOST_CHOICES:
            raise ValueError(f"{len(value)} texts, each 'n' times, are more than {MOST_CHOICES} answers; ask for fewer")
        return value

    @property
    def asked_tokens(self) -> int | None:
        """Most tokens of an answer, where it says."""
        return self.max_tokens

    @property
    def top(self) -> int | None:
        """For the engine: how many likely tokens to tell of, None for no log-probabilities at all."""
        return self.logprobs

    @property
    def prompts(self) -> list[Prompt]:
        """The texts."""
        return [self.prompt] if isinstance(self.prompt, str) else list(self.prompt)

    @property
    def question(self) -> str:
        """The first text."""
        return str(self.prompts[0])


Body = ChatBody | CompletionBody


def requests_of(body: Body, chosen: Chosen, max_tokens: int) -> list[Request]:
    """One request for every choice, in the order of their indices; with `compare`, the same unsteered behind them.

    The plain twin of an answer is sampled with the same seed.
    """
    sampling = body.sampling(max_tokens)
    guard = Guard(mode=body.steering.guard if body.steering else "off")
    count = len(body.prompts) * body.choices
    prompts = [prompt for prompt in body.prompts for _ in range(body.choices)]
    seeds = _seeds(body.seed, count, is_drawn=bool(body.compare))
    steered = [
        Request(
            prompt=prompt,
            recipe=chosen.recipe,
            strength=chosen.strength,
            sampling=dataclasses.replace(sampling, seed=seed),
            guard=guard,
            logprobs=body.top,
        )
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    if not body.compare:
        return steered
    return steered + [dataclasses.replace(item, recipe=None, strength=1.0, guard=Guard()) for item in steered]


def _seeds(seed: int | None, count: int, *, is_drawn: bool) -> Sequence[int | None]:
    if seed is None and is_drawn:
        seed = secrets.randbits(53)
    return [None] * count if seed is None else [(seed + index) % _SEEDS for index in range(count)]
