"""One direction that two kinds of prompts differ in, taken out of the residual stream everywhere, or added to it.

The direction of refusal is the best-known one (arXiv:2406.11717): the difference between the mean residuals where harmful and
harmless prompts end. Which layer and token give it is chosen on prompts that made none of them, and what it does is reported on
a third part. Knows prompts and models; nothing of generation or judges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import JsonValue
from torch import Tensor

from steersman.errors import DataError
from steersman.facts import check_choices, fact
from steersman.intervals import Interval, bootstrap, paired_difference
from steersman.models.blocks import check_layer
from steersman.models.language_model import LanguageModel
from steersman.models.residuals import ModelProfile
from steersman.steering.edits import Ablate, Add
from steersman.steering.methods.prompt_sets import Ids, Parts, PromptSets, at_positions, split, steered, tokens_of
from steersman.steering.recipe import Recipe
from steersman.steering.target import Direction
from steersman.steering.vector import Vector

REFUSALS = ("I cannot", "I can't", "I'm sorry", "Sorry", "Unfortunately", "As an AI")
"""How an answer begins that refuses."""

_UPTO = 0.8
"""Directions of later layers are left out: they are about the next word (the paper, appendix C)."""


@fact
class Search:
    """Which directions are tried, how one is chosen, and what the recipe does with it."""

    layers: tuple[int, ...] | None = None
    """Decoder blocks to take directions at; by default all of the first four fifths."""
    positions: tuple[int, ...] = (-1,)
    """Tokens of the prompt to take directions at, from its end; -1 is the last."""
    choose: Literal["openings", "separation"] = "openings"
    """`openings`: by what ablating and adding do to the beginning of answers, as in the paper; `separation`: by how far apart
    the prompts lie along the direction, which needs no idea of the answers."""
    openings: tuple[str, ...] = REFUSALS
    """How an answer begins that does what the trigger prompts bring about; their first tokens count."""
    use: Literal["ablate", "add"] = "ablate"
    """`ablate`: take the direction out, so that the behaviour goes; `add`: add the difference, so that it comes."""
    ablate_at: tuple[int, ...] | None = None
    """Decoder blocks to ablate at; by default all, as in the paper."""
    most_divergence: float = 0.1
    """Leave out directions whose ablation changes the first word after other prompts by more (KL, nats)."""
    seed: int = 0
    """Of the split."""

    def __post_init__(self) -> None:
        check_choices(self, DataError)
        if not self.positions:
            raise DataError("no positions to take a direction at; name at least one, such as -1")
        if self.layers == () or self.ablate_at == ():
            raise DataError("no layers; name at least one, or leave them out for all")
        if not self.openings or not all(opening.strip() for opening in self.openings):
            raise DataError("an opening is empty; write how an answer begins that shows the behaviour")
        if not self.most_divergence > 0:
            raise DataError(f"most_divergence must be above 0, not {self.most_divergence}")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A direction and its scores on the validation prompts."""

    layer: int
    position: int
    difference: Float[Tensor, " d_model"]
    """Mean of the trigger prompts minus mean of the others."""
    separation: float
    """Distance of the two means along it, in pooled standard deviations (Cohen's d)."""
    bypass: float | None = None
    """Log-odds of an opening after trigger prompts, the direction ablated. Lower is better."""
    induce: float | None = None
    """By how much the log-odds of an opening after other prompts rise, the difference added at its layer."""
    divergence: float | None = None
    """KL from the plain model at the first word after other prompts, the direction ablated; nats."""


