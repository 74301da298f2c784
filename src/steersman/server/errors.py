"""Every error as one typed JSON body: `{"error": {message, type, code, param, request_id}}`, whatever raised it.

    NotFound 404 · Conflict, RecipeMismatch 409 · AccessRefused 401, or 403 when the key is good
    Busy 429 or 503, StorageError and ModelError 503, all with Retry-After · EndpointError 502 · every other SteersmanError 400
    a body that does not fit 400, with the field that was probably meant · anything else 500, whose trace only the log has

Of a disk, a database or a model only the log has the message, which says where it is.
The names of the types are OpenAI's where it has one. Knows nothing of routes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Scope

from steersman.errors import (
    AccessRefused,
    Busy,
    Conflict,
    EndpointError,
    ModelError,
    NotFound,
    RecipeMismatch,
    SteersmanError,
    StorageError,
)
from steersman.server.fields import explain
from steersman.server.words import is_private, told

_LOG = logging.getLogger("steersman.server")
_RETRY_S = 2.0
"""Where the error does not know better."""

_STATUS: dict[type[SteersmanError], int] = {
    NotFound: 404,
    Conflict: 409,
    RecipeMismatch: 409,
    AccessRefused: 401,
    Busy: 503,
    StorageError: 503,
    ModelError: 503,
    EndpointError: 502,
    SteersmanError: 400,
}
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
    500: "internal_error",
    502: "endpoint_error",
    503: "unavailable_error",
    504: "timeout_error",
}


class ErrorDetail(BaseModel):
    """What went wrong."""

    model_config = ConfigDict(extra="forbid")
    message: str = Field(description="One line for a person: what, where, and the next step.")
    type: str = Field(description="The kind of error, for a program; follows from the status.")
    code: str | None = Field(description="A narrower kind, where there is one.")
    param: str | None = Field(description="The field of the request that is wrong, where it is one.")
    request_id: str = Field(description="Also in the header X-Request-Id and in the server's log.")


class ErrorBody(BaseModel):
    """What every refusal and failure is answered with."""

    model_config = ConfigDict(extra="forbid")
    error: ErrorDetail


_WAIT = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "The request is wrong; the message says where."},
    401: {"model": ErrorBody, "description": "No key, or one that is not valid."},
    403: {"model": ErrorBody, "description": "The key lacks the scope, or the request comes from another web page."},
    404: {"model": ErrorBody, "description": "Not there, or somebody else's."},
    409: {"model": ErrorBody, "description": "Not possible as things stand."},
    413: {"model": ErrorBody, "description": "The body is too large."},
    415: {"model": ErrorBody, "description": "The body is not JSON."},
    429: {"model": ErrorBody, "description": "Too many requests with this key.", "headers": _WAIT},
    500: {"model": ErrorBody, "description": "A mistake of the server; its log has more under the request id."},
    502: {"model": ErrorBody, "description": "A language model that the server asks does not answer as it should."},
    503: {
        "model": ErrorBody,
        "description": "Not now: the queue is full, the database is gone, or it is ending.",
        "headers": _WAIT,
    },
    504: {"model": ErrorBody, "description": "It took too long."},
}
"""For `responses={**ERRORS}` of every route."""


class Refusal(Exception):
    """A refusal that HTTP itself asks for, or one whose `code` and `param` a client library looks at."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, dict(headers or {})


def install(app: FastAPI) -> None:
    """Have the app answer every error in our form."""
    app.add_exception_handler(SteersmanError, _on_error)
    app.add_exception_handler(Refusal, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)


def as_refusal(error: Exception) -> Refusal:
    """The status, words and headers that an error is answered with."""
    if isinstance(error, Refusal):
        return error
    if not isinstance(error, SteersmanError):
        return Refusal(500, "internal error; the server's log has more under this request id")
    status = next(_STATUS[kind] for kind in cast("list[type[SteersmanError]]", type(error).__mro__) if kind in _STATUS)
    headers = {}
    if isinstance(error, AccessRefused):
        status = 403 if error.is_known else 401
        headers = {} if error.is_known else {"WWW-Authenticate": "Bearer"}
    if isinstance(error, Busy):
        status = 429 if error.is_callers else 503
        headers = {"Retry-After": _whole(error.retry_after_s)}
    if isinstance(error, StorageError | ModelError):
        headers = {"Retry-After": _whole(_RETRY_S)}
    return Refusal(status, told(error), code=_code(type(error)), headers=headers)


def body_of(error: Exception, request_id: str) -> dict[str, Any]:
    """The JSON body of an error; also what a stream that has begun says last."""
    refusal = as_refusal(error)
    return {
        "error": {
            "message": str(refusal),
            "type": _TYPES.get(refusal.status, "invalid_request_error"),
            "code": refusal.code,
            "param": refusal.param,
            "request_id": request_id,
        }
    }


def answer(error: Exception, scope: Scope) -> JSONResponse:
    """The response of an error."""
    refusal = as_refusal(error)
    log(error, scope)
    return JSONResponse(body_of(refusal, request_id(scope)), refusal.status, headers=refusal.headers)


def log(error: Exception, scope: Scope) -> None:
    """Note what the caller is not told: where something is that failed, the trace of what nobody raised on purpose."""
    extra = {"request_id": request_id(scope)}
    if is_private(error):
        _LOG.warning("%s", error, extra=extra)
    elif not isinstance(error, SteersmanError | Refusal):
        _LOG.error("internal error", exc_info=error, extra=extra)


def request_id(scope: Scope) -> str:
    """The id that the request was given."""
    return str(scope.get("state", {}).get("request_id", ""))


def _code(kind: type[SteersmanError]) -> str:
    """`RecipeMismatch` -> `recipe_mismatch`."""
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in kind.__name__).lstrip("_")


def _whole(seconds: float) -> str:
    return str(max(1, math.ceil(seconds)))


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    return answer(error, request.scope)


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    message, param = explain(error.errors(), request.scope.get("route"))
    return answer(Refusal(400, message, code="invalid_request", param=param), request.scope)


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    words = {
        404: f"there is no {request.method} {request.url.path[:200]} here; /openapi.json lists what there is",
        405: f"{request.method} is not possible at {request.url.path[:200]}; /openapi.json lists what is",
    }
    message = words.get(error.status_code, str(error.detail))
    return answer(Refusal(error.status_code, message, headers=error.headers), request.scope)
