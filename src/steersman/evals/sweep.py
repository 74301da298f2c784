"""Write many answers, each with its own recipe and strength, in one batch of the engine; what was written before is not again.

Knows nothing of methods, behaviours or scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from pydantic import JsonValue

from steersman.engine.engine import Engine
from steersman.engine.request import Request, Sampling
from steersman.errors import SteersmanError
from steersman.evals.facts import Asked, Progress, Written
from steersman.evals.store import Ledger, cache_key, recipe_hash
from steersman.models.language_model import Message

_SAVE_EVERY = 16


def answer_all(
    engine: Engine,
    asked: Sequence[Asked],
    *,
    tokens: int,
    kept: Ledger,
    progress: Progress | None = None,
    title: str = "answers",
) -> list[Written]:
    """Greedy answers, in order. One that fails (a strength at which the output is no number) is a gap; the others go on.

    Args:
        engine: whose model answers.
        asked: what is wanted; the same thing is written once.
        tokens: length of each answer at most.
        kept: answers from before; new ones are added as they come.
        progress: told how many are there.
        title: what is told.

    Raises:
        StorageError: the disk refused to keep an answer.
    """
    sampling = Sampling(max_tokens=tokens, repetition_penalty=1.1)
    recipes = {id(each.recipe): recipe_hash(each.recipe) for each in asked}
    keys = [_key(engine, each, recipes[id(each.recipe)], sampling) for each in asked]
    wanted = {key: each for key, each in zip(keys, asked, strict=True) if key not in kept}
    found: dict[str, Written] = {}
    fresh: dict[str, JsonValue] = {}
    done = len(set(keys)) - len(wanted)
    tickets = {}
    try:
        for key, each in wanted.items():
            try:
                tickets[key] = engine.submit(_request(each, sampling))
            except SteersmanError as error:
                found[key] = Written(None, str(error))
        for key, ticket in tickets.items():
            try:
                text = ticket.result().text
                fresh[key] = text
                found[key] = Written(text)
            except SteersmanError as error:
                found[key] = Written(None, str(error))
            if len(fresh) >= _SAVE_EVERY:
                kept.put(fresh)
                fresh = {}
            done += 1
            if progress is not None:
                progress(title, done, len(set(keys)), "")
    finally:
        for ticket in tickets.values():
            ticket.cancel()
        kept.put(fresh)
    return [found.get(key) or Written(str(kept.get(key))) for key in keys]


def _request(asked: Asked, sampling: Sampling) -> Request:
    before = [Message(role="system", content=asked.system)] if asked.system else []
    messages = [*before, Message(role="user", content=asked.prompt)]
    return Request(prompt=messages, recipe=asked.recipe, strength=asked.strength, sampling=sampling)


def _key(engine: Engine, asked: Asked, recipe: str, sampling: Sampling) -> str:
    """Hash of all that decides the answer: model, number format, prompt, recipe, strength, sampling."""
    model = engine.model
    strength = asked.strength if asked.recipe is not None else 0.0
    how: JsonValue = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(sampling).items()}
    return cache_key([
        model.ref.config_hash, model.ref.weights_hash, str(model.hf.dtype), str(model.device.type),
        asked.system, asked.prompt, recipe, strength, how,
    ])  # fmt: skip
