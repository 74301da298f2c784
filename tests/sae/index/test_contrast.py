"""A contrast finds what was planted, changes its sign with the order of the sets, and is deaf to what both share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.sae.index.toy_index import toy_index, toy_sae_for
from tests.tiny import CONTEXT, tiny_model

from steersman.errors import DataError, SaeError
from steersman.models.language_model import LanguageModel, Message
from steersman.models.residuals import read_residuals
from steersman.sae.config import SaeConfig
from steersman.sae.index.contrast import Difference, area_under_curve, contrast, standardised_difference
from steersman.sae.index.inspect import inspect
from steersman.sae.model import SparseAutoencoder

_SEA = ["ahoy there", "the ship sails", "all hands on deck", "hoist the sails", "a parrot and a ship"]
_LAND = ["good morning", "the car drives", "all staff to the office", "sign the papers", "a cat and a house"]


def _planted(model: LanguageModel, sets: Sequence[Sequence[str]], layer: int = 2) -> SparseAutoencoder:
    """A random SAE whose latent 7 is the direction from the second set's texts to the first's, latent 8 the other way."""
    sae = toy_sae_for(model, layer)
    means = [
        torch.stack(
            [rows[layer].float().mean(0) for rows in read_residuals(model, [model.encode(t) for t in texts], [layer])]
        )
        for texts in sets
    ]
    # The direction that tells the means of all the texts apart exactly, by least squares.
    rows, wanted = torch.cat(means), torch.tensor([1.0] * len(means[0]) + [-1.0] * len(means[1]))
    apart = torch.linalg.lstsq(rows, wanted.unsqueeze(1), driver="gelsd").solution[:, 0]
    weights, bias = sae.W_enc.clone(), sae.b_enc.clone()
    weights[:, 7], weights[:, 8], weights[:, 9] = apart, -apart, 0.0
    # Far above zero, so that what fires is linear; latent 9 fires everywhere alike.
    bias[7], bias[8], bias[9] = 100.0, 100.0, 5.0
    return SparseAutoencoder(sae.config, W_enc=weights, b_enc=bias, W_dec=sae.W_dec, b_dec=sae.b_dec)


def test_a_planted_feature_comes_first_and_its_opposite_on_the_other_side(tiny: LanguageModel) -> None:
    sae = _planted(tiny, (_SEA, _LAND))
    found = contrast(tiny, sae, _SEA, _LAND)
    first, other = found.positive[0], found.negative[0]
    assert (first.feature, first.auc, first.positive_texts, first.negative_texts) == (7, 1.0, 5, 5)
    assert first.positive_mean - first.negative_mean == pytest.approx(2.0, abs=0.01)
    assert (other.feature, other.auc) == (8, 0.0)
    assert (found.n_positive, found.n_negative) == (5, 5)
    # What fires alike everywhere is on neither side.
    assert 9 not in {each.feature for each in contrast(tiny, sae, _SEA, _LAND, n=100).positive + found.negative}


@pytest.mark.parametrize("per_text", ["mean", "max"])
def test_swapping_the_sets_turns_everything_round(tiny: LanguageModel, per_text: str) -> None:
    sae = toy_sae_for(tiny)
    one = contrast(tiny, sae, _SEA, _LAND, n=100, per_text=per_text)  # type: ignore[arg-type]
    two = contrast(tiny, sae, _LAND, _SEA, n=100, per_text=per_text)  # type: ignore[arg-type]
    assert [each.feature for each in one.positive] == [each.feature for each in two.negative]
    assert [each.feature for each in one.negative] == [each.feature for each in two.positive]
    assert one.positive
    for this, that in zip(one.positive + one.negative, two.negative + two.positive, strict=True):
        assert this.score == pytest.approx(-that.score)
        assert this.auc == pytest.approx(1 - that.auc)
        assert (this.positive_texts, this.positive_mean) == (that.negative_texts, that.negative_mean)
    scores = [each.score for each in one.positive]
    assert scores == sorted(scores, reverse=True)
    assert contrast(tiny, sae, _SEA, _LAND, n=2).positive == contrast(tiny, sae, _SEA, _LAND).positive[:2]


@pytest.mark.parametrize("per_text", ["mean", "max"])
def test_the_numbers_are_those_of_the_inspected_texts(tiny: LanguageModel, per_text: str) -> None:
    sae = toy_sae_for(tiny)
    tables = []
    for texts in (_SEA, _LAND):
        table = torch.zeros(len(texts), sae.config.d_sae)
        for row, text in enumerate(texts):
            seen = inspect(tiny, sae, text)
            for total in seen.totals:
                table[row, total.feature] = total.sum / len(seen) if per_text == "mean" else total.max
        tables.append(table)
    fires = torch.cat(tables).any(0)
    scores = standardised_difference(*(table[:, fires] for table in tables))
    found = contrast(tiny, sae, _SEA, _LAND, n=100, per_text=per_text)  # type: ignore[arg-type]
    by_feature = dict(zip(fires.nonzero().flatten().tolist(), scores.tolist(), strict=True))
    for each in found.positive + found.negative:
        assert each.score == pytest.approx(by_feature[each.feature], abs=1e-4)
        means = [float(table[:, each.feature].mean()) for table in tables]
        assert [each.positive_mean, each.negative_mean] == pytest.approx(means, abs=1e-5)
        assert each.positive_texts == int((tables[0][:, each.feature] > 0).sum())


def test_only_answers_are_compared_unless_asked_otherwise(tiny: LanguageModel) -> None:
    def chats(question: str, answers: Sequence[str]) -> list[list[Message]]:
        return [[{"role": "user", "content": question}, {"role": "assistant", "content": answer}] for answer in answers]

    sae = toy_sae_for(tiny)

    def texts_where_it_fires(read: str) -> list[Difference]:
        found = contrast(tiny, sae, chats("A?", _SEA), chats("B?", _LAND), read=read, n=100)  # type: ignore[arg-type]
        return [*found.positive, *found.negative]

    answers, everything = texts_where_it_fires("answer"), texts_where_it_fires("all")
    # The template's tokens are many, and the same in every text.
    assert max(each.positive_mean for each in answers) != max(each.positive_mean for each in everything)
    assert {each.feature for each in answers} <= {each.feature for each in everything}


def test_what_fires_everywhere_is_left_out_with_an_index(tiny: LanguageModel) -> None:
    sae = toy_sae_for(tiny)
    density = [0.5 if feature % 2 else 0.01 for feature in range(sae.config.d_sae)]
    index = toy_index([("x", ["[a]"])] * sae.config.d_sae, density=density, sae_hash=sae.weights_hash)
    found = contrast(tiny, sae, _SEA, _LAND, n=100, index=index)
    assert found.positive
    assert all(each.feature % 2 == 0 for each in found.positive + found.negative)


def test_repeated_texts_count_once(tiny: LanguageModel) -> None:
    sae = toy_sae_for(tiny)
    assert contrast(tiny, sae, [*_SEA, *_SEA], _LAND) == contrast(tiny, sae, _SEA, _LAND)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([], _LAND, "first set holds 0 different texts; give at least 2"),
        (_SEA, ["one", "one"], "second set holds 1 different texts"),
        ([*_SEA, " "], _LAND, "text 6 of the first set: the text is empty"),
        (_SEA, ["x", *_LAND], "text 1 of the second set: there is nothing to read"),
        (_SEA, [*_LAND, "a" * (CONTEXT + 1)], "text 6 of the second set has 513 tokens"),
        (_SEA, list(reversed(_SEA)), "both sets hold the same texts"),
        ("a text", _LAND, "first set is one text; give a list"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(
    tiny: LanguageModel, first: object, second: object, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        contrast(tiny, toy_sae_for(tiny), first, second)  # type: ignore[arg-type]


def test_wrong_settings_of_a_contrast_are_refused(tiny: LanguageModel) -> None:
    sae = toy_sae_for(tiny)
    with pytest.raises(SaeError, match="at least 1, not 0"):
        contrast(tiny, sae, _SEA, _LAND, n=0)
    with pytest.raises(DataError, match="unknown number for a text 'median'"):
        contrast(tiny, sae, _SEA, _LAND, per_text="median")  # type: ignore[arg-type]
    with pytest.raises(SaeError, match="which is not the model"):
        contrast(tiny_model("llama", seed=3), sae, _SEA, _LAND)


def test_an_sae_that_says_nothing_gives_an_empty_contrast(tiny: LanguageModel) -> None:
    sae = toy_sae_for(tiny)
    config = SaeConfig(architecture="relu", d_model=32, d_sae=60, layer=2)
    silent = SparseAutoencoder(config, W_enc=sae.W_enc, b_enc=torch.full((60,), -1e6), W_dec=sae.W_dec, b_dec=sae.b_dec)
    found = contrast(tiny, silent, _SEA, _LAND)
    assert (found.positive, found.negative) == ((), ())


# --- statistics

_NUMBERS = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=2, max_size=6)


@given(_NUMBERS, _NUMBERS)
def test_the_area_under_the_curve_counts_pairs(a: list[float], b: list[float]) -> None:
    pairs = [1.0 if x > y else 0.5 if x == y else 0.0 for x, y in itertools.product(a, b)]
    (found,) = area_under_curve(torch.tensor([a]).T, torch.tensor([b]).T).tolist()
    assert found == pytest.approx(sum(pairs) / len(pairs))


def test_the_standardised_difference_of_a_small_case_by_hand() -> None:
    a = torch.tensor([[1.0, 4.0, 3.0], [3.0, 4.0, 3.0]])
    b = torch.tensor([[0.0, 1.0, 3.0], [2.0, 1.0, 3.0]])
    # Spreads: sqrt((1 + 1 + 1 + 1) / 2), 0 and 0; their median is 0, so 1 stands for it.
    assert standardised_difference(a, b).tolist() == pytest.approx([1 / (2**0.5 + 1), 3.0, 0.0])
    # With a second column that varies the median is sqrt(2).
    wide = [torch.cat([side, side[:, :1], side[:, :1]], dim=1) for side in (a, b)]
    assert standardised_difference(*wide).tolist()[:3] == pytest.approx([1 / 8**0.5, 3 / 2**0.5, 0.0])
