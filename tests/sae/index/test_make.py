"""The whole index from stored activations; labels by rules, or by a language model where one is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from tests.sae.index.toy_index import WordEncoder, toy_sae_for

from steersman.errors import EndpointError
from steersman.models.language_model import LanguageModel
from steersman.sae.activations import CollectSettings, collect
from steersman.sae.corpus import open_corpus
from steersman.sae.index.build import BuildSettings
from steersman.sae.index.make import IndexSettings, MadeIndex, make_index
from steersman.sae.shards import ActivationStore

_SETTINGS = IndexSettings(build=BuildSettings(width=16, samples=24, pool=200), promoted=5, neighbours=3)


@pytest.fixture(scope="module")
def store(tiny: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    folder = tmp_path_factory.mktemp("texts")
    words = ["sailor", "reads", "an", "old", "map", "of", "hidden", "islands", "while", "rain", "falls"]
    texts = [" ".join(words[(n * i) % len(words)] for i in range(1, 9)) + f" {n}" for n in range(100)]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = CollectSettings(layer=2, tokens=3000, context_tokens=64)
    return collect(tiny, open_corpus([folder / "a.jsonl"], held_out=0.0), folder / "store", settings)


def _make(model: LanguageModel, store: ActivationStore, **more: object) -> MadeIndex:
    return make_index(model, toy_sae_for(model), "toy", [store], WordEncoder(), _SETTINGS, **more)  # type: ignore[arg-type]


def test_every_live_feature_gets_what_an_index_holds(tiny: LanguageModel, store: ActivationStore) -> None:
    made = _make(tiny, store, sources={"web": 1.0})
    index, live = made.index, made.index.live.tolist()
    assert live
    assert all(index.labels[feature] is not None and len(index.contexts(feature)) > 0 for feature in live)
    assert index.promoted.shape == index.suppressed.shape == (len(index), 5)
    assert index.neighbours.shape == (len(index), 3)
    assert index.context_embeddings is not None
    assert index.label_embeddings is not None
    assert (index.facts.sae.id, index.facts.encoder, index.facts.sources) == ("toy", "words", {"web": 1.0})
    assert made.detection.n_total == len(live)
    scores = {label.score for label in index.labels if label is not None}
    assert scores == set(made.detection.scores)
    assert {label.origin for label in index.labels if label} == {"contexts"}


def test_the_same_activations_give_the_same_index(tiny: LanguageModel, store: ActivationStore) -> None:
    assert _make(tiny, store).index.labels == _make(tiny, store).index.labels


def test_a_language_model_writes_the_labels_and_rules_fill_the_gaps(
    tiny: LanguageModel, store: ActivationStore, tmp_path: Path
) -> None:
    asked = 0

    def ask(messages: Sequence[Mapping[str, str]]) -> str:
        nonlocal asked
        asked += 1
        if asked % 2:
            raise EndpointError("out of order")
        return '{"label": "words of sailors"}'

    made = _make(tiny, store, ask=ask)
    by_origin = {label.origin: label for label in made.index.labels if label is not None}
    assert set(by_origin) == {"contexts", "llm"}
    assert by_origin["llm"].text == "words of sailors"
    assert made.detection.n_total == len(made.index.live)
