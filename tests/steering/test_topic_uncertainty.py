"""What is said of how well an SAE represents a topic: by hand, under chance alone, and from texts."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tests.steering.topics import CODE, MIXED, SHIPS, WordEncoder, tiny_sae

from steersman.errors import DataError
from steersman.models.language_model import LanguageModel
from steersman.steering.methods import topic_uncertainty as tu
from steersman.steering.methods.topic_alignment import Readings, TopicScores, feature_scores, score_topic

LATENTS = 60


def table_of(weights: torch.Tensor) -> Readings:
    """Readings of a table of activations, pieces by latents; residuals of variance 1 whose half is explained."""
    shares = weights.double() / weights.double().sum(1, keepdim=True).clamp(min=1e-9)
    pieces, latents = shares.nonzero(as_tuple=True)
    n = len(shares)
    tokens = torch.full((n,), 10)
    return Readings(
        pieces,
        latents,
        shares[pieces, latents],
        (n, shares.shape[1]),
        errors=torch.full((n,), 10.0).double(),
        squares=torch.full((n,), 20.0).double(),
        sums=torch.zeros(n, 2).double(),
        tokens=tokens,
    )


def random_table(n: int, seed: int, own: int = 0) -> torch.Tensor:
    """Every piece fires at random on the first 50 latents; and on `own` of the last ten."""
    made = torch.Generator().manual_seed(seed)
    table = torch.rand(n, LATENTS, generator=made) * (torch.rand(n, LATENTS, generator=made) < 0.3)
    table[:, 50:] = 0
    table[:, 50 : 50 + own] = 1 + torch.rand(n, own, generator=made)
    return table


def scores_of(reference: Readings, seed: int = 0) -> TopicScores:
    made = torch.Generator().manual_seed(seed)
    distances = 0.5 + torch.rand(reference.shape[0], generator=made).double()
    return TopicScores(feature_scores(reference, distances), reference, distances, "mean", {})


@pytest.mark.parametrize("n", [4, 12, 60])
def test_a_topic_that_nothing_separates_can_hardly_be_represented(n: int) -> None:
    numbers = []
    for seed in range(12):
        known = tu.uncertainty(scores_of(table_of(random_table(40, seed))), table_of(random_table(n, 100 + seed)))
        assert known.number.mean is not None
        numbers.append(known.number.mean)
        assert known.verdict == "can hardly"
    # Latents chosen by chance hold as much of the topic's mass as of the reference's: not the least bias.
    assert abs(sum(numbers) / len(numbers)) < 0.03


def test_a_topic_with_latents_of_its_own_can_be_represented() -> None:
    topic = random_table(20, 1, own=5)
    known = tu.uncertainty(scores_of(table_of(random_table(40, 0))), table_of(topic))
    assert known.verdict == "can"
    assert known.separating >= 5
    own = float((topic[:, 50:].sum(1) / topic.sum(1)).mean())
    assert known.coverage == pytest.approx(own, abs=0.12)
    assert (known.topic_error, known.reference_error) == pytest.approx((0.5, 0.5))
    assert known.number.mean == pytest.approx(known.coverage * 0.5)
    assert known.number.low is not None
    assert known.number.high is not None
    assert 0.05 < known.number.low < known.coverage * 0.5 < known.number.high
    assert (known.number.n, known.number.total) == (20, 20)
    assert "can represent" in str(known)
    assert "20 scored / 20" in str(known)


def test_pieces_of_one_text_do_not_vouch_for_each_other() -> None:
    # Two long texts that share no latent: as pieces they separate, but nothing of one says anything of the other.
    table = random_table(20, 1)
    table[:10, 50], table[10:, 51] = 5.0, 5.0
    pieces, scores = table_of(table), scores_of(table_of(random_table(40, 0)))
    assert tu.uncertainty(scores, pieces).verdict == "can"
    whole = dataclasses.replace(pieces, texts=torch.arange(20) // 10)
    assert tu.uncertainty(scores, whole).verdict == "can hardly"
    with pytest.raises(DataError, match="one text of the topic"):
        tu.uncertainty(scores, dataclasses.replace(pieces, texts=torch.zeros(20, dtype=torch.long)))


def test_a_reconstruction_that_explains_nothing_cannot_make_a_topic_representable() -> None:
    # Latents that separate the wrong way round times a negative explained share would come out above 0.
    topic = dataclasses.replace(table_of(random_table(20, 1, own=5)), errors=torch.full((20,), 60.0).double())
    known = tu.uncertainty(scores_of(table_of(random_table(40, 0))), topic)
    assert known.topic_error > 1
    assert known.number.mean == 0.0
    assert known.verdict == "can hardly"


def test_the_error_is_about_the_mean_of_the_reference() -> None:
    nothing = torch.zeros(0, dtype=torch.long)

    def of(rows: list[list[float]], error: float) -> Readings:
        h = torch.tensor(rows).double()
        return Readings(
            nothing,
            nothing,
            torch.zeros(0),
            (1, 4),
            errors=torch.tensor([error]).double(),
            squares=h.square().sum()[None],
            sums=h.sum(0)[None],
            tokens=torch.tensor([len(h)]),
        )

    # Mean (1, 0); distances squared: 1 + 1 of the reference, 4 + 9 of the topic.
    reference, topic = of([[0.0, 0.0], [2.0, 0.0]], 1.0), of([[3.0, 0.0], [1.0, 3.0]], 1.3)
    assert tu.unexplained(reference, reference) == pytest.approx(0.5)
    assert tu.unexplained(topic, reference) == pytest.approx(0.1)


def test_pieces_where_nothing_fires_are_counted_and_left_out() -> None:
    topic = random_table(20, 1, own=5)
    topic[[3, 7]] = 0
    known = tu.uncertainty(scores_of(table_of(random_table(40, 0))), table_of(topic))
    assert (known.number.n, known.number.total) == (18, 20)
    with pytest.raises(DataError, match="1 pieces of the topic"):
        tu.uncertainty(scores_of(table_of(random_table(40, 0))), table_of(topic[3:5]))


def test_intervals_hold_the_scores_and_narrow_with_more_texts() -> None:
    widths = []
    for n in (20, 320):
        # Half of the texts are near; half of the latents fire more on these, the others more on the far ones.
        near = torch.arange(n) % 2 == 0
        table = random_table(n, 0) * (1 + 3 * (near[:, None] == (torch.arange(LATENTS) < 25)))
        reference, distances = table_of(table), torch.where(near, 0.5, 1.0).double()
        scores = TopicScores(feature_scores(reference, distances), reference, distances, "mean", {})
        low, high = tu.score_intervals(scores, torch.Generator().manual_seed(0))
        fired = scores.scores > 0
        inside = (low <= scores.scores) & (scores.scores <= high)
        assert inside[fired].float().mean() > 0.85
        assert low[50:].isnan().all()  # Never fired, never scored.
        widths.append(float((high - low)[:50].nanmean()))
    assert widths[1] < widths[0]


def test_seeds_repeat(tiny: LanguageModel) -> None:
    sae = tiny_sae()
    topic = score_topic(tiny, sae, WordEncoder(), SHIPS, MIXED)
    one, again, other = (tu.assess(tiny, sae, topic, SHIPS, seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert one != other
    assert 0 < one.topic_error < 2
    assert one.fired_share == topic.fired / 96
    assert [each.latent for each in one.top] == topic.top(10)
    assert all(each.low is None or each.low <= each.high for each in one.top if each.high is not None)
    assert math.isfinite(one.mean_width)


def test_a_long_topic_is_sampled_evenly(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tu, "_MAX_PIECES", 5)
    sae = tiny_sae()
    topic = score_topic(tiny, sae, WordEncoder(), CODE, MIXED)
    assert tu.assess(tiny, sae, topic, CODE).topic_pieces == 5
