"""Fit a set of steering vectors, one a trait, from personas; begun again, a job goes on behind the last trait that was fitted."""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue, TypeAdapter

from steersman.errors import Conflict, RecipeError
from steersman.facts import fact
from steersman.models.language_model import LanguageModel
from steersman.server.job_kinds.desk import Desk, Done
from steersman.steering.personas import enough_openings, fit_trait, persona_pairs
from steersman.steering.recipe import Recipe
from steersman.steering.recipe_file import load_recipe, save_recipe
from steersman.store.facts import JobRecord


@fact
class SetRequest:
    """What a set is fitted from; what the job of a set has as its request."""

    set: str | None = None
    """The set's id; the store fills it in."""
    model: str
    """Weights hash of the model that the set was asked for."""
    dimensions: dict[str, dict[str, list[str]]]
    """Examples of each trait, `positive_examples` and `negative_examples`."""
    prompts: list[str] | None
    """What both personas go on with; None: the openings that ship."""
    method: str = "lat"
    layers: list[int] | None = None


class FitSet:
    """One recipe a trait."""

    def run(self, job: JobRecord, desk: Desk) -> Done:
        """As `Kind`."""
        asked, model = request_of(job), desk.engine.model
        if asked.model != model.ref.weights_hash:
            raise Conflict(f"the set was asked for while another model was loaded; create it again for {model.name}")
        vectors: dict[str, Recipe] = {}
        n = len(asked.dimensions)
        for number, trait in enumerate(asked.dimensions, 1):
            desk.tell("progress", {"stage": "traits", "done": number - 1, "total": n, "note": trait})
            vectors[trait] = _fitted(asked, trait, desk, desk.folder / f"trait-{number}.json")
        desk.tell("progress", {"stage": "traits", "done": n, "total": n, "note": ""})
        result: dict[str, JsonValue] = {
            trait: {"layers": list(recipe.layers), "data": recipe.data} for trait, recipe in vectors.items()
        }
        return Done({"set": asked.set, "traits": result}, vectors=vectors)


def request_of(job: JobRecord) -> SetRequest:
    """The request of a job as facts."""
    return TypeAdapter(SetRequest).validate_python(job.request)


def _fitted(asked: SetRequest, trait: str, desk: Desk, kept: Path) -> Recipe:
    model = desk.engine.model
    found = _kept(kept, model)
    if found is not None:
        return found
    sides = asked.dimensions[trait]
    openings = enough_openings(asked.prompts)
    pairs = persona_pairs(sides["positive_examples"], sides["negative_examples"], openings, chat=model.is_chat)
    made = fit_trait(model, pairs, profile=desk.engine.profile, name=trait, method=asked.method, layers=asked.layers)
    save_recipe(made, kept)
    return made


def _kept(path: Path, model: LanguageModel) -> Recipe | None:
    """What an earlier attempt came to; None where there is nothing that can be used."""
    try:
        recipe = load_recipe(path)
        recipe.check_fits(model)
    except RecipeError:
        return None
    return recipe
