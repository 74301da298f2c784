"""What the feature routes read, with its limits. Knows nothing of how features are found."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, cast

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from steersman.models.language_model import Message, Prompt
from steersman.server.closed import Closed

MOST_TEXTS = 256
"""In each list of a contrast."""
MOST_CHARACTERS = 100_000
"""In all texts of a request together."""

_Text = Annotated[str, StringConstraints(min_length=1, max_length=20_000)]
_STRICT = ConfigDict(strict=True)  # The text "1" is no number here.


def one_of(*names: str) -> dict[str, Any]:
    """What to add to the JSON schema of a body of which exactly one of these fields must be given, and not as null."""
    given = {"not": {"type": "null"}}
    return {"oneOf": [{"required": [name], "properties": {name: given}} for name in names]}


class MessageBody(Closed):
    """One turn of a chat."""

    model_config = _STRICT

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, StringConstraints(max_length=20_000)]


_Chat = Annotated[list[MessageBody], Field(min_length=1, max_length=64)]
_Texts = Annotated[list[_Text | _Chat], Field(min_length=2, max_length=MOST_TEXTS)]


class ContrastBody(Closed):
    """Two lists of texts or chats to tell apart; twenty or more of each are best."""

    model_config = _STRICT

    positive: _Texts = Field(description="Texts or chats that show something.")
    negative: _Texts = Field(description="Texts or chats that do not, as like the others as can be.")
    limit: Annotated[int, Field(ge=1, le=100)] = Field(default=20, description="Most features in each direction.")
    read: Literal["answer", "all"] = Field(
        default="answer", description="Of chats: the assistant's last message, or every token."
    )

    @model_validator(mode="after")
    def _not_too_long(self) -> Self:
        _check_length([*self.positive, *self.negative])
        return self


class InspectBody(Closed):
    """A text or a chat whose features are asked for."""

    model_config = ConfigDict(strict=True, json_schema_extra=one_of("text", "messages"))

    text: _Text | None = None
    messages: _Chat | None = None
    top_k: Annotated[int, Field(ge=1, le=20)] = Field(default=5, description="Most features of each token.")
    read: Literal["answer", "all"] = Field(
        default="all", description="Of a chat: the assistant's last message, or every token."
    )

    @model_validator(mode="after")
    def _from_one_source(self) -> Self:
        if (self.text is None) == (self.messages is None):
            raise ValueError("give either 'text' or 'messages'")
        _check_length([self.content_body])
        return self

    @property
    def content_body(self) -> str | list[MessageBody]:
        """The one that is given."""
        return self.text if self.text is not None else self.messages or []


def prompt_of(content: str | list[MessageBody]) -> Prompt:
    """A text or chat as the model takes it."""
    if isinstance(content, str):
        return content
    return [cast("Message", {"role": message.role, "content": message.content}) for message in content]


def _check_length(contents: list[str | list[MessageBody]]) -> None:
    total = sum(
        len(content) if isinstance(content, str) else sum(len(message.content) for message in content)
        for content in contents
    )
    if total > MOST_CHARACTERS:
        raise ValueError(f"{total} characters are too many; {MOST_CHARACTERS} are the most in one request")
