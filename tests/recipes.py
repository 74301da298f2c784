"""Hypothesis strategies for recipes of every kind, eight dimensions wide, over a small vocabulary and few layers."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from steersman.models.language_model import ModelRef
from steersman.sae.config import Architecture, Normalise, SaeConfig, SaeRef
from steersman.sae.model import SparseAutoencoder
from steersman.steering.condition import Above, AllOf, AnyOf, Condition, Not, Since, TokenIs
from steersman.steering.edits import Ablate, Add, Clamp, Edit, FeatureWeight, Rotate, SaeEdit, Scale, Swap, Weight
from steersman.steering.recipe import Recipe
from steersman.steering.target import Direction, Latent, Target
from steersman.steering.vector import Vector
from steersman.steering.where import Constant, Decay, Ramp, Schedule, Where

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""For properties of whole recipes, each of which takes milliseconds to draw."""

WIDTH, N_LAYERS, N_VOCAB, D_SAE = 8, 3, 6, 12


def narrow_sae(
    layer: int, architecture: Architecture = "relu", normalise: Normalise = "none", seed: int = 0
) -> SparseAutoencoder:
    """A random SAE as wide as these recipes."""
    made = torch.Generator().manual_seed(100 * layer + seed)
    weights = {
        "W_enc": torch.randn(WIDTH, D_SAE, generator=made) * 0.5,
        "b_enc": torch.randn(D_SAE, generator=made) * 0.3,
        "W_dec": torch.randn(D_SAE, WIDTH, generator=made) * 0.5,
        "b_dec": torch.randn(WIDTH, generator=made) * 0.3,
    }
    if architecture in {"jumprelu", "batchtopk"}:
        weights["threshold"] = torch.rand(D_SAE, generator=made) * 0.5 + 0.1
    config = SaeConfig(
        architecture=architecture,
        d_model=WIDTH,
        d_sae=D_SAE,
        layer=layer,
        k=4 if architecture in {"topk", "batchtopk"} else None,
        normalise=normalise,
        input_scale=0.6 if normalise == "expected_norm" else 1.0,
    )
    return SparseAutoencoder(config, **weights)


# ReLU alone, which has no jumps: there the last bit of what is read would decide.
SAES = tuple(narrow_sae(layer, normalise=way) for layer, way in enumerate(("expected_norm", "layer_norm", "unit_norm")))
"""One SAE a layer, for the edits that go through a whole SAE."""
SAE_OF = {sae.weights_hash: sae for sae in SAES}

_small = st.floats(-3.0, 3.0, width=32)
_token_sets = st.lists(st.integers(0, N_VOCAB - 1), min_size=1, max_size=3).map(tuple)
_texts = st.text(st.characters(codec="utf-8"), max_size=12)

vectors: st.SearchStrategy[Vector] = (
    # Not shorter than a hundredth: a direction whose length is lost in rounding points nowhere.
    st.lists(_small, min_size=WIDTH, max_size=WIDTH).filter(lambda v: sum(x * x for x in v) > 1e-4).map(Vector)
)
directions: st.SearchStrategy[Direction] = vectors.map(lambda vector: Direction(vector=vector))
latents: st.SearchStrategy[Latent] = st.builds(
    Latent,
    id=st.integers(0, 9999),
    encoder_row=vectors,
    encoder_bias=_small,
    decoder_row=vectors,
    threshold=st.floats(0.0, 2.0, width=32),
    label=st.none() | _texts,
)
targets: st.SearchStrategy[Target] = directions | latents
scores: st.SearchStrategy[Vector] = (
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, -1.0]), min_size=D_SAE, max_size=D_SAE).filter(any).map(Vector)
)
schedules: st.SearchStrategy[Schedule] = (
    st.just(Constant())
    | st.builds(Ramp, tokens=st.integers(1, 6), start=_small, end=_small)
    | st.builds(Decay, half_life_tokens=st.floats(0.5, 8.0, width=32), floor=_small)
)


@st.composite
def wheres(draw: st.DrawFn) -> Where:
    """Any window, positions and tokens."""
    start = draw(st.integers(0, 3))
    return Where(
        scope=draw(st.sampled_from(["all", "prompt", "generated"])),
        start=start,
        stop=draw(st.none() | st.integers(start + 1, 9)),
        positions=draw(st.none() | st.lists(st.integers(-5, 9), min_size=1, max_size=4).map(tuple)),
        token_ids=draw(st.none() | _token_sets),
        first_token=draw(st.booleans()),
    )


