"""Conditional steering (CAST, arXiv:2409.05907): steer only the requests that a condition on their prompt holds for.

A condition is fitted on prompts that should trigger and prompts that should not: a direction per layer from the first part of
them; layer, comparison and threshold by F1 on the second; precision, recall and F1 on the third, by the code that the engine
runs. What comes out is a `Condition` like any other: it works per request, and joins others by `AllOf`, `AnyOf` and `Not`.

Where we differ from the paper: it compares the *average* over the prompt's tokens; a condition here reads single tokens as they
pass, so ours reads the token that ends the user's turn (or any token). Its similarity is `cos(h, tanh(projection))`, which
forgets the sign; ours is the signed cosine or projection. Knows prompts and models; nothing of what is done where the condition
holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import JsonValue
from torch import Tensor

from steersman.errors import DataError, RecipeError
from steersman.facts import check_choices, fact
from steersman.models.blocks import check_layer
from steersman.models.language_model import LanguageModel
from steersman.models.residuals import ModelProfile
from steersman.steering.condition import Above, AllOf, AnyOf, Condition, Not
from steersman.steering.edits import Edit
from steersman.steering.methods.prompt_conditions import Reader, evaluate, extremes, over_the_prompt, read_tokens
from steersman.steering.methods.prompt_sets import Ids, Parts, PromptSets, residuals, split, tokens_of
from steersman.steering.methods.thresholds import Cut, Detection, best_cut
from steersman.steering.recipe import Recipe
from steersman.steering.target import Direction
from steersman.steering.vector import Vector

Comparison = Literal["above", "below"]


@fact
class Search:
    """What a condition reads, and how."""

    layers: tuple[int, ...] | None = None
    """Decoder blocks to try; by default those of the first half. A condition gates edits at its own layer or later ones."""
    vector: Literal["mean", "pca"] = "mean"
    """`mean`: mean of the triggers minus mean of the others; `pca`: the first principal component of both about their common
    mean, as in the paper."""
    measure: Literal["cosine", "projection"] = "cosine"
    """What is compared with the threshold."""
    read: Literal["turn_end", "any"] = "turn_end"
    """`turn_end`: only the token that ends a user's turn; `any`: every token but the first, of the answer too, so that what is
    written can trigger as well. Models without a chat template have no turns: `any`."""
    comparison: Comparison | None = None
    """By default both are tried; `any` knows `above` alone."""
    seed: int = 0
    """Of the split into parts."""

    def __post_init__(self) -> None:
        check_choices(self, DataError)
        if self.layers == ():
            raise DataError("no layers to try; leave them out for those of the first half")
        if self.read == "any" and self.comparison == "below":
            raise DataError("of any token only 'above' can be asked; read 'turn_end', or leave the comparison out")


@fact
class Fitted:
    """A condition and how well it tells prompts apart."""

    condition: Condition
    layer: int
    comparison: Comparison
    cut: Cut
    """Threshold and F1 on the prompts that chose it."""
    held_out: Detection
    """On prompts used nowhere before."""
    grid: tuple[dict[str, JsonValue], ...]
    """Best F1 of every layer and comparison that was tried."""
    data: dict[str, JsonValue]
    """Counts, hash of the prompts, settings."""

    @property
    def facts(self) -> dict[str, JsonValue]:
        """All of it but the condition, for a recipe's data."""
        return {
            "layer": self.layer,
            "comparison": self.comparison,
            "threshold": self.cut.threshold,
            "validation_f1": self.cut.f1,
            "held_out": asdict(self.held_out),
            "grid": list(self.grid),
            **self.data,
        }


