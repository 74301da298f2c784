"""Which recipe a request gets: from its model name, its `steering` object, the server's default and its table of routes.

    model "base"               nothing but the default        "base:name"    a recipe of the caller, or a trait that ships
    model "<id of a set>"      that set, mixed by `traits`    steering {...}  see `SteeringBody`

What model name and steering object ask for adds up, times `strength`; the default is added, unless `mode` says otherwise. Only
a request that asks for nothing is routed. Blocking: it reads from the store. Knows nothing of HTTP or of generating.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from pydantic import JsonValue

from steersman.errors import NotFound, RecipeError, RequestError, did_you_mean
from steersman.facts import fact
from steersman.models.language_model import ModelRef
from steersman.models.load import default_asset
from steersman.server.recipe_wire import MOST_CONDITIONS
from steersman.server.routing import Router
from steersman.server.steering_body import SteeringBody, inline_recipe
from steersman.steering.condition import leaves
from steersman.steering.recipe import Recipe, combine
from steersman.steering.traits import names as trait_names
from steersman.store.store import Store

MOST_EDITS = 2048
"""Of all that a request names together: as many as a large set has. Every token of every row pays for them."""
_MOST_NAMES = 1000


@fact
class Chosen:
    """What steers a request."""

    recipe: Recipe | None
    strength: float
    """Factor for the engine."""
    told: dict[str, JsonValue]
    """The same for a response: what was named, with multipliers; `route` where one was chosen."""


class Steering:
    """How one server steers. Safe to share between threads."""

    def __init__(
        self,
        store: Store,
        default: Recipe | None,
        model_ref: ModelRef,
        traits: Callable[[str], Recipe],
        router: Router | None,
    ) -> None:
        """Put together what requests can name.

        Args:
            store: recipes and sets of callers.
            default: steers every answer, unless a request says otherwise.
            model_ref: the model that answers.
            traits: finds a trait by name, or raises `NotFound`; asked often.
            router: chooses a recipe for requests that name none; None chooses none.
        """
        self.default = default
        self.name = public_name(model_ref)
        """What the model is called in answers."""
        self._store, self._ref, self._traits, self._router = store, model_ref, traits, router
        self._bases = {self.name, "default", model_ref.id.lower()}

    def models(self, owner: str) -> list[dict[str, Any]]:
        """Every model name that a caller can use: the model, with each of their recipes, with each trait, and their sets.

        Returns:
            `id`, `created` (Unix time; 0 for what ships), `owned_by` and `kind` of each.
        """
        records, _ = self._store.recipes.list(owner, limit=_MOST_NAMES)
        sets, _ = self._store.sets.list(owner, _MOST_NAMES)
        own = {f"{self.name}:{record.name}": record.created_at for record in records}
        traits = [f"{self.name}:{name}" for name in self._fitting_traits()]
        return [
            _model(self.name, "model"),
            *(_model(name, "recipe", owner, at) for name, at in own.items()),
            *(_model(name, "trait") for name in traits if name not in own),
            *(_model(item.id, "set", owner, item.created_at) for item in sets if item.state == "ready"),
        ]

    def model(self, owner: str, name: str) -> dict[str, Any]:
        """One of `models`, by its name or another name of the model.

        Raises:
            NotFound: with the one that was probably meant.
        """
        known = {item["id"]: item for item in self.models(owner)}
        if name not in known and name.lower() in self._bases:
            name = self.name
        if name not in known:
            raise self._unknown(name, known)
        return known[name]

    def choose(self, owner: str, *, model: str, body: SteeringBody | None, prompt: str) -> Chosen:
        """What steers one request.

        Args:
            owner: whose recipes and sets count.
            model: the model name of the request.
            body: its steering object.
            prompt: what the user says last, for routing.

        Raises:
            NotFound: a model, recipe, trait or set that is not there.
            Conflict: a set that is not ready.
            RequestError: what is named makes no sense together.
            RecipeError, RecipeMismatch: parts that do not go together, or are too much together.
            StorageError: the store is gone.
        """
        asked = body or SteeringBody()
        suffix, set_id = self._parsed(owner, model, asked.set)
        told: dict[str, JsonValue] = {}
        parts = self._named_parts(owner, suffix, asked, told)
        parts += self._trait_parts(owner, set_id, asked.traits or {}, told)
        if asked.edits or asked.abort:
            parts.append(inline_recipe(asked.edits or (), asked.abort))
            told["edits"] = len(asked.edits or ())
        names_something = bool(told) or "mode" in asked.model_fields_set
        if self._router is not None and not names_something:
            parts += self._routed(owner, self._router, prompt, told)
        if not told and asked.strength != 1.0 and self._router is None:
            raise RequestError("steering: 'strength' is a factor on what else is named there; name a recipe or a trait")
        _check_size(parts)
        return self._with_default(parts, asked, told)

    def _parsed(self, owner: str, model: str, set_id: str | None) -> tuple[str | None, str | None]:
        """Recipe and set that a request names, by its model name or in its steering object."""
        base, colon, suffix = model.partition(":")
        if base.lower() in self._bases:
            if colon and not suffix:
                raise NotFound(
                    f"the model name {model[:100]!r} ends in a colon; write a recipe's name behind it, or none"
                )
            return suffix or None, set_id
        try:
            self._store.sets.get(owner, model)
        except NotFound:
            raise self._unknown(model, [item["id"] for item in self.models(owner)]) from None
        if set_id is not None and set_id != model:
            raise RequestError(f"the model is the set {model!r}, but steering names the set {set_id[:100]!r}; name one")
        return None, model

    def _unknown(self, name: str, known: Iterable[str]) -> NotFound:
        hint = did_you_mean(name, known) or f"; this server has {self.name!r} (GET /v1/models lists all)"
        return NotFound(f"there is no model {name[:100]!r}{hint}")

    def _named_parts(
        self, owner: str, suffix: str | None, asked: SteeringBody, told: dict[str, JsonValue]
    ) -> list[Recipe]:
        factors: dict[str, float] = dict(asked.recipes or {})
        for name in (suffix, asked.recipe):
            if name is not None:
                factors[name] = factors.get(name, 0.0) + 1.0
        if factors:
            told["recipes"] = dict(factors)
        return _scaled((self._recipe(owner, name), factor) for name, factor in factors.items())

    def _trait_parts(
        self, owner: str, set_id: str | None, factors: Mapping[str, float], told: dict[str, JsonValue]
    ) -> list[Recipe]:
        if factors:
            told["traits"] = dict(factors)
        if set_id is None:
            return _scaled((self._traits(name), factor) for name, factor in factors.items())
        told["set"] = set_id
        vectors = self._store.sets.vectors(owner, set_id)
        for name in factors:
            if name not in vectors:
                raise RequestError(
                    f"set {set_id[:100]} has no trait {name[:60]!r} (it has: {', '.join(vectors)[:300]})"
                    + did_you_mean(name, vectors)
                )
        return _scaled((vectors[name], factor) for name, factor in factors.items())

    def _routed(self, owner: str, router: Router, prompt: str, told: dict[str, JsonValue]) -> list[Recipe]:
        route = router.route(prompt)
        if route is None:
            return []
        try:
            parts = _scaled([(self._recipe(owner, route.recipe), route.strength)])
        except NotFound:  # The table is the server's, the recipe one that this caller does not have: not their mistake.
            parts = []
        told["route"] = {**route.to_json(), "applied": bool(parts)}
        return parts

    def _with_default(self, parts: list[Recipe], asked: SteeringBody, told: dict[str, JsonValue]) -> Chosen:
        default = self.default if asked.mode == "add" else None
        told["strength"] = asked.strength
        if self.default is not None:
            told |= {"default": self.default.name, "mode": asked.mode}
        if default is None:
            return Chosen(recipe=combine(parts) if parts else None, strength=asked.strength, told=told)
        # The factor is the request's own: what everybody gets is not scaled by it.
        own = _scaled((part, asked.strength) for part in parts)
        return Chosen(recipe=combine([default, *own]), strength=1.0, told=told)

    def _recipe(self, owner: str, name: str) -> Recipe:
        """One of the caller's recipes, else a trait."""
        try:
            return self._store.recipes.load(owner, name)
        except NotFound as missing:
            try:
                return self._traits(name)
            except NotFound as no_trait:
                mine = [record.name for record in self._store.recipes.list(owner, limit=_MOST_NAMES)[0]]
                hint = did_you_mean(name, mine)
                raise NotFound(
                    f"{missing}{hint}" if hint else f"you have no recipe {name[:100]!r}, and {no_trait}"
                ) from None

    def _fitting_traits(self) -> list[str]:
        """The traits that ship for this model."""
        found = []
        for name in trait_names():
            with contextlib.suppress(NotFound, RecipeError):  # One that is damaged says so when it is asked for.
                made_for = self._traits(name).model
                if made_for is None or made_for.matches(self._ref):
                    found.append(name)
        return found