@st.composite
def aboves(draw: st.DrawFn, last_layer: int) -> Above:
    """A reading at a layer up to `last_layer`."""
    target = draw(targets)
    measures = ["activation", None] if isinstance(target, Latent) else ["projection", "cosine", None]
    return Above(
        layer=draw(st.integers(0, last_layer)),
        target=target,
        threshold=draw(st.floats(-1.0, 1.0, width=32)),
        measure=draw(st.sampled_from(measures)),
    )


def conditions(last_layer: int = N_LAYERS - 1) -> st.SearchStrategy[Condition]:
    """Any tree of conditions that is known once `last_layer` has been read."""
    leaves: st.SearchStrategy[Condition] = aboves(last_layer) | st.builds(TokenIs, token_ids=_token_sets)
    return st.recursive(
        leaves,
        lambda items: (
            st.builds(Not, item=items)
            | st.builds(Since, item=items)
            | st.builds(AllOf, items=st.lists(items, min_size=1, max_size=3).map(tuple))
            | st.builds(AnyOf, items=st.lists(items, min_size=1, max_size=3).map(tuple))
        ),
        max_leaves=4,
    )


@st.composite
def edits(draw: st.DrawFn) -> Edit:
    """Any edit, at any layer."""
    layer = draw(st.integers(0, N_LAYERS - 1))
    common: dict[str, Any] = {
        "layer": layer,
        "strength": draw(_small),
        "where": draw(wheres()),
        "schedule": draw(schedules),
        "when": draw(st.none() | conditions(layer)),
    }
    match draw(st.sampled_from(["add", "clamp", "scale", "ablate", "rotate", "weight", "swap"])):
        case "add":
            unit = draw(st.sampled_from(["raw", "residual_norm"]))
            features = draw(st.lists(st.builds(FeatureWeight, id=st.integers(0, 99), weight=_small), max_size=2))
            return Add(**common, vector=draw(vectors), unit=unit, features=tuple(features))
        case "clamp":
            target = draw(targets)
            unit = draw(st.sampled_from(["raw", "residual_norm"])) if isinstance(target, Direction) else "raw"
            return Clamp(**common, target=target, value=draw(_small), unit=unit)
        case "scale":
            return Scale(**common, target=draw(targets), factor=draw(_small))
        case "ablate":
            return Ablate(**common, target=draw(targets))
        case "rotate":
            return Rotate(**common, vector=draw(vectors), degrees=draw(st.floats(-180, 180, width=32)))
        case kind:
            own = {"sae": SAES[layer].ref(draw(_texts)), "scores": draw(scores), "keep_error": draw(st.booleans())}
            return Weight(**common, **own) if kind == "weight" else Swap(**common, **own)


_refs = st.builds(ModelRef, id=_texts, config_hash=st.text("0123456789abcdef", max_size=8), weights_hash=_texts)
_sae_refs = st.builds(SaeRef, id=_texts, layer=st.integers(0, 5), weights_hash=_texts)
_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _texts,
    lambda items: st.lists(items, max_size=3) | st.dictionaries(_texts, items, max_size=3),
    max_leaves=5,
)


@st.composite
def recipes(draw: st.DrawFn, max_edits: int = 3) -> Recipe:
    """Any recipe."""
    found = draw(st.lists(edits(), max_size=max_edits))
    # One that does nothing but abort is a recipe too.
    abort = draw(conditions()) if not found else draw(st.none() | conditions())
    used = {edit.layer: edit.sae for edit in found if isinstance(edit, SaeEdit)}
    named = _sae_refs if not used else st.sampled_from(list(used.values())) if len(used) == 1 else st.nothing()
    return Recipe(
        name=draw(_texts.filter(str.strip)),
        edits=tuple(found),
        description=draw(_texts),
        abort=abort,
        model=draw(st.none() | _refs),
        sae=draw(st.none() | named),
        method=draw(_texts),
        data=draw(st.dictionaries(_texts, _json, max_size=2)),
        evidence=draw(st.none() | st.dictionaries(_texts, _json, max_size=2)),
    )
