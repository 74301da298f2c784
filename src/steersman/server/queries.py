"""Refuse query parameters that a route does not have: `?tga=x` would otherwise list everything. Knows nothing of their values."""

from __future__ import annotations

from fastapi import Request

from steersman.errors import did_you_mean
from steersman.server.errors import Refusal


async def known_query(request: Request) -> None:
    """A dependency of the whole app.

    Raises:
        Refusal: 400, with the parameter that was probably meant.
    """
    dependant = getattr(request.scope.get("route"), "dependant", None)
    known = [parameter.alias for parameter in getattr(dependant, "query_params", ())]
    for name in request.query_params:
        if name not in known:
            shown = " ".join(name[:100].split())
            hint = did_you_mean(name, known) or f"; this takes {', '.join(known) or 'none'}"
            raise Refusal(400, f"unknown query parameter '{shown}'{hint}", code="invalid_request", param=shown)