def public_name(ref: ModelRef) -> str:
    """What a model is called in answers: its name in small letters, without folders."""
    name = default_asset().name if ref.id == "default" else ref.id
    return name.replace("\\", "/").rstrip("/").split("/")[-1].removesuffix(".gguf").lower().replace(":", "-")


def _model(name: str, kind: str, owner: str = "steersman", created: datetime | None = None) -> dict[str, Any]:
    return {"id": name, "created": int(created.timestamp()) if created else 0, "owned_by": owner, "kind": kind}


def _scaled(parts: Iterable[tuple[Recipe, float]]) -> list[Recipe]:
    """Each times its factor; one that counts 0 is left out."""
    return [recipe if factor == 1.0 else recipe * factor for recipe, factor in parts if factor != 0.0]


def _check_size(parts: Iterable[Recipe]) -> None:
    """Refuse what would hold up everybody's answers, though each part of it was small enough to be kept.

    Raises:
        RecipeError: too many edits or conditions.
    """
    parts = list(parts)
    n_edits = sum(len(part.edits) for part in parts)
    n_conditions = sum(max(1, len(leaves(condition))) for part in parts for condition in part.conditions)
    if n_edits > MOST_EDITS or n_conditions > MOST_CONDITIONS:
        raise RecipeError(
            f"steering: {n_edits} edits with {n_conditions} conditions together; {MOST_EDITS} with {MOST_CONDITIONS} are the "
            "most, so name fewer recipes"
        )
