"""Features of the server's SAE: search, one in full, contrast, inspection; pre-made traits. Paths and bodies, no connection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from steersman.client.facts import Page, TraitInfo
from steersman.client.feature_facts import Contrast, Feature, FeatureHit, Inspection
from steersman.client.flow import ask
from steersman.client.methods import Method
from steersman.client.steps import Call, Flow

Text: TypeAlias = str | Sequence[Mapping[str, str]]
"""A text, or a chat as `{"role", "content"}` each."""


def search(query: str, *, limit: int = 10, max_density: float | None = None) -> Flow[tuple[FeatureHit, ...]]:
    """Features nearest in meaning to a word or a sentence, best first.

    Args:
        query: what to look for.
        limit: 1 to 100.
        max_density: leave out what fires on a larger share of all tokens.

    Raises:
        ApiError: as of `Client.chat`.
    """
    asked: dict[str, Any] = {"query": query, "limit": limit}
    asked |= {} if max_density is None else {"max_density": max_density}
    read = Page[FeatureHit].model_validate
    return (yield from ask(Call(method="GET", path="/v1/features", query=asked, read=read, is_harmless=True))).data


def get(feature: int) -> Flow[Feature]:
    """One feature in full: label and its score, contexts, tokens that it makes likelier, neighbours.

    Raises:
        ApiError: status 404 where there is none; else as of `Client.chat`.
    """
    path = f"/v1/features/{feature}"
    return (yield from ask(Call(method="GET", path=path, read=Feature.model_validate, is_harmless=True)))


def contrast(
    positive: Sequence[Text], negative: Sequence[Text], *, limit: int = 20, read: Literal["answer", "all"] = "answer"
) -> Flow[Contrast]:
    """Features that tell two lists of texts or chats apart.

    Args:
        positive: twenty or more are best.
        negative: as like them as can be, but for what is looked for.
        limit: most features in each direction.
        read: of chats, the assistant's last message or every token.

    Raises:
        ApiError: as of `Client.chat`.
    """
    sides = {"positive": [_text(each) for each in positive], "negative": [_text(each) for each in negative]}
    body = {**sides, "limit": limit, "read": read}
    path = "/v1/features/contrast"
    return (yield from ask(Call(method="POST", path=path, body=body, read=Contrast.model_validate, is_harmless=True)))


def inspect(text: Text, *, top_k: int = 5) -> Flow[Inspection]:
    """Which features fire on which token of a text or chat.

    Args:
        text: what to read.
        top_k: most features of each token.

    Raises:
        ApiError: as of `Client.chat`.
    """
    body = {"text" if isinstance(text, str) else "messages": _text(text), "top_k": top_k}
    path = "/v1/inspect"
    return (yield from ask(Call(method="POST", path=path, body=body, read=Inspection.model_validate, is_harmless=True)))


def traits() -> Flow[tuple[TraitInfo, ...]]:
    """The pre-made recipes, each with its evidence; use them by name.

    Raises:
        ApiError: as of `Client.chat`.
    """
    read = Page[TraitInfo].model_validate
    return (yield from ask(Call(method="GET", path="/v1/traits", read=read, is_harmless=True))).data


class FeatureMethods:
    """`client.features`."""

    search = Method(search)
    get = Method(get)
    contrast = Method(contrast)
    inspect = Method(inspect)


def _text(text: Text) -> str | list[dict[str, str]]:
    return text if isinstance(text, str) else [dict(message) for message in text]
