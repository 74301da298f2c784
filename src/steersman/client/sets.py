"""Sets of steering vectors, one a trait, fitted from words that describe people who have it. Paths and bodies, no connection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from steersman.client.facts import Page, SetAnswer, SetInfo, SetProgress
from steersman.client.flow import ask, poll
from steersman.client.methods import Method
from steersman.client.steps import Call, Flow
from steersman.errors import ApiError

_ROOT = "/v1/steerable-model"
_POLL_S = 1.0


def create(
    label: str,
    dimensions: Mapping[str, Mapping[str, Sequence[str]]],
    *,
    prompts: Sequence[str] | None = None,
    method: str | None = None,
    layers: Sequence[int] | None = None,
) -> Flow[SetInfo]:
    """Begin to fit a set; `wait` for it.

    Args:
        label: what its id begins with.
        dimensions: by trait, `positive_examples` and `negative_examples`: words such as "a cheerful person".
        prompts: beginnings that both kinds of people go on with; by default general ones.
        method: `lat` (default) or `caa`.
        layers: decoder blocks, from 0.

    Raises:
        ApiError: as of `Client.chat`.
    """
    named = {trait: {side: list(words) for side, words in sides.items()} for trait, sides in dimensions.items()}
    body: dict[str, Any] = {"model_label": label, "control_dimensions": named}
    more = {"prompt_list": prompts, "layers": layers}
    body |= {name: list(value) for name, value in more.items() if value is not None}
    body |= {} if method is None else {"method": method}
    return (yield from ask(Call(method="POST", path=_ROOT, body=body, read=SetInfo.model_validate)))


def list_sets(*, limit: int = 10, offset: int = 0) -> Flow[Page[SetInfo]]:
    """A page of your sets, newest first.

    Raises:
        ApiError: as of `Client.chat`.
    """
    query = {"limit": limit, "offset": offset}
    call = Call(method="GET", path=_ROOT, query=query, read=Page[SetInfo].model_validate, is_harmless=True)
    return (yield from ask(call))


def get(set_id: str) -> Flow[SetInfo]:
    """One set.

    Raises:
        ApiError: status 404 where there is none of yours; else as of `Client.chat`.
    """
    return (yield from ask(Call(method="GET", path=_at(set_id), read=SetInfo.model_validate, is_harmless=True)))


def wait(set_id: str) -> Flow[SetInfo]:
    """Wait until a set is ready.

    Raises:
        ApiError: kind `job_failed` where fitting failed; else as of `get`.
    """
    call = Call(method="GET", path=f"{_at(set_id)}/status", read=SetProgress.model_validate, is_harmless=True)
    found = yield from poll(call, lambda told: told.status not in ("pending", "training"), _POLL_S)
    if found.status == "failed":
        why = found.error or "the server does not say why"
        raise ApiError(f"set {set_id} could not be fitted: {why}", status=200, kind="job_failed")
    return (yield from get(set_id))


def complete(
    set_id: str, prompt: str, multipliers: Mapping[str, float] | None = None, **settings: bool | float | int | None
) -> Flow[SetAnswer]:
    """Have the model go on with a text, steered by a set.

    Args:
        set_id: which.
        prompt: the text.
        multipliers: by trait, sensibly -2 to 2; one that is left out counts 0.
        settings: `do_sample`, `max_new_tokens`, `repetition_penalty`, `temperature`, `top_p`, `top_k`, `seed`.

    Raises:
        ApiError: status 400 where the set is not ready; else as of `get`.
    """
    body = {"model": set_id, "prompt": prompt, "control_settings": dict(multipliers or {}), "settings": settings}
    call = Call(method="POST", path="/v1/completions", body=body, read=SetAnswer.model_validate, is_harmless=True)
    return (yield from ask(call))


def delete(set_id: str) -> Flow[None]:
    """Delete a set; one that is being fitted is stopped. Errors as of `get`."""
    yield from ask(Call(method="DELETE", path=_at(set_id), read=lambda _: None))


class SetMethods:
    """`client.sets`."""

    create = Method(create)
    list = Method(list_sets)
    get = Method(get)
    wait = Method(wait)
    complete = Method(complete)
    delete = Method(delete)


def _at(set_id: str) -> str:
    return f"{_ROOT}/{quote(set_id, safe='')}"