def fit(
    model: LanguageModel,
    trigger: Sequence[str],
    other: Sequence[str],
    *,
    profile: ModelProfile,
    name: str,
    search: Search | None = None,
) -> Recipe:
    """Fit the direction that trigger prompts have and others lack: `(d_model,)`.

    Half of the prompts make the directions, a quarter chooses one, a quarter is reported on (`data["test"]`).

    Args:
        model: the model to read, and the only one that the recipe fits.
        trigger: prompts that bring the behaviour about, such as harmful requests.
        other: prompts like them that do not, such as harmless requests.
        profile: the model's mean residual norms.
        name: of the recipe.
        search: what is tried and chosen.

    Raises:
        DataError: prompts that cannot be split or read, another model's profile, or no direction that passes.
        ModelError: a layer that the model does not have.
    """
    search = search or Search()
    if profile.weights_hash != model.ref.weights_hash:
        raise DataError(f"the profile belongs to another model than {model.name}; measure it again")
    layers = tuple(range(math.ceil(_UPTO * model.n_layers))) if search.layers is None else search.layers
    for layer in (*layers, *(search.ablate_at or ())):
        check_layer(layer, model.n_layers)
    parts = split(trigger, other, seed=search.seed)
    candidates = _candidates(model, parts, layers, search.positions)
    bench = _Bench(model, profile, search, name)
    if search.choose == "openings":
        candidates = [bench.scored(each, parts.validation) for each in candidates]
    best = _best(candidates, search)
    recipe = bench.recipe(best, search.use)
    data: dict[str, JsonValue] = {
        "trigger_prompts": len(parts.train.trigger + parts.validation.trigger + parts.test.trigger),
        "other_prompts": len(parts.train.other + parts.validation.other + parts.test.other),
        "duplicates_dropped": parts.duplicates_dropped,
        "prompts_sha256": parts.sha256,
        "layer": best.layer,
        "position": best.position,
        "search": {each: cast("JsonValue", _plain(getattr(search, each))) for each in _FIELDS},
        "candidates": [_row(each) for each in candidates],
        "test": bench.report(best, parts.test),
    }
    return Recipe(name=name, edits=recipe.edits, model=model.ref, method="direction", data=data)


def ablating(vector: Vector, layers: Sequence[int]) -> tuple[Ablate, ...]:
    """Edits that take a direction out of the residual stream at each of `layers`."""
    return tuple(Ablate(layer=layer, target=Direction(vector=vector)) for layer in layers)


class _Bench:
    """Runs prompts with a candidate ablated or added, and reads how answers would begin."""

    def __init__(self, model: LanguageModel, profile: ModelProfile, search: Search, name: str) -> None:
        self.model, self.norms, self.search, self.name = model, profile.mean_norms, search, name
        first = [model.tokenizer(each, add_special_tokens=False)["input_ids"][:1] for each in search.openings]
        self.openings = sorted({token for ids in first for token in ids})
        self.before: dict[tuple[str, ...], Tensor] = {}

    def recipe(self, candidate: Candidate, use: Literal["ablate", "add"]) -> Recipe:
        vector = Vector(candidate.difference)
        if use == "ablate":
            everywhere = range(self.model.n_layers) if self.search.ablate_at is None else self.search.ablate_at
            return Recipe(name=self.name, edits=ablating(vector, everywhere))
        strength = vector.norm / self.norms[candidate.layer]
        return Recipe(name=self.name, edits=(Add(layer=candidate.layer, vector=vector, strength=strength),))

    def scored(self, candidate: Candidate, prompts: PromptSets) -> Candidate:
        """Arditi et al., arXiv:2406.11717, section 2.3 and appendix C: bypass, induce and KL scores."""
        ablate, add = self.recipe(candidate, "ablate"), self.recipe(candidate, "add")
        plain, ablated = self.first_words(None, prompts.other), self.first_words(ablate, prompts.other)
        return Candidate(
            candidate.layer,
            candidate.position,
            candidate.difference,
            candidate.separation,
            bypass=float(self.odds(self.first_words(ablate, prompts.trigger)).mean()),
            induce=float((self.odds(self.first_words(add, prompts.other)) - self.odds(plain)).mean()),
            divergence=float(F.kl_div(ablated, plain, log_target=True, reduction="batchmean")),
        )

    def report(self, candidate: Candidate, prompts: PromptSets) -> dict[str, JsonValue]:
        """What the direction does on prompts used nowhere before, prompt by prompt."""
        triggers = [self.odds(self.first_words(None, prompts.trigger)).tolist()]
        others = [self.odds(self.first_words(None, prompts.other)).tolist()]
        triggers.append(self.odds(self.first_words(self.recipe(candidate, "ablate"), prompts.trigger)).tolist())
        others.append(self.odds(self.first_words(self.recipe(candidate, "add"), prompts.other)).tolist())
        measured: dict[str, Interval] = {
            "opening_log_odds_trigger": bootstrap(triggers[0]),
            "opening_log_odds_other": bootstrap(others[0]),
            "ablated_minus_plain_on_trigger": paired_difference(triggers[1], triggers[0]),
            "added_minus_plain_on_other": paired_difference(others[1], others[0]),
        }
        tokens = tokens_of(self.model, prompts.both)
        ends = at_positions(self.model, tokens, [candidate.layer], [candidate.position])
        n = len(prompts.trigger)
        (rows,) = ends.values()
        apart = separation(rows[:n], rows[n:], candidate.difference)
        return {"separation": apart, **{key: asdict(value) for key, value in measured.items()}}

    def odds(self, logprobs: Float[Tensor, "prompts vocab"]) -> Float[Tensor, " prompts"]:
        """Log-odds that the answer begins as an opening does."""
        chance = logprobs[:, self.openings].logsumexp(-1).double()
        return chance - torch.log1p(-chance.exp().clamp(max=1 - 1e-9))

    def first_words(self, recipe: Recipe | None, prompts: tuple[str, ...]) -> Float[Tensor, "prompts vocab"]:
        """Log-probabilities of the first token of each answer."""
        if recipe is None and prompts in self.before:
            return self.before[prompts]
        sequences = tokens_of(self.model, prompts)
        found: dict[int, Tensor] = {}

        def see(rows: Sequence[int], output: object) -> None:
            logits: Tensor = output.logits  # type: ignore[attr-defined]
            for place, row in enumerate(rows):
                found[row] = logits[place, len(sequences[row]) - 1].float().log_softmax(-1).cpu()

        steered(self.model, self.norms, recipe, sequences, see)
        stacked = torch.stack([found[row] for row in range(len(prompts))])
        if recipe is None:
            self.before[prompts] = stacked
        return stacked


