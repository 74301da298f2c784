"""The SAE that ships: it fits the bundled model, holds its card's bars, and its features are found and seen to fire."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from steersman.models.language_model import LanguageModel
from steersman.models.sentence_encoder import SentenceEncoder, load_encoder
from steersman.sae.index.facts import FeatureIndex
from steersman.sae.index.file import load_index
from steersman.sae.index.inspect import inspect
from steersman.sae.index.passages import Reader
from steersman.sae.index.search import search
from steersman.sae.library import SaeEntry, find_sae
from steersman.sae.model import SparseAutoencoder
from steersman.sae.record import load_record

pytestmark = pytest.mark.model
MB = 1_000_000


@pytest.fixture(scope="module")
def entry() -> SaeEntry:
    return find_sae("default")


@pytest.fixture(scope="module")
def sae(entry: SaeEntry) -> SparseAutoencoder:
    return entry.load()


@pytest.fixture(scope="module")
def index(entry: SaeEntry, sae: SparseAutoencoder) -> FeatureIndex:
    return load_index(entry.index_folder, sae.ref("default"))


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return load_encoder()


def test_it_fits_the_bundled_model(bundled: LanguageModel, sae: SparseAutoencoder, index: FeatureIndex) -> None:
    sae.check_fits(bundled.ref)
    assert index.facts.model.matches(bundled.ref)
    assert len(index) == sae.config.d_sae == 8192
    assert int(index.context_tokens.max()) < bundled.n_vocab


def test_its_record_holds_the_bars(entry: SaeEntry, index: FeatureIndex) -> None:
    record = load_record(entry.folder)
    assert record is not None
    assert record.quality is not None
    assert record.settings.tokens >= record.collected_tokens >= 10_000_000
    assert record.on_policy_tokens > 0
    assert record.quality.reconstruction.explained_variance >= 0.80
    assert record.quality.prediction.recovered >= 0.95
    assert record.quality.reconstruction.l0 <= 64
    assert record.quality.reconstruction.dead_share <= 0.02
    assert len(index.live) >= 0.98 * len(index)


def test_it_is_small_and_says_nothing_of_where_it_was_made(entry: SaeEntry) -> None:
    files = [path for path in Path(entry.folder).rglob("*") if path.is_file()]
    effects = [path for path in files if path.parent.name == "effects"]
    assert sum(path.stat().st_size for path in effects) <= 5 * MB
    assert sum(path.stat().st_size for path in files if path not in effects) <= 32 * MB
    for path in files:
        if path.suffix == ".json":
            assert not re.search(r"/(root|home|work|tmp)\b", path.read_text(encoding="utf-8"))


def test_it_reconstructs_text_it_has_not_seen(bundled: LanguageModel, sae: SparseAutoencoder) -> None:
    from steersman.models.residuals import profile_texts, read_residuals

    ids = [bundled.tokenizer(text)["input_ids"][:200] for text in profile_texts()]
    h = torch.cat([found[sae.config.layer] for found in read_residuals(bundled, ids, [sae.config.layer])]).float()
    error = (sae.reconstruct(h) - h).square().sum() / (h - h.mean(0)).square().sum()
    assert 1 - float(error) >= 0.75


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("talking like a pirate", "pirate|ship|sea|sail|captain|crew|treasure|speak|talk|voice"),
        ("python code", "python|def |import|print"),
        ("grief and sorrow", "grief|sad|sorrow|mourn|tears|weep"),
        ("words in French", "french|france|paris| le | la | les "),
        ("cooking a meal", "cook|recipe|dish|meal|oven|garlic|food"),
    ],
)
def test_search_finds_what_is_meant(
    bundled: LanguageModel, index: FeatureIndex, encoder: SentenceEncoder, query: str, words: str
) -> None:
    hits = search(index, query, encoder, n=5)
    reader = Reader(bundled.tokenizer)
    texts = [
        f"{hit.label} {' '.join(passage.text for passage in reader.passages(index.contexts(hit.feature)))}".lower()
        for hit in hits
    ]
    assert sum(bool(re.search(words, text)) for text in texts) >= 3


def test_what_is_found_fires_where_it_should(
    bundled: LanguageModel, sae: SparseAutoencoder, index: FeatureIndex
) -> None:
    """Features fire again on their own contexts, read anew: the index belongs to this model and SAE."""
    reader = Reader(bundled.tokenizer)
    again = []
    for feature in index.live[::400].tolist():
        text = reader.passages(index.contexts(feature))[0].text
        found = inspect(bundled, sae, text)
        again.append(feature in {total.feature for total in found.totals})
    # A context is cut out of a longer text, which some features need.
    assert sum(again) / len(again) >= 0.6