def fit(
    model: LanguageModel,
    trigger: Sequence[str],
    other: Sequence[str],
    *,
    profile: ModelProfile,
    search: Search | None = None,
) -> Fitted:
    """Fit a condition on a direction that trigger prompts have and others lack.

    Args:
        model: the model to read.
        trigger: prompts that the condition should hold for.
        other: prompts that it should not hold for; the more of the kinds that will be asked, the better.
        profile: the model's mean residual norms.
        search: what is tried.

    Raises:
        DataError: prompts that cannot be split or read, or another model's profile.
        ModelError: a layer that the model does not have.
    """
    search = search or Search()
    layers = tuple(range(max(1, model.n_layers // 2))) if search.layers is None else search.layers
    for layer in layers:
        check_layer(layer, model.n_layers)
    parts, tokens = prepared(model, trigger, other, profile, search), read_tokens(model, search.read)
    vectors = _vectors(model, parts.train, layers, search.vector, tokens)
    readers = {layer: _reader(vector, search.measure, profile.mean_norms[layer]) for layer, vector in vectors.items()}
    seen = extremes(model, parts.validation.both, readers, tokens)
    ways: tuple[Comparison, ...] = ("above", "below") if tokens else ("above",)
    ways = ways if search.comparison is None else (search.comparison,)
    cuts: dict[tuple[int, Comparison], Cut] = {}
    for layer in layers:
        for way in ways:
            column = seen[layer][0 if way == "above" else 1, :, 0]
            cuts[layer, way] = best_cut(column.tolist(), parts.validation.truth)
    layer, way = max(cuts, key=lambda key: (cuts[key].f1, cuts[key].margin))
    cut = cuts[layer, way]
    threshold = cut.threshold if way == "above" else -cut.threshold
    target = Direction(vector=Vector(vectors[layer]))
    leaf = Above(layer=layer, target=target, threshold=threshold, measure=search.measure)
    condition = over_the_prompt(leaf if way == "above" else Not(item=leaf), tokens)
    return Fitted(
        condition=condition,
        layer=layer,
        comparison=way,
        cut=dataclasses.replace(cut, threshold=threshold),
        held_out=evaluate(model, condition, parts.test, profile=profile, seed=search.seed),
        grid=tuple({"layer": at, "comparison": how, "f1": each.f1} for (at, how), each in cuts.items()),
        data=noted(parts, search, tokens),
    )


def gate(recipe: Recipe, fitted: Fitted, *, negate: bool = False, join: Literal["and", "or"] = "and") -> Recipe:
    """The recipe, with every edit waiting for the condition; facts and scores go into its data.

    Args:
        recipe: what is done where the condition holds. Edits that wait for something already then wait for both, or either.
        fitted: the condition.
        negate: wait until it does *not* hold. It does not hold anywhere before the turn has ended either, so that edits of
            scope `all` are then narrowed to the answer.
        join: with what the edits wait for already.

    Raises:
        RecipeError: no edits, one at a layer before the condition's, or vectors of another width.
    """
    if join not in ("and", "or"):
        raise RecipeError(f"conditions join by 'and' or 'or', not {join!r}")
    if not recipe.edits:
        raise RecipeError(f"recipe {recipe.name!r} has no edits that could wait for a condition")
    condition = Not(item=fitted.condition) if negate else fitted.condition
    before = recipe.data.get("conditions")
    noted: list[JsonValue] = [
        *(before if isinstance(before, list) else []),
        {**fitted.facts, "negate": negate, "join": join},
    ]
    edits = tuple(_gated(edit, condition, negate, join) for edit in recipe.edits)
    return dataclasses.replace(recipe, edits=edits, evidence=None, data={**recipe.data, "conditions": noted})


def prepared(
    model: LanguageModel, trigger: Sequence[str], other: Sequence[str], profile: ModelProfile, search: Search
) -> Parts:
    """The prompts in three parts.

    Raises:
        DataError: prompts that cannot be split, or another model's profile.
    """
    if profile.weights_hash != model.ref.weights_hash:
        raise DataError(f"the profile belongs to another model than {model.name}; measure it again")
    return split(trigger, other, seed=search.seed)


def _vectors(
    model: LanguageModel, prompts: PromptSets, layers: Sequence[int], how: str, tokens: Ids
) -> dict[int, Float[Tensor, " d_model"]]:
    """A direction per layer, pointing to the triggers, from the mean over each prompt's last token to look at (or all)."""
    sequences = tokens_of(model, prompts.both)
    rows: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for ids, hidden in zip(sequences, residuals(model, sequences, layers), strict=True):
        at = [place for place, token in enumerate(ids[1:]) if not tokens or token in tokens]
        for layer in layers:
            rows[layer].append(hidden[layer][at[-1:] if tokens else at].float().mean(0).cpu())
    n, found = len(prompts.trigger), {}
    for layer in layers:
        stacked = torch.stack(rows[layer])
        difference = stacked[:n].mean(0) - stacked[n:].mean(0)
        if how == "pca":
            # Lee et al., arXiv:2409.05907, section 3.1: both kinds about the mean of all. A component has no sign; ours
            # points to the triggers.
            component = torch.linalg.svd(stacked - stacked.mean(0), full_matrices=False).Vh[0]
            difference = component * torch.sign(component @ difference)
        if not difference.any():
            raise DataError(f"the two sets do not differ at layer {layer}; read 'any' token, or other layers")
        found[layer] = difference
    return found


def _reader(vector: Float[Tensor, " d_model"], measure: str, mean_norm: float) -> Reader:
    unit = Vector(vector).unit().tensor

    def read(hidden: Tensor) -> Tensor:
        reading = hidden @ unit.to(hidden.device)
        scale = hidden.norm(dim=-1).clamp(min=1e-12) if measure == "cosine" else mean_norm
        return (reading / scale)[:, None]

    return read


def _gated(edit: Edit, condition: Condition, negate: bool, join: str) -> Edit:
    items = (condition,) if edit.when is None else (edit.when, condition)
    when = condition if len(items) == 1 else AllOf(items=items) if join == "and" else AnyOf(items=items)
    late = negate and edit.where.scope == "all" and edit.where.positions is None
    where = dataclasses.replace(edit.where, scope="generated") if late else edit.where
    return dataclasses.replace(edit, when=when, where=where)


def noted(parts: Parts, search: Search, tokens: Ids) -> dict[str, JsonValue]:
    """Where a condition comes from: counts, hash of the prompts, settings."""
    whole = [len(each.trigger) for each in (parts.train, parts.validation, parts.test)]
    rest = [len(each.other) for each in (parts.train, parts.validation, parts.test)]
    return {
        "prompts": {"trigger": list(whole), "other": list(rest)},
        "duplicates_dropped": parts.duplicates_dropped,
        "prompts_sha256": parts.sha256,
        "tokens_read": list(tokens),
        "vector": search.vector,
        "measure": search.measure,
        "read": search.read,
        "seed": search.seed,
    }
