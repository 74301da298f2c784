"""Fit one recipe: from pairs that came along, from a shipped contrast set, from personas, or from the name of a trait."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pydantic import JsonValue

from steersman.auto.trait_set import TraitSettings
from steersman.auto.trait_set import fit_trait as fit_by_name
from steersman.models.sentence_encoder import load_encoder
from steersman.server.job_kinds.desk import Desk, Done
from steersman.server.jobs_bodies import FitBody, PairBody
from steersman.steering.methods import METHODS
from steersman.steering.pairs import Pair, load_named
from steersman.steering.personas import enough_openings, fit_trait, persona_pairs
from steersman.steering.recipe import Recipe
from steersman.store.facts import JobRecord


class Fit:
    """A recipe of its owner's."""

    def run(self, job: JobRecord, desk: Desk) -> Done:
        """As `Kind`."""
        asked = FitBody.model_validate(job.request)
        desk.tell("progress", {"stage": "fit", "done": 0, "total": 1, "note": asked.name})
        recipe = _fitted(asked, desk)
        if asked.strength != 1.0:  # Scaled, a recipe loses its evidence.
            recipe = asked.strength * recipe
        recipe = dataclasses.replace(recipe, name=asked.name, description=asked.description or recipe.description)
        desk.tell("progress", {"stage": "fit", "done": 1, "total": 1, "note": asked.name})
        edits: list[JsonValue] = [{"layer": edit.layer, "strength": edit.strength} for edit in recipe.edits]
        result: dict[str, JsonValue] = {
            "name": recipe.name,
            "method": recipe.method,
            "edits": edits,
            "data": recipe.data,
            "evidence": recipe.evidence,
        }
        return Done(result, recipes={asked.name: recipe})


def pairs_of(bodies: Sequence[PairBody]) -> list[Pair]:
    """Pairs from what came over HTTP.

    Raises:
        DataError: a pair that is none.
    """
    return [
        Pair(positive=each.positive, negative=each.negative)
        if each.prompt is None
        else Pair.answers(each.prompt, each.positive, each.negative)
        for each in bodies
    ]


def _fitted(asked: FitBody, desk: Desk) -> Recipe:
    engine = desk.engine
    model, profile = engine.model, engine.profile
    if asked.trait is not None:
        settings = TraitSettings(layers=tuple(asked.layers or ()), seed=asked.seed)
        return fit_by_name(
            engine, asked.trait, encoder=load_encoder(), settings=settings, ask=desk.ask, report=desk.tell
        )
    if asked.personas is not None:
        said = asked.personas
        openings = enough_openings(said.prompts)
        pairs = persona_pairs(said.positive_examples, said.negative_examples, openings, chat=model.is_chat)
        method = asked.method or "lat"
        return fit_trait(model, pairs, profile=profile, name=asked.name, method=method, layers=asked.layers)
    pairs = load_named(asked.contrast_set) if asked.contrast_set is not None else pairs_of(asked.pairs or [])
    layers = asked.layers or [min(round(0.3 * model.n_layers), model.n_layers - 1)]
    return METHODS[asked.method or "caa"](model, pairs, profile=profile, layers=layers, name=asked.name)
