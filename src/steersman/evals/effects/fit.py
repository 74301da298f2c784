"""Fit an effect map to a folder of measured effects, and say how well it predicts vectors that it has not seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import JsonValue
from torch import Tensor

from steersman.errors import DataError
from steersman.evals.effects.store import Effects, EffectStore
from steersman.evals.effects.vectors import KINDS
from steersman.intervals import Interval
from steersman.steering.methods.effect_map import EffectMap, explained, fit_sgd, ridge_path
from steersman.steering.methods.effect_map_file import EffectMapFacts, Store, StoredMap, narrowed, widened

PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_LEAST = 20
_CHUNK = 256


class Split(NamedTuple):
    """Which rows do what; no vector has two roles."""

    train: Tensor
    validation: Tensor
    """The penalty is chosen on these."""
    test: Tensor
    """The report rests on these."""


def split(effects: Effects, held_out: float, seed: int) -> Split:
    """Vectors at random for each purpose; validation is as large as the test.

    Raises:
        DataError: too few vectors, or a share that leaves nothing to fit or to test.
    """
    n = len(effects.number)
    if n < _LEAST:
        raise DataError(
            f"{n} measured vectors are too few for an effect map; measure {_LEAST} or more (2,000 are good)"
        )
    held = round(held_out * n) if 0 < held_out < 1 else 0
    if held < 2 or n - 2 * held < 2:
        raise DataError(f"held out {held_out:g} of {n} vectors leaves too few to fit or to test; 0.1 is usual")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return Split(order[2 * held :], order[held : 2 * held], order[:held])


def fit_effects(
    store: EffectStore,
    *,
    held_out: float = 0.1,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
    compare_sgd: bool = False,
) -> StoredMap:
    """The map by ridge regression, its penalty chosen on vectors of its own and its R² measured on yet others.

    Once the penalty is known, the vectors it was chosen on are fitted too; those of the test never are.

    Args:
        store: what was measured.
        held_out: share of the vectors that is tested on; as many again choose the penalty.
        penalties: to choose from.
        seed: of the split.
        compare_sgd: fit as the paper does too, and report that map's R² on the same vectors.

    Raises:
        DataError: too few vectors, or damaged shards.
    """
    found = store.read()
    parts = split(found, held_out, seed)
    validation = found.part(parts.validation)
    paths = ridge_path(found.vectors[parts.train], found.effects[parts.train], list(penalties))
    scores = [explained(each, validation.vectors, validation.effects).r_squared().mean for each in paths]
    known = [-math.inf if score is None else score for score in scores]
    best = known.index(max(known))
    del paths
    rest = torch.cat([parts.train, parts.validation])
    (effect_map,) = ridge_path(found.vectors[rest], found.effects[rest], [penalties[best]])
    test = found.part(parts.test)
    data: dict[str, JsonValue] = {
        **_measured(store, found),
        "held_out": held_out,
        "split_seed": seed,
        "validation_r_squared": {f"{penalty:g}": score for penalty, score in zip(penalties, scores, strict=True)},
    }
    if compare_sgd:
        other = fit_sgd(found.vectors[rest], found.effects[rest], seed=seed)
        data["sgd_r_squared"] = explained(other, test.vectors, test.effects).r_squared().mean
    facts = EffectMapFacts(
        sae=store.index.sae,
        model=store.index.model,
        vectors={kind: int((found.kind[rest] == place).sum()) for place, kind in enumerate(KINDS)},
        penalty=penalties[best],
        strength=float(found.strengths.median()),
        r_squared=explained(effect_map, test.vectors, test.effects).r_squared(),
        r_squared_by_kind={kind: _of_kind(effect_map, test, place) for place, kind in enumerate(KINDS)},
        noise_ceiling=noise_ceiling(test),
        data=data,
    )
    return StoredMap(effect_map, facts)


def noise_ceiling(effects: Effects) -> float | None:
    """The share of the variance that is not the chance of sampling: no map can explain more. None where that is not known."""
    if len(effects.number) < 2 or not bool(effects.noise.isfinite().all()):
        return None
    mean = torch.stack([part.double().sum(0) for part in torch.split(effects.effects, _CHUNK)]).sum(0) / len(
        effects.number
    )
    total = math.fsum(float((part.double() - mean).square().sum()) for part in torch.split(effects.effects, _CHUNK))
    return 1 - float(effects.noise.double().sum()) / total if total else None


def r_squared_as_stored(stored: StoredMap, store: EffectStore, kept: Store) -> Interval:
    """R² of the map as a file keeps it, on the vectors that it was tested on before: what rounding costs.

    Raises:
        DataError: a map that does not say how its vectors were split, or damaged shards.
    """
    held_out, seed = (stored.facts.data.get(name) for name in ("held_out", "split_seed"))
    if not isinstance(held_out, float) or not isinstance(seed, int):
        raise DataError("the map does not say which vectors it was tested on; fit it again")
    found = store.read()
    test = found.part(split(found, held_out, seed).test)
    return explained(widened(narrowed(stored.effect_map, kept)), test.vectors, test.effects).r_squared()


def _of_kind(effect_map: EffectMap, test: Effects, place: int) -> Interval:
    rows = (test.kind == place).nonzero()[:, 0]
    if len(rows) < 2:
        return Interval(mean=None, low=None, high=None, n=0, total=len(rows))
    return explained(effect_map, test.vectors[rows], test.effects[rows]).r_squared()


def _measured(store: EffectStore, found: Effects) -> dict[str, JsonValue]:
    index, settings = store.index, store.index.settings
    strengths = found.strengths.double()
    return {
        "measured": len(found.number),
        "failed": len(index.failed),
        "not_reached": int((~found.reached).sum()),
        "strengths": [round(float(strengths.quantile(share)), 4) for share in (0.05, 0.5, 0.95)],
        "mean_norm": index.mean_norm,
        "baseline_cross_entropy": index.baseline_cross_entropy,
        "rise": settings.rise,
        "prompts": list(settings.prompts),
        "samples": settings.samples,
        "tokens": settings.tokens,
        "temperature": settings.temperature,
        "top_k": settings.top_k,
        "top_p": settings.top_p,
        "seed": settings.seed,
    }
