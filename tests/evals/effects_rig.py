"""What the tests of effects share: a toy SAE for the tiny model, short settings, and effects that a known map made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from tests.tiny import D_MODEL

from steersman.evals.effects.facts import EffectSettings
from steersman.evals.effects.store import EffectIndex, Effects
from steersman.intervals import Interval
from steersman.models.language_model import LanguageModel
from steersman.models.residuals import ModelProfile
from steersman.sae.config import SaeConfig, SaeRef
from steersman.sae.model import SparseAutoencoder
from steersman.steering.methods.effect_map import EffectMap
from steersman.steering.methods.effect_map_file import EffectMapFacts

LAYER, D_SAE = 2, 48
SETTINGS = EffectSettings(
    prompts=("A cat", "The sea was"), samples=2, tokens=5, texts=3, text_tokens=16, baseline_samples=4, rise=0.3
)


def toy(seed: int = 0) -> SparseAutoencoder:
    made = torch.Generator().manual_seed(seed)
    decoder = torch.randn(D_SAE, D_MODEL, generator=made)
    config = SaeConfig(architecture="relu", d_model=D_MODEL, d_sae=D_SAE, layer=LAYER)
    return SparseAutoencoder(
        config, W_enc=decoder.T * 0.2, b_enc=torch.zeros(D_SAE), W_dec=decoder, b_dec=torch.zeros(D_MODEL)
    )


def ref_of(sae: SparseAutoencoder, name: str = "toy") -> SaeRef:
    return SaeRef(id=name, layer=sae.config.layer, weights_hash=sae.weights_hash)


def profile_of(model: LanguageModel) -> ModelProfile:
    return ModelProfile(model.ref.weights_hash, (6.0, 9.0, 12.0, 15.0))


def index_of(model: LanguageModel, sae: SparseAutoencoder, **facts: Any) -> EffectIndex:
    fresh = EffectIndex(
        model=model.ref,
        sae=ref_of(sae),
        d_model=D_MODEL,
        d_sae=D_SAE,
        mean_norm=12.0,
        settings=SETTINGS,
        baseline_cross_entropy=3.0,
    )
    return replace(fresh, **facts)


def random_map(d_model: int = D_MODEL, d_sae: int = D_SAE, seed: int = 3) -> EffectMap:
    made = torch.Generator().manual_seed(seed)
    return EffectMap(torch.randn(d_model, d_sae, generator=made), torch.randn(d_sae, generator=made))


def made_effects(
    effect_map: EffectMap, n: int, *, noise: float = 0.0, start: int = 0, seed: int = 5, reached: bool = True
) -> Effects:
    """Vectors whose effects are what the map says, up to noise of known variance."""
    made = torch.Generator().manual_seed(seed + start)
    vectors = torch.nn.functional.normalize(torch.randn(n, effect_map.d_model, generator=made), dim=1)
    effects = effect_map.predict(vectors) + noise * torch.randn(n, effect_map.d_sae, generator=made)
    return Effects(
        number=torch.arange(start, start + n),
        kind=torch.arange(start, start + n).remainder(3).to(torch.uint8),
        features=torch.full((n, 2), -1),
        vectors=vectors,
        strengths=torch.full((n,), 0.4),
        reached=torch.full((n,), reached),
        noise=torch.full((n,), noise**2 * effect_map.d_sae),
        effects=effects.half(),
    )


FACTS = EffectMapFacts(
    sae=ref_of(toy()),
    vectors={"row": 10},
    penalty=0.1,
    strength=0.4,
    r_squared=Interval(mean=0.5, low=0.4, high=0.6, n=9, total=9),
    r_squared_by_kind={"row": Interval(mean=None, low=None, high=None, n=0, total=1)},
    noise_ceiling=0.8,
    data={"rise": 0.5, "prompts": ["a", "b"]},
)
