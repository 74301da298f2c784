"""A condition made of SAE features: it holds where any of a few features fires strongly enough.

The features are found on the prompts that make directions in `conditional`, one after the other, each where it raises F1 most;
how many of them is decided on the second part of the prompts, and the third reports. Knows SAEs, prompts and models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from steersman.errors import DataError
from steersman.models.blocks import check_layer
from steersman.models.language_model import LanguageModel
from steersman.models.residuals import ModelProfile
from steersman.sae.model import SparseAutoencoder
from steersman.steering.condition import Above, AnyOf
from steersman.steering.features import latent
from steersman.steering.methods.conditional import Fitted, Search, noted, prepared
from steersman.steering.methods.prompt_conditions import evaluate, extremes, over_the_prompt, read_tokens
from steersman.steering.methods.prompt_sets import Ids
from steersman.steering.methods.thresholds import Cut, best_cut, f1_score
from steersman.steering.target import Latent

_SHORTLIST = 64


class _Found(NamedTuple):
    target: Latent
    cut: Cut
    fired: Bool[Tensor, " prompts"]
    """On the prompts to train on."""


def fit(
    model: LanguageModel,
    sae: SparseAutoencoder,
    trigger: Sequence[str],
    other: Sequence[str],
    *,
    profile: ModelProfile,
    search: Search | None = None,
    features: int = 3,
    labels: Mapping[int, str] | None = None,
) -> Fitted:
    """Fit a condition on at most `features` features of an SAE, joined by or.

    Args:
        model: the model to read.
        sae: whose features are looked at, at its own layer.
        trigger: prompts that the condition should hold for.
        other: prompts that it should not hold for.
        profile: the model's mean residual norms.
        search: which tokens are read, and the seed; the rest of it is about directions.
        features: at most so many.
        labels: what features stand for, by index; for people.

    Raises:
        DataError: prompts that cannot be split or read, another model's profile, or no feature that tells them apart.
        SaeError: an SAE of another model, a topk SAE, or one that normalises token by token: its features cannot be read alone.
        ModelError: the SAE's layer does not exist in the model.
    """
    search, layer = search or Search(read="any"), sae.config.layer
    check_layer(layer, model.n_layers)
    if features < 1:
        raise DataError(f"features must be 1 or more, not {features}")
    sae.check_fits(model.ref)
    if sae.config.d_model != model.d_model:  # An SAE that does not say whose it is.
        raise DataError(
            f"the SAE reads {sae.config.d_model} dimensions, {model.name} has {model.d_model}; take its own SAE"
        )
    parts, tokens = prepared(model, trigger, other, profile, search), read_tokens(model, search.read)
    chosen = _greedy(
        _shortlisted(model, sae, parts.train.both, parts.train.truth, tokens, labels), parts.train.truth, features
    )
    truth = parts.validation.truth
    seen = _readings(model, sae, [each.target for each in chosen], parts.validation.both, tokens)
    fired = [seen[:, place] > each.cut.threshold for place, each in enumerate(chosen)]
    scores = [_f1(torch.stack(fired[:n]).any(0), truth) for n in range(1, len(chosen) + 1)]
    kept = chosen[: scores.index(max(scores)) + 1]
    leaves = tuple(Above(layer=layer, target=each.target, threshold=each.cut.threshold) for each in kept)
    condition = over_the_prompt(AnyOf(items=leaves) if len(leaves) > 1 else leaves[0], tokens)
    return Fitted(
        condition=condition,
        layer=layer,
        comparison="above",
        cut=Cut(threshold=kept[0].cut.threshold, f1=max(scores), margin=kept[0].cut.margin),
        held_out=evaluate(model, condition, parts.test, profile=profile, seed=search.seed),
        grid=tuple({"features": n, "f1": score} for n, score in enumerate(scores, 1)),
        data={
            **noted(parts, search, tokens),
            "vector": "features",
            "measure": "activation",
            "features": [
                {"id": each.target.id, "label": each.target.label, "threshold": each.cut.threshold} for each in kept
            ],
        },
    )


def _shortlisted(
    model: LanguageModel,
    sae: SparseAutoencoder,
    prompts: Sequence[str],
    truth: Sequence[bool],
    tokens: Ids,
    labels: Mapping[int, str] | None,
) -> list[_Found]:
    """The features that fire in most triggers and fewest others, each with its own best threshold."""
    seen = extremes(model, prompts, {sae.config.layer: sae.encode}, tokens)[sae.config.layer][0] > 0
    is_trigger = torch.tensor(truth)
    apart = seen[is_trigger].float().mean(0) - seen[~is_trigger].float().mean(0)
    best = apart.topk(min(_SHORTLIST, len(apart))).indices.tolist()
    targets = [latent(sae, feature, (labels or {}).get(feature)) for feature in best if apart[feature] > 0]
    if not targets:
        raise DataError("no feature fires more often on the prompts that should trigger; use a direction instead")
    readings = _readings(model, sae, targets, prompts, tokens)
    found = []
    for place, target in enumerate(targets):
        cut = best_cut(readings[:, place].tolist(), truth)
        # A latent that does not fire reads 0: a threshold below that would always hold.
        if cut.threshold >= 0:
            found.append(_Found(target, cut, readings[:, place] > cut.threshold))
    if not found:
        raise DataError("no feature tells the prompts apart better than always steering does; use a direction instead")
    return found


def _readings(
    model: LanguageModel, sae: SparseAutoencoder, targets: Sequence[Latent], prompts: Sequence[str], tokens: Ids
) -> Tensor:
    """Largest activation of each latent in each prompt, `(prompts, targets)`, read as the engine reads it."""

    def read(hidden: Tensor) -> Tensor:
        return torch.stack([target.read(hidden) for target in targets], -1)

    return extremes(model, prompts, {sae.config.layer: read}, tokens)[sae.config.layer][0]


def _greedy(found: Sequence[_Found], truth: Sequence[bool], most: int) -> list[_Found]:
    """Features in the order in which they raise F1 when joined by or."""
    chosen, fired, score = list[_Found](), torch.zeros(len(truth), dtype=torch.bool), 0.0
    while len(chosen) < most:
        best = max(found, key=lambda each: _f1(fired | each.fired, truth))
        if (reached := _f1(fired | best.fired, truth)) <= score:
            break
        chosen, fired, score = [*chosen, best], fired | best.fired, reached
    return chosen


def _f1(fired: Tensor, truth: Sequence[bool]) -> float:
    right = torch.tensor(truth)
    return f1_score(int((fired & right).sum()), int((fired & ~right).sum()), int(right.sum()))
