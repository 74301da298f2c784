"""Search finds what is near in meaning and says why; rerank permutes; tokens and neighbours are read off the index."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from tests.sae.index.toy_index import WIDTH, WordEncoder, toy_index
from tests.tiny import tiny_tokenizer
from torch import Tensor

from steersman.errors import RequestError, SaeError
from steersman.sae.index.embed import embed_index
from steersman.sae.index.facts import FeatureIndex
from steersman.sae.index.search import LABEL_WEIGHT, neighbours, rerank, search, search_token

_FEATURES = [
    ("ships", ["the [ship] at sea", "a [ship]"]),
    ("cooking", ["[salt] it", "[bake]"]),
    ("pirates", ["[ship] ahoy"]),
    (None, ["[ship] sea"]),
    ("sea", []),
    (None, []),
    ("ship sea", ["[ship] sea"]),
    ("ship sea", ["[ship] sea"]),
]
_DENSITY = [0.01, 0.01, 0.02, 0.01, 0.05, 0.01, 0.9, 0.0]


class _Leaning(WordEncoder):
    """An encoder for which every text is a little like the word `sea`."""

    @property
    def neutral(self) -> Tensor:
        return self.encode(["sea"])[0]


@pytest.fixture
def words() -> FeatureIndex:
    return embed_index(toy_index(_FEATURES, density=_DENSITY), WordEncoder(), tiny_tokenizer())


def test_the_nearest_comes_first_with_its_reasons(words: FeatureIndex) -> None:
    hits = search(words, "ship", WordEncoder())
    assert words.context_embeddings is not None
    assert words.label_embeddings is not None
    asked = WordEncoder().encode(["ship"])[0]
    contexts, labels = words.context_embeddings.float() @ asked, words.label_embeddings.float() @ asked
    expected = (1 - LABEL_WEIGHT) * contexts + LABEL_WEIGHT * labels
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    for hit in hits:
        assert hit.score == pytest.approx(float(expected[hit.feature]), abs=1e-6)
        assert hit.density == pytest.approx(_DENSITY[hit.feature])
        assert hit.label == _FEATURES[hit.feature][0]
        for cosine, all_cosines, there in (
            (hit.label_cosine, labels, _FEATURES[hit.feature][0]),
            (hit.context_cosine, contexts, _FEATURES[hit.feature][1]),
        ):
            assert cosine == (pytest.approx(float(all_cosines[hit.feature]), abs=1e-6) if there else None)
    assert hits[0].feature in (0, 2, 3)
    assert search(words, "bake the salt", WordEncoder())[0].feature == 1


def test_what_fires_everywhere_or_never_is_left_out_unless_asked_for(words: FeatureIndex) -> None:
    found = {hit.feature for hit in search(words, "ship sea", WordEncoder())}
    assert found == {0, 1, 2, 3, 4, 5}
    everywhere = search(words, "ship sea", WordEncoder(), max_density=None)
    assert everywhere[0].feature == 6
    assert 7 not in {hit.feature for hit in everywhere}
    dense = search(words, "ship sea", WordEncoder(), min_density=0.02, max_density=0.5)
    assert {hit.feature for hit in dense} == {2, 4}
    assert search(words, "ship", WordEncoder(), min_density=0.95) == []


def test_likeness_to_neutral_texts_does_not_count(words: FeatureIndex) -> None:
    plain, leaning = (
        {hit.feature: hit.score for hit in search(words, "sea ship", encoder)}
        for encoder in (WordEncoder(), _Leaning())
    )
    assert plain[4] > 0.1
    assert leaning[4] < 0
    cosines = [
        {hit.feature: hit.label_cosine for hit in search(words, "sea ship", e)} for e in (WordEncoder(), _Leaning())
    ]
    assert cosines[0] == cosines[1]


@pytest.mark.parametrize("lacking", ["label_embeddings", "context_embeddings"])
def test_what_the_index_lacks_leaves_its_weight_to_the_other(words: FeatureIndex, lacking: str) -> None:
    for hit in search(replace(words, **{lacking: None}), "ship sea", WordEncoder()):
        has, lacks = (hit.context_cosine, hit.label_cosine)[:: 1 if lacking == "label_embeddings" else -1]
        assert lacks is None
        assert hit.score == pytest.approx(has or 0.0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_large_index_gives_the_same_as_the_slow_way(dtype: torch.dtype) -> None:
    n, made = 3_000, torch.Generator().manual_seed(0)
    small = toy_index([("x", ["[a]"])] * 2)
    rows = [torch.nn.functional.normalize(torch.randn(n, WIDTH, generator=made), dim=1).to(dtype) for _ in range(2)]
    repeated = {
        name: getattr(small, name)[:1].repeat(n, *[1] * (getattr(small, name).ndim - 1))
        for name in small.__slots__
        if isinstance(getattr(small, name), Tensor)
    }
    index = replace(
        small, **repeated, labels=small.labels[:1] * n, label_embeddings=rows[0], context_embeddings=rows[1]
    )
    asked = WordEncoder().encode(["some query"])[0]
    expected = (LABEL_WEIGHT * rows[0].float() + (1 - LABEL_WEIGHT) * rows[1].float()) @ asked
    hits = search(index, "some query", WordEncoder(), n=20)
    assert [hit.feature for hit in hits] == expected.topk(20).indices.tolist()
    assert hits == search(index, "some query", WordEncoder(), n=20)
    assert hits[:5] == search(index, "some query", WordEncoder(), n=5)


def test_equal_scores_stand_in_the_order_of_their_numbers() -> None:
    index = embed_index(toy_index([("ship", ["[ship]"])] * 5), WordEncoder(), tiny_tokenizer())
    assert [hit.feature for hit in search(index, "ship", WordEncoder())] == [0, 1, 2, 3, 4]


def test_rerank_permutes_what_it_is_given(words: FeatureIndex) -> None:
    mixed = random.Random(0)
    for _ in range(10):
        features = mixed.sample(range(8), mixed.randint(0, 8))
        hits = rerank(words, features, "ship", WordEncoder())
        assert sorted(hit.feature for hit in hits) == sorted(features)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    found = search(words, "ship", WordEncoder())
    assert rerank(words, [hit.feature for hit in found], "ship", WordEncoder()) == found
    assert rerank(words, [7, 6], "ship", WordEncoder())[0].feature == 7
    assert len(rerank(words, [3, 3], "ship", WordEncoder())) == 2


def test_what_cannot_be_searched_is_refused(words: FeatureIndex) -> None:
    encoder = WordEncoder()
    with pytest.raises(RequestError, match="query is empty"):
        search(words, " \n", encoder)
    with pytest.raises(SaeError, match="at least 1, not 0"):
        search(words, "ship", encoder, n=0)
    with pytest.raises(SaeError, match="no embeddings"):
        search(toy_index(_FEATURES), "ship", encoder)
    with pytest.raises(SaeError, match=r"embedded with words .* the query with others"):
        search(words, "ship", WordEncoder(name="others"))
    with pytest.raises(SaeError, match=r"64 wide.* \(32\)"):
        search(words, "ship", WordEncoder(width=32))
    with pytest.raises(SaeError, match="feature 8 does not exist; this SAE has 0 to 7"):
        rerank(words, [1, 8], "ship", encoder)


# --- tokens


def _ids(text: str) -> list[int]:
    return list(tiny_tokenizer()(text, add_special_tokens=False)["input_ids"])


def test_a_token_finds_what_fires_on_it_and_what_promotes_it() -> None:
    (a, b, big_a) = (_ids(char)[0] for char in "abA")
    index = toy_index(
        [
            ("half", ["x[a]", "x[b]"]),
            ("none", ["a[x]", "[b]"]),
            ("all", ["x[A]b", "[a]"]),
            ("dead", ["[a]"]),
            ("nothing", []),
        ],
        promoted=[[b, a, 0, 0], [0, 0, 0, big_a], [0, 0, 0, 0], [a, a, a, a], [a, 0, 0, 0]],
        density=[0.1, 0.1, 0.1, 0.0, 0.1],
    )
    found = search_token(index, "a", tiny_tokenizer())
    assert [(hit.feature, hit.share, hit.label) for hit in found.fires] == [(2, 1.0, "all"), (0, 0.5, "half")]
    assert [(hit.feature, hit.rank) for hit in found.promotes] == [(4, 1), (0, 2), (1, 4)]
    one = search_token(index, "a", tiny_tokenizer(), n=1)
    assert (one.fires, one.promotes) == (found.fires[:1], found.promotes[:1])


def test_a_word_of_several_tokens_is_found_whole() -> None:
    index = toy_index(
        [
            ("end", ["the [ship]"]),
            ("start", ["the [s]hip"]),
            ("other", ["the [shop]", "[hip]"]),
            ("cut", ["the shi[p]"]),
            ("edge", ["shi[p]"]),
        ]
    )
    assert [hit.feature for hit in search_token(index, "ship", tiny_tokenizer()).fires] == [0, 1, 3, 4]
    assert [hit.feature for hit in search_token(index, "SHIP", tiny_tokenizer()).fires] == [0, 1, 3, 4]
    assert search_token(index, "boat", tiny_tokenizer()).fires == ()


def test_chunks_of_an_index_do_not_change_what_a_token_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    index = toy_index(_FEATURES, density=_DENSITY)
    whole = search_token(index, "ship", tiny_tokenizer())
    monkeypatch.setattr("steersman.sae.index.search._CHUNK_TOKENS", 1)
    assert search_token(index, "ship", tiny_tokenizer()) == whole
    assert whole.fires


def test_a_special_token_and_white_space_are_tokens_too() -> None:
    index = toy_index([("x", ["a[</s>]"]), ("y", ["a[\n]"])])
    assert [hit.feature for hit in search_token(index, "</s>", tiny_tokenizer()).fires] == [0]
    assert [hit.feature for hit in search_token(index, "\n", tiny_tokenizer()).fires] == [1]


def test_a_token_that_is_none_is_refused() -> None:
    with pytest.raises(RequestError, match="the token is empty"):
        search_token(toy_index(_FEATURES), "", tiny_tokenizer())
    with pytest.raises(SaeError, match="at least 1, not 0"):
        search_token(toy_index(_FEATURES), "a", tiny_tokenizer(), n=0)


# --- neighbours


def test_neighbours_are_those_of_the_index(words: FeatureIndex) -> None:
    found = neighbours(words, 2)
    assert [(each.feature, each.label) for each in found] == [(3, None), (1, "cooking")]
    assert [each.cosine for each in found] == pytest.approx([0.9, 0.5])
    assert neighbours(words, 2, n=1) == found[:1]
    with pytest.raises(SaeError, match="feature -1 does not exist"):
        neighbours(words, -1)
