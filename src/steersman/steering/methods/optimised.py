"""One dense vector, trained so that the model prefers the positive answers to the negative ones, its norm held in.

The blocks up to the layer run once a text (`UpperModel`); every step is a forward and a backward pass through the blocks above.
The losses stand in `preferences`: BiPO (arXiv:2406.00045) and RePS (arXiv:2505.20809). Knows pairs, models and gradients;
nothing of features, generation or judges.

Few examples are the usual case, and `d_model` free numbers learn twenty pairs by heart at once. Four things hold that back: the
norm of the vector is limited, a step sees few pairs, pairs that no step sees choose the vector, and training ends when those
get no better.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from pydantic import JsonValue
from torch import Tensor

from steersman.errors import DataError, did_you_mean
from steersman.facts import check_finite, fact
from steersman.models.blocks import check_layer
from steersman.models.language_model import LanguageModel
from steersman.models.residuals import ModelProfile
from steersman.models.upper import Prepared, Reading, UpperModel
from steersman.steering.contrast import Span, locate
from steersman.steering.edits import Add
from steersman.steering.methods.preferences import PREFERENCES, Preference, Push, Sides
from steersman.steering.pairs import Pair, canonical, distinct
from steersman.steering.recipe import Recipe
from steersman.steering.vector import Vector

FEWEST_PAIRS = 4
_BEGINNING = 0.01
"""Length of the random vector that training begins with, in mean residual norms."""


@fact
class Training:
    """How the vector is trained."""

    preference: str = "reps"
    """`reps` or `bipo`."""
    steps: int = 40
    """At most."""
    pairs_per_step: int = 4
    step_length: float = 0.04
    """About as far as one step moves the vector, in mean residual norms."""
    max_norm: float = 0.25
    """Of the vector, in mean residual norms."""
    validation_share: float = 0.25
    """Of the pairs, which choose among the vectors and are never trained on."""
    validate_every: int = 4
    patience: int = 3
    """End after so many validations without a better one."""
    seed: int = 0
    """Of the split, the order of the pairs, the beginning and the factors."""

    def __post_init__(self) -> None:
        if self.preference not in PREFERENCES:
            raise DataError(
                f"unknown preference {self.preference!r}; use one of {', '.join(PREFERENCES)}"
                + did_you_mean(self.preference, PREFERENCES)
            )
        for name in ("steps", "pairs_per_step", "validate_every", "patience"):
            if getattr(self, name) < 1:
                raise DataError(f"training: {name} must be 1 or more, not {getattr(self, name)}")
        for name in ("step_length", "max_norm", "validation_share"):
            check_finite("training", **{name: getattr(self, name)})
            if getattr(self, name) <= 0:
                raise DataError(f"training: {name} must be above 0, not {getattr(self, name):g}")
        if self.validation_share >= 1:
            raise DataError(f"training: validation_share must be below 1, not {self.validation_share:g}")


@dataclass(frozen=True, slots=True)
class Trained:
    """What training at one layer ended with."""

    vector: Float[Tensor, " d_model"]
    loss: float
    """Of the validation pairs."""
    history: tuple[dict[str, JsonValue], ...]
    """Step, validation loss, share of validation pairs whose positive answer gained more, and norm; step 0 is the beginning."""


def fit(
    model: LanguageModel,
    pairs: Sequence[Pair],
    *,
    profile: ModelProfile,
    layers: Sequence[int],
    name: str,
    training: Training | None = None,
) -> Recipe:
    """Fit one `add` edit, `(d_model,)`: train a vector at each layer alone, and keep the one that validation likes best.

    The recipe at 1 adds the vector as it was trained.

    Args:
        model: the model to train on, and the only one that the recipe fits.
        pairs: answers to prefer, and answers to prefer them to; repeated pairs count once.
        profile: the model's mean residual norms.
        layers: decoder blocks to try, counted from 0.
        name: of the recipe.
        training: how to train.

    Raises:
        DataError: fewer than four different pairs, texts that cannot be read, another model's profile, or a vector that makes
            validation pairs no better at any layer.
        ModelError: a layer that the model does not have, or the last one, above which nothing could be trained.
    """
    training = training or Training()
    kept = _checked(model, pairs, profile, layers)
    order = random.Random(training.seed).sample(range(len(kept)), len(kept))
    held = min(max(2, round(training.validation_share * len(kept))), len(kept) - 2)
    readings = [_readings(model, kept[index], index + 1) for index in order]
    found = {layer: train(model, layer, readings[held:], readings[:held], profile, training) for layer in layers}
    best = min(found, key=lambda layer: found[layer].loss)
    if all(len(each.history) < 2 or each.loss >= _number(each.history[0]["loss"]) for each in found.values()):
        raise DataError(
            f"no vector made the {held} validation pairs better; give more pairs, other layers, or a larger max_norm"
        )
    vector = found[best].vector
    edit = Add(layer=best, vector=Vector(vector), strength=float(vector.norm()) / profile.mean_norms[best])
    data: dict[str, JsonValue] = {
        "pairs": len(kept),
        "duplicates_dropped": len(pairs) - len(kept),
        "pairs_sha256": hashlib.sha256(canonical([[p.positive, p.negative] for p in kept]).encode()).hexdigest(),
        "layers": list(found),
        "validation_pairs": held,
        "training": {each: getattr(training, each) for each in Training.__dataclass_fields__},
        "history": {str(layer): list(each.history) for layer, each in found.items()},
    }
    return Recipe(name=name, edits=(edit,), model=model.ref, method="optimised", data=data)


def train(
    model: LanguageModel,
    layer: int,
    train_on: Sequence[tuple[Reading, Reading]],
    validate_on: Sequence[tuple[Reading, Reading]],
    profile: ModelProfile,
    training: Training,
) -> Trained:
    """Train one vector at one layer by Adam; what the validation pairs like best is kept.

    Args:
        model: what is trained through; its weights stay as they are.
        layer: decoder block whose output the vector is added to.
        train_on: positive and negative answers of each pair.
        validate_on: the same, of pairs that no step sees.
        profile: the model's mean residual norms.
        training: the settings.
    """
    upper, draw, preference = UpperModel(model, layer), random.Random(training.seed), PREFERENCES[training.preference]()
    size = training.pairs_per_step
    batches = [_Answers(upper, train_on[i : i + size]) for i in range(0, len(train_on), size)]
    validation, scale = _Answers(upper, validate_on), profile.mean_norms[layer]
    made = torch.randn(model.d_model, generator=torch.Generator().manual_seed(training.seed))
    # In mean residual norms, on the CPU: the same seed begins alike everywhere.
    parameter = (made / made.norm() * _BEGINNING).requires_grad_()
    optimiser = torch.optim.Adam([parameter], lr=training.step_length / math.sqrt(model.d_model), betas=(0.8, 0.95))
    best, best_loss, history, stale = parameter.detach().clone(), math.inf, list[dict[str, JsonValue]](), 0
    order: list[_Answers] = []
    for step in range(training.steps + 1):
        if step:
            order = order or draw.sample(batches, len(batches))
            loss = order.pop().loss(preference, parameter * scale, draw.choice(preference.factors))
            (parameter.grad,) = torch.autograd.grad(loss, parameter)
            optimiser.step()
            with torch.no_grad():
                parameter.mul_(min(1.0, training.max_norm / max(float(parameter.norm()), 1e-12)))
        if step % training.validate_every == 0 or step == training.steps:
            entry = validation.check(preference, parameter.detach() * scale)
            history.append({"step": step, **entry, "norm": round(float(parameter.detach().norm()), 4)})
            stale += 1
            if entry["loss"] < best_loss:
                best, best_loss, stale = parameter.detach().clone(), entry["loss"], 0
            if stale >= training.patience:
                break
    return Trained(best * scale, best_loss, tuple(history))


class _Answers:
    """Some pairs that the lower blocks have been through."""

    def __init__(self, upper: UpperModel, pairs: Sequence[tuple[Reading, Reading]]) -> None:
        self.upper, self.n = upper, len(pairs)
        flat = [side for pair in pairs for side in pair]
        self.batches: list[Prepared] = upper.prepare(flat)
        # Batches hold the texts from short to long; this is where each of ours went.
        order = sorted(range(len(flat)), key=lambda index: len(flat[index].ids))
        self.place = torch.tensor(order).argsort()
        with torch.no_grad():
            self.plain = self.predict(torch.zeros_like)

    def predict(self, push: Push) -> Sides:
        sums, counts = [], []
        for batch in self.batches:
            tokens = batch.wanted.sum(1)
            parts = torch.split(self.upper.logprobs(batch, push(batch.hidden)), tokens.tolist())
            sums.append(torch.stack([part.sum() for part in parts]))
            counts.append(tokens.float())
        both = [torch.cat(each).cpu()[self.place].view(self.n, 2) for each in (sums, counts)]
        return Sides(both[0][:, 0], both[0][:, 1], both[1][:, 0], both[1][:, 1])

    def loss(self, preference: Preference, vector: Tensor, factor: float) -> Float[Tensor, ""]:
        return preference(vector.to(self.upper.model.device), factor, self.predict, self.plain)

    @torch.no_grad()
    def check(self, preference: Preference, vector: Tensor) -> dict[str, float]:
        pushed, plain = self.predict(lambda _: vector.to(self.upper.model.device)), self.plain
        gained = (pushed.positive - plain.positive) - (pushed.negative - plain.negative)
        return {"loss": float(self.loss(preference, vector, 1.0)), "turned": float((gained > 0).float().mean())}


def _checked(model: LanguageModel, pairs: Sequence[Pair], profile: ModelProfile, layers: Sequence[int]) -> list[Pair]:
    if profile.weights_hash != model.ref.weights_hash:
        raise DataError(f"the profile belongs to another model than {model.name}; measure it again")
    if not layers:
        raise DataError("no layer to train at; name at least one")
    for layer in layers:
        check_layer(layer, model.n_layers)
    kept = distinct(pairs)
    if len(kept) < FEWEST_PAIRS:
        raise DataError(
            f"there are {len(kept)} different pairs; give at least {FEWEST_PAIRS} to train and validate on, twenty are better"
        )
    return kept


def _readings(model: LanguageModel, pair: Pair, number: int) -> tuple[Reading, Reading]:
    try:
        sides: tuple[Span, Span] = locate(model, pair.positive, "answer"), locate(model, pair.negative, "answer")
    except DataError as error:
        raise DataError(f"pair {number}: {error}") from error
    return Reading(sides[0].ids, sides[0].start), Reading(sides[1].ids, sides[1].start)


def _number(value: JsonValue) -> float:
    assert isinstance(value, int | float)
    return float(value)
