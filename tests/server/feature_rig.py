"""A feature lookup over the tiny model: a toy SAE and index in a library of their own, words for a sentence encoder."""

from __future__ import annotations

from pathlib import Path

from tests.sae.index.toy_index import WordEncoder, toy_index, toy_sae_for

from steersman.models.language_model import LanguageModel
from steersman.sae.file import save_sae
from steersman.sae.index.embed import embed_index
from steersman.sae.index.file import save_index
from steersman.sae.library import shelf
from steersman.sae.model import SparseAutoencoder
from steersman.server.feature_lookup import FeatureLookup

LABELLED: list[tuple[str | None, list[str]]] = [
    ("ships", ["the [ship] at sea", "a [ship]"]),
    ("cooking", ["[salt] it", "[bake]"]),
    ("pirates", ["[ship] ahoy"]),
]


def toy_library(model: LanguageModel, cache: Path) -> SparseAutoencoder:
    """Put an SAE of the model with an index into the library in `cache`, under the name `toy`."""
    sae = toy_sae_for(model)
    features = LABELLED + [(None, [])] * (sae.config.d_sae - len(LABELLED))
    index = toy_index(features, sae_hash=sae.weights_hash)
    folder = shelf(cache) / "toy"
    save_sae(sae, folder)
    save_index(embed_index(index, WordEncoder(), model.tokenizer), folder / "index")
    return sae


def toy_lookup(model: LanguageModel, cache: Path) -> FeatureLookup:
    """A lookup in that library."""
    toy_library(model, cache)
    return FeatureLookup(model, cache=cache, encoder=WordEncoder)