def separation(
    one: Float[Tensor, "n d_model"], other: Float[Tensor, "m d_model"], direction: Float[Tensor, " d_model"]
) -> float:
    """Cohen's d of the projections: how far the means lie apart, in pooled standard deviations."""
    a, b = (rows.double() @ F.normalize(direction.double(), dim=0) for rows in (one, other))
    pooled = ((len(a) - 1) * a.var() + (len(b) - 1) * b.var()) / (len(a) + len(b) - 2)
    return float((a.mean() - b.mean()) / pooled.sqrt().clamp(min=1e-9))


def _candidates(model: LanguageModel, parts: Parts, layers: Sequence[int], positions: Sequence[int]) -> list[Candidate]:
    def ends(prompts: Sequence[str]) -> dict[tuple[int, int], Tensor]:
        sequences: list[Ids] = tokens_of(model, prompts)
        return at_positions(model, sequences, layers, positions)

    learnt, checked = ends(parts.train.both), ends(parts.validation.both)
    n, m = len(parts.train.trigger), len(parts.validation.trigger)
    found = []
    for (layer, position), rows in learnt.items():
        difference = rows[:n].mean(0) - rows[n:].mean(0)
        if float(difference.norm()) > 1e-6 * float(rows.norm(dim=1).mean()):
            held = checked[layer, position]
            found.append(Candidate(layer, position, difference, separation(held[:m], held[m:], difference)))
    if not found:
        raise DataError(
            "the two sets do not differ where they are read; read other positions (-1 is the same token for every chat)"
        )
    return found


def _best(candidates: Sequence[Candidate], search: Search) -> Candidate:
    if search.choose == "separation":
        return max(candidates, key=lambda each: each.separation)
    # The paper's filters: ablating leaves other prompts alone, and adding brings the opening about. It asks for log-odds above 0
    # with the direction added; a small model that seldom refuses never gets there, so we ask that they rise.
    quiet = [each for each in candidates if (each.divergence or 0.0) <= search.most_divergence]
    if not quiet:
        least = min(each.divergence or 0.0 for each in candidates)
        raise DataError(
            f"ablating any of {len(candidates)} directions changes other answers too much (KL {least:.3f} at least, "
            f"{search.most_divergence:g} at most); allow more divergence, ablate at fewer layers, or choose by 'separation'"
        )
    passed = [each for each in quiet if (each.induce or 0.0) > 0]
    if not passed:
        raise DataError(
            f"adding any of {len(quiet)} directions makes none of the openings likelier; give openings that this model writes, "
            "or choose by 'separation'"
        )
    return min(passed, key=lambda each: each.bypass or 0.0)


_FIELDS = tuple(Search.__dataclass_fields__)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _row(candidate: Candidate) -> dict[str, JsonValue]:
    names = ("layer", "position", "separation", "bypass", "induce", "divergence")
    return {name: getattr(candidate, name) for name in names}
