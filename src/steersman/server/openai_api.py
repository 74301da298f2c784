"""OpenAI's protocol, with a recipe for each request: chats, completions and model names.

    POST /v1/chat/completions, /v1/completions     steering by model name, or in a `steering` object; streamed or whole
    GET  /v1/models, /v1/models/{id}

`/v1/completions` takes the steering API's body as well, and then answers in that API's form. Knows nothing of which recipe a
request gets (`steering`) or of how answers are written (`openai_answers`, `openai_stream`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Body, Path
from fastapi.responses import JSONResponse
from pydantic import Discriminator, Tag

from steersman.engine.request import Request
from steersman.errors import RequestError
from steersman.server import openai_bodies, sets_api
from steersman.server.auth import Caller, needs
from steersman.server.context import Context, Deps
from steersman.server.errors import ERRORS, Refusal
from steersman.server.openai_answers import Asked, ChatCompletion, ModelList, ModelOut, TextCompletion, whole
from steersman.server.openai_bodies import COMPLETION_TOKENS, ChatBody, CompletionBody, requests_of
from steersman.server.openai_logprobs import TokenTexts
from steersman.server.openai_stream import ChunkLines, EventStream
from steersman.server.sets_bodies import SteeredCompletion, SteeredCompletionBody

router = APIRouter(prefix="/v1", tags=["OpenAI"], responses={**ERRORS})

_Reader = Annotated[Caller, needs("read")]
_Writer = Annotated[Caller, needs("generate")]
_TOO_LONG = "context_length_exceeded"
_EVENTS = {"text/event-stream": {"schema": {"type": "string", "description": "With `stream`: chunks, then `[DONE]`."}}}


def _protocol(value: Any) -> str:
    """Whose body this is. The dashes keep the names out of messages about fields."""
    is_theirs = isinstance(value, dict) and ("control_settings" in value or "settings" in value)
    return "steering-api" if is_theirs or isinstance(value, SteeredCompletionBody) else "openai-api"


_AnyCompletion = Annotated[
    Annotated[CompletionBody, Tag("openai-api")] | Annotated[SteeredCompletionBody, Tag("steering-api")],
    Discriminator(_protocol),
]


@router.post(
    "/chat/completions",
    operation_id="create_chat_completion",
    summary="Answer a chat, steered",
    response_model=ChatCompletion,
    responses={200: {"content": _EVENTS}},
)
async def create_chat_completion(caller: _Writer, deps: Deps, body: ChatBody) -> Any:
    """Like OpenAI's; `steering` says how, `compare` asks for the plain answer beside the steered one."""
    return await _answer(caller, deps, body, deps.settings.max_tokens)


@router.post(
    "/completions",
    operation_id="create_completion",
    summary="Continue a text, steered",
    response_model=TextCompletion | SteeredCompletion,
    responses={200: {"content": _EVENTS}},
)
async def create_completion(caller: _Writer, deps: Deps, body: Annotated[_AnyCompletion, Body()]) -> Any:
    """Like OpenAI's; a body with `control_settings` or `settings` is the steering API's, and answered in its form."""
    if isinstance(body, SteeredCompletionBody):
        return await sets_api.complete(deps, caller, body)
    return await _answer(caller, deps, body, min(COMPLETION_TOKENS, deps.settings.max_tokens))


@router.get("/models", operation_id="list_models", summary="Model names that you can use")
def list_models(caller: _Reader, deps: Deps) -> ModelList:
    """The model, the model with each of your recipes and with each trait, and your sets that are ready."""
    return ModelList(data=[ModelOut(**item) for item in deps.steering.models(caller.owner)])


@router.get("/models/{model:path}", operation_id="get_model", summary="One of them")
def get_model(caller: _Reader, deps: Deps, model: Annotated[str, Path(max_length=200)]) -> ModelOut:
    """By its name."""
    return ModelOut(**deps.steering.model(caller.owner, model))


async def _answer(caller: Caller, deps: Context, body: openai_bodies.Body, default_tokens: int) -> Any:
    began = time.perf_counter()
    max_tokens = _allowed_tokens(body, deps.settings.max_tokens, default_tokens)
    chosen = await anyio.to_thread.run_sync(
        lambda: deps.steering.choose(caller.owner, model=body.model, body=body.steering, prompt=body.question)
    )
    model = deps.engine.model
    asked = Asked.of(body, chosen, model.ref.weights_hash, TokenTexts(model))
    requests = requests_of(body, chosen, max_tokens)
    try:
        feed = await deps.pump.open(requests, stream=bool(body.stream))
    except RequestError as error:
        raise await asyncio.to_thread(_explained, error, deps, body, requests) from error
    if not body.stream:
        results = await feed.results()
        for result in results:
            deps.metrics.tokens(result.prompt_tokens, len(result.token_ids))
        # Not here: with log-probabilities it is many megabytes.
        return await anyio.to_thread.run_sync(lambda: JSONResponse(whole(asked, results)))
    try:
        first = await anext(feed)  # So that what is wrong until then is answered as an error, not in a stream.
        return EventStream(feed, first, ChunkLines(asked), deps.metrics, began)
    except BaseException:
        feed.cancel()
        raise


def _allowed_tokens(body: openai_bodies.Body, most: int, default: int) -> int:
    asked = body.asked_tokens
    if asked is not None and asked > most:
        name = "max_completion_tokens" if getattr(body, "max_completion_tokens", None) is not None else "max_tokens"
        raise Refusal(400, f"'{name}' may be {most} at most on this server, not {asked}", code=_TOO_LONG, param=name)
    return default if asked is None else asked


def _explained(error: RequestError, deps: Context, body: openai_bodies.Body, requests: Sequence[Request]) -> Exception:
    """The error, with OpenAI's code where a prompt is too long."""
    model = deps.engine.model
    try:
        longest = max(len(model.encode(request.prompt)) for request in requests)
    except RequestError:
        return error
    if longest < model.context_tokens:
        return error
    return Refusal(400, str(error), code=_TOO_LONG, param="messages" if isinstance(body, ChatBody) else "prompt")
