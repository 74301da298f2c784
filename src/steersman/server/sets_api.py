"""The steering API of the published kind: sets of steering vectors, made in the background and mixed at request time.

    POST /steerable-model      202; pending -> training -> ready | failed
    GET  /steerable-model, /steerable-model/{id}, /steerable-model/{id}/status      DELETE /steerable-model/{id}
    POST /completions          {model: id of a set, prompt, control_settings: {trait: multiplier}, settings}

All but /completions also below /v1, where that address is OpenAI's (`openai_api` hands on what is meant for here). Knows nothing
of fitting or SQL.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Path, Query

from steersman.engine.request import Request, Sampling
from steersman.errors import RequestError, did_you_mean
from steersman.models.language_model import Prompt, chat
from steersman.server.auth import Caller, needs
from steersman.server.context import Context, Deps
from steersman.server.errors import ERRORS
from steersman.server.layers import check_layers
from steersman.server.sets_bodies import (
    STATUS,
    CompletionSettings,
    Hello,
    SetAnswer,
    SetBody,
    SetDeleted,
    SetList,
    SetStatus,
    SteeredCompletion,
    SteeredCompletionBody,
)
from steersman.server.steering_body import SteeringBody
from steersman.steering.personas import enough_openings, persona_pairs
from steersman.store.facts import SetRecord
from steersman.version import __version__

router = APIRouter(tags=["steering API"], responses={**ERRORS})

_Reader = Annotated[Caller, needs("read")]
_Trainer = Annotated[Caller, needs("train")]
_Writer = Annotated[Caller, needs("generate")]
_Id = Annotated[str, Path(min_length=1, max_length=200, description="Id of one of your sets.")]


@router.get("/v1/", operation_id="hello_v1", summary="Is the server there?")
@router.get("/", operation_id="hello", summary="Is the server there?")
def hello(caller: _Reader) -> Hello:
    """Says so, to whoever may read."""
    return Hello(message=f"steersman {__version__} is here")


@router.post("/v1/steerable-model", operation_id="create_set_v1", status_code=202, response_model_exclude_none=True)
@router.post(
    "/steerable-model",
    operation_id="create_set",
    status_code=202,
    response_model_exclude_none=True,
    summary="Fit a set of steering vectors",
)
def create_set(caller: _Trainer, deps: Deps, body: SetBody) -> SetAnswer:
    """Fitted in the background; ask for its status until that is `ready` or `failed`."""
    model = deps.engine.model
    check_layers(model, body.layers or ())
    openings = enough_openings(body.prompt_list)
    for dimension in body.control_dimensions.values():  # What can be seen to be wrong is said now, not by a failed job.
        persona_pairs(dimension.positive_examples, dimension.negative_examples, openings, most=2)
    whole = body.model_dump(mode="json")
    made = deps.store.sets.create(
        caller.owner,
        body.model_label,
        model=deps.steering.name,
        method=body.method,
        dimensions=whole["control_dimensions"],
        prompts=body.prompt_list,
        request={
            "model": model.ref.weights_hash,
            "dimensions": whole["control_dimensions"],
            "prompts": whole["prompt_list"],
            "method": body.method,
            "layers": whole["layers"],
        },
        ref=deps.runner.model,
    )
    deps.runner.wake()
    return SetAnswer.of(made, label=True)


@router.get("/v1/steerable-model", operation_id="list_sets_v1", response_model_exclude_none=True)
@router.get("/steerable-model", operation_id="list_sets", response_model_exclude_none=True, summary="Your sets")
def list_sets(
    caller: _Reader,
    deps: Deps,
    limit: Annotated[int, Query(ge=1, le=1000)] = 10,
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
) -> SetList:
    """A page of your sets, the newest first."""
    records, _ = deps.store.sets.list(caller.owner, limit, offset)
    return SetList(data=[SetAnswer.of(record) for record in records])


@router.get("/v1/steerable-model/{set_id}", operation_id="get_set_v1", response_model_exclude_none=True)
@router.get(
    "/steerable-model/{set_id}", operation_id="get_set", response_model_exclude_none=True, summary="One of your sets"
)
def get_set(caller: _Reader, deps: Deps, set_id: _Id) -> SetAnswer:
    """As it stands."""
    return SetAnswer.of(deps.store.sets.get(caller.owner, set_id))


@router.get("/v1/steerable-model/{set_id}/status", operation_id="get_set_status_v1", response_model_exclude_none=True)
@router.get(
    "/steerable-model/{set_id}/status",
    operation_id="get_set_status",
    response_model_exclude_none=True,
    summary="How far a set is",
)
def get_set_status(caller: _Reader, deps: Deps, set_id: _Id) -> SetStatus:
    """Pending, training, ready or failed."""
    record = deps.store.sets.get(caller.owner, set_id)
    return SetStatus(id=record.id, status=STATUS[record.state], error=record.error)


@router.delete("/v1/steerable-model/{set_id}", operation_id="delete_set_v1")
@router.delete("/steerable-model/{set_id}", operation_id="delete_set", summary="Delete a set")
def delete_set(caller: _Trainer, deps: Deps, set_id: _Id) -> SetDeleted:
    """Its vectors go with it; if it is still being fitted, that ends."""
    record = deps.store.sets.get(caller.owner, set_id)
    deps.store.sets.delete(caller.owner, set_id)
    deps.runner.drop(record.job_id)
    return SetDeleted(id=record.id)


@router.post("/completions", operation_id="create_steered_completion", summary="Write text, steered by a set")
async def create_completion(caller: _Writer, deps: Deps, body: SteeredCompletionBody) -> SteeredCompletion:
    """The answer to a prompt; traits of the set that are left out count 0."""
    return await complete(deps, caller, body)


async def complete(deps: Context, caller: Caller, body: SteeredCompletionBody) -> SteeredCompletion:
    """Answer in the steering API's form.

    Raises:
        NotFound: no such set.
        RequestError: the set is not ready, has no such trait, or the prompt or settings are wrong.
        Busy: too many requests wait.
    """
    record = await anyio.to_thread.run_sync(deps.store.sets.get, caller.owner, body.model)
    traits = _multipliers(record, body)
    sampling = _sampling(body.settings or CompletionSettings(), deps.settings.max_tokens)
    # Named even where nothing of it is wanted: a request that names nothing would be routed.
    steering = SteeringBody(set=record.id, traits=traits)
    chosen = await anyio.to_thread.run_sync(
        lambda: deps.steering.choose(caller.owner, model="default", body=steering, prompt=body.prompt)
    )
    prompt: Prompt = chat(body.prompt) if deps.engine.model.is_chat else body.prompt
    request = Request(prompt=prompt, recipe=chosen.recipe, strength=chosen.strength, sampling=sampling)
    result = await deps.pump.generate(request)
    deps.metrics.tokens(result.prompt_tokens, len(result.token_ids))
    # Without an offset, as this API has always said it.
    now = datetime.now(UTC).replace(tzinfo=None).isoformat()
    return SteeredCompletion(model_id=record.id, created=now, model=record.id, content=result.text.strip())


def _multipliers(record: SetRecord, body: SteeredCompletionBody) -> dict[str, float]:
    """What is not 0.

    Raises:
        RequestError: the set is not ready, or has no such trait.
    """
    if record.state != "ready":
        because = f": {record.error}" if record.error else ""
        raise RequestError(
            f"set {record.id} is not ready ({STATUS[record.state]}{because}); ask for its status until it is"
        )
    known = list(record.dimensions)
    for trait in body.control_settings or {}:
        if trait not in known:
            raise RequestError(
                f"set {record.id} has no trait {trait[:60]!r} (it has: {', '.join(known)}){did_you_mean(trait, known)}"
            )
    return {trait: factor for trait, factor in (body.control_settings or {}).items() if factor}


def _sampling(settings: CompletionSettings, most_tokens: int) -> Sampling:
    asked = settings.max_new_tokens
    if asked > most_tokens and "max_new_tokens" in settings.model_fields_set:
        raise RequestError(f"max_new_tokens may be {most_tokens} at most on this server, not {asked}")
    sampled = settings.do_sample
    return Sampling(
        temperature=settings.temperature if sampled else 0.0,
        top_p=settings.top_p if sampled else 1.0,
        top_k=settings.top_k if sampled else 0,
        repetition_penalty=settings.repetition_penalty,
        seed=settings.seed,
        max_tokens=min(asked, most_tokens),
    )
