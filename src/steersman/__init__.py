"""steersman: steer language models through sparse autoencoders.

    import steersman as st

    model = st.load_model()                                      # the bundled model; no network once it is cached
    engine = st.Engine(model)
    recipe = st.load_recipe("pirate.json")
    [answer] = engine.generate([st.Request(prompt=st.chat("What is money?"), recipe=recipe)])

Names are imported when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from steersman.errors import ApiError, SteersmanError
from steersman.version import __version__

if TYPE_CHECKING:
    from steersman.auto.autosteer import AutoSettings, autosteer
    from steersman.auto.facts import AutoResult, Behaviour, ContrastItem, ContrastSet
    from steersman.auto.optimise import make_optimiser
    from steersman.client.async_client import AsyncClient
    from steersman.client.client import Client
    from steersman.client.facts import Answer, AutosteerOutcome, Job, JobEvent, Piece, RecipeInfo, SetInfo
    from steersman.engine.engine import Engine, EngineLimits
    from steersman.engine.guard import Guard, GuardEvent
    from steersman.engine.request import Chunk, Request, Result, Sampling
    from steersman.engine.ticket import Ticket
    from steersman.models.language_model import LanguageModel, Message, ModelRef, chat
    from steersman.models.load import load_model
    from steersman.models.residuals import ModelProfile, load_profile, read_residuals
    from steersman.models.sentence_encoder import SentenceEncoder, load_encoder
    from steersman.sae.config import SaeConfig, SaeRef
    from steersman.sae.file import load_sae, save_sae
    from steersman.sae.index.contrast import contrast
    from steersman.sae.index.facts import FeatureIndex
    from steersman.sae.index.file import load_index
    from steersman.sae.index.inspect import inspect
    from steersman.sae.index.search import rerank, search
    from steersman.sae.library import find_sae
    from steersman.sae.model import SparseAutoencoder
    from steersman.steering.condition import Above, AllOf, AnyOf, Not, Since, TokenIs
    from steersman.steering.edits import Ablate, Add, Clamp, Rotate, Scale, Swap, Weight
    from steersman.steering.export import from_gguf, from_safetensors, to_gguf, to_safetensors
    from steersman.steering.features import add_features, feature_vector, latent
    from steersman.steering.methods import METHODS
    from steersman.steering.pairs import Pair, load_named, load_pairs
    from steersman.steering.recipe import Recipe, combine
    from steersman.steering.recipe_file import load_recipe, save_recipe
    from steersman.steering.target import Direction, Latent
    from steersman.steering.traits import load_trait
    from steersman.steering.vector import Vector
    from steersman.steering.where import Constant, Decay, Ramp, Where

_HOMES = {
    "auto.autosteer": ("AutoSettings", "autosteer"),
    "auto.facts": ("AutoResult", "Behaviour", "ContrastItem", "ContrastSet"),
    "auto.optimise": ("make_optimiser",),
    "client.async_client": ("AsyncClient",),
    "client.client": ("Client",),
    "client.facts": ("Answer", "AutosteerOutcome", "Job", "JobEvent", "Piece", "RecipeInfo", "SetInfo"),
    "engine.engine": ("Engine", "EngineLimits"),
    "engine.guard": ("Guard", "GuardEvent"),
    "engine.request": ("Chunk", "Request", "Result", "Sampling"),
    "engine.ticket": ("Ticket",),
    "models.language_model": ("LanguageModel", "Message", "ModelRef", "chat"),
    "models.load": ("load_model",),
    "models.residuals": ("ModelProfile", "load_profile", "read_residuals"),
    "models.sentence_encoder": ("SentenceEncoder", "load_encoder"),
    "sae.config": ("SaeConfig", "SaeRef"),
    "sae.file": ("load_sae", "save_sae"),
    "sae.index.contrast": ("contrast",),
    "sae.index.facts": ("FeatureIndex",),
    "sae.index.file": ("load_index",),
    "sae.index.inspect": ("inspect",),
    "sae.index.search": ("rerank", "search"),
    "sae.library": ("find_sae",),
    "sae.model": ("SparseAutoencoder",),
    "steering.condition": ("Above", "AllOf", "AnyOf", "Not", "Since", "TokenIs"),
    "steering.edits": ("Ablate", "Add", "Clamp", "Rotate", "Scale", "Swap", "Weight"),
    "steering.export": ("from_gguf", "from_safetensors", "to_gguf", "to_safetensors"),
    "steering.features": ("add_features", "feature_vector", "latent"),
    "steering.methods": ("METHODS",),
    "steering.pairs": ("Pair", "load_named", "load_pairs"),
    "steering.recipe": ("Recipe", "combine"),
    "steering.recipe_file": ("load_recipe", "save_recipe"),
    "steering.target": ("Direction", "Latent"),
    "steering.traits": ("load_trait",),
    "steering.vector": ("Vector",),
    "steering.where": ("Constant", "Decay", "Ramp", "Where"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "METHODS",
    "Ablate",
    "Above",
    "Add",
    "AllOf",
    "Answer",
    "AnyOf",
    "ApiError",
    "AsyncClient",
    "AutoResult",
    "AutoSettings",
    "AutosteerOutcome",
    "Behaviour",
    "Chunk",
    "Clamp",
    "Client",
    "Constant",
    "ContrastItem",
    "ContrastSet",
    "Decay",
    "Direction",
    "Engine",
    "EngineLimits",
    "FeatureIndex",
    "Guard",
    "GuardEvent",
    "Job",
    "JobEvent",
    "LanguageModel",
    "Latent",
    "Message",
    "ModelProfile",
    "ModelRef",
    "Not",
    "Pair",
    "Piece",
    "Ramp",
    "Recipe",
    "RecipeInfo",
    "Request",
    "Result",
    "Rotate",
    "SaeConfig",
    "SaeRef",
    "Sampling",
    "Scale",
    "SentenceEncoder",
    "SetInfo",
    "Since",
    "SparseAutoencoder",
    "SteersmanError",
    "Swap",
    "Ticket",
    "TokenIs",
    "Vector",
    "Weight",
    "Where",
    "__version__",
    "add_features",
    "autosteer",
    "chat",
    "combine",
    "contrast",
    "feature_vector",
    "find_sae",
    "from_gguf",
    "from_safetensors",
    "inspect",
    "latent",
    "load_encoder",
    "load_index",
    "load_model",
    "load_named",
    "load_pairs",
    "load_profile",
    "load_recipe",
    "load_sae",
    "load_trait",
    "make_optimiser",
    "read_residuals",
    "rerank",
    "save_recipe",
    "save_sae",
    "search",
    "to_gguf",
    "to_safetensors",
]


def __getattr__(name: str) -> Any:
    """Import a public name from where it lives."""
    if name not in _HOME:
        raise AttributeError(f"module 'steersman' has no attribute {name!r}")
    return getattr(importlib.import_module(f"steersman.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
