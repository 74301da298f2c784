"""Topic scores by hand, from texts, and the recipes that use them."""

from __future__ import annotations

import pytest
import torch
from tests.steering.topics import CODE, MIXED, SHIPS, WordEncoder, tiny_sae
from torch import Tensor

from steersman.engine.engine import Engine
from steersman.engine.request import Request, Sampling
from steersman.errors import DataError, RecipeError, SaeError
from steersman.models.language_model import LanguageModel, ModelRef
from steersman.models.residuals import read_residuals
from steersman.sae.config import SaeRef
from steersman.steering.edits import Add, Swap, Weight
from steersman.steering.methods import topic_alignment as ta
from steersman.steering.methods.topic_texts import pieces_of
from steersman.steering.recipe import Recipe


def readings(table: list[list[float]]) -> ta.Readings:
    """From shares of latents (columns) on pieces (rows)."""
    dense = torch.tensor(table, dtype=torch.float64)
    pieces, latents = dense.nonzero(as_tuple=True)
    n = len(dense)
    nothing = torch.zeros(n, dtype=torch.float64)
    return ta.Readings(
        pieces, latents, dense[pieces, latents], (n, dense.shape[1]), nothing, nothing, torch.zeros(n, 2), nothing
    )


def test_scores_of_a_small_case_by_hand() -> None:
    # Latent 0 fires on the near text alone, 1 on the far one alone, 2 a quarter and three quarters, 3 never.
    found = ta.feature_scores(readings([[0.75, 0.0, 0.25, 0.0], [0.0, 0.25, 0.75, 0.0]]), torch.tensor([0.5, 1.0]))
    # m = 0.25, 1, (0.25 * 0.25 + 1 * 0.75) / 1 = 0.8125; less the smallest, over 0.75: 0, 1, 0.75.
    assert found.tolist() == [1.0, 0.0, 0.25, 0.0]
    assert found.dtype == torch.float32


def test_scores_agree_with_the_formula_said_plainly() -> None:
    made = torch.Generator().manual_seed(0)
    table = torch.rand(9, 20, generator=made, dtype=torch.float64) * (torch.rand(9, 20, generator=made) < 0.4)
    table[:, 5] = 0
    table /= table.sum(1, keepdim=True)
    distances = torch.rand(9, generator=made, dtype=torch.float64) + 0.3
    found = ta.feature_scores(readings(table.tolist()), distances)
    m = (distances[:, None] ** 2 * table).sum(0) / table.sum(0)
    fired = table.sum(0) > 0
    expected = 1 - (m - m[fired].min()) / (m[fired].max() - m[fired].min())
    expected[~fired] = 0
    torch.testing.assert_close(found, expected.float())
    twice = ta.feature_scores(readings([*table.tolist(), table[3].tolist()]), torch.cat([distances, distances[3:4]]))
    weights = torch.ones(9).index_fill(0, torch.tensor([3]), 2.0).double()
    torch.testing.assert_close(ta.feature_scores(readings(table.tolist()), distances, weights), twice)


def test_distances_are_to_the_nearest_text_of_the_topic() -> None:
    topic = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = ta.smallest_distances(torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]]), topic)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.4**0.5, 2**0.5], dtype=torch.float64))
    assert found[0] == 0  # Exactly, where texts are equal.


def test_summaries_by_hand() -> None:
    ids = torch.tensor([[3, 1], [3, 0], [2, 3]])
    values = torch.tensor([[2.0, 1.0], [1.0, 0.0], [4.0, 3.0]])
    shares: dict[ta.Summary, list[float]] = {
        "mean": [1 / 11, 4 / 11, 6 / 11],
        "max": [1 / 8, 4 / 8, 3 / 8],
        "count": [1 / 5, 1 / 5, 3 / 5],
    }
    for summary, expected in shares.items():
        latents, found = ta.summarised(ids, values, summary)
        assert latents.tolist() == [1, 2, 3]
        assert found.tolist() == pytest.approx(expected)
    assert [len(part) for part in ta.summarised(ids, torch.zeros(3, 2), "mean")] == [0, 0]


@pytest.mark.parametrize("summary", ["mean", "max", "count"])
def test_texts_are_read_as_they_would_be_one_by_one(
    tiny: LanguageModel, summary: ta.Summary, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = tiny_sae("relu", layer=1)
    monkeypatch.setattr(ta, "_PIECES_AT_ONCE", 4)
    found = ta.score_topic(tiny, sae, WordEncoder(), SHIPS, MIXED, summary=summary)
    table = []
    for text in MIXED:
        ids = tiny.tokenizer(text)["input_ids"]
        acts = sae.encode(read_residuals(tiny, [ids], [1])[0][1].float()).double()
        number = {"mean": acts.mean(0), "max": acts.amax(0), "count": (acts > 0).double().mean(0)}[summary]
        table.append((number / number.sum()).tolist())
    near = WordEncoder().encode(SHIPS)
    distances = (WordEncoder().encode(MIXED)[:, None] - near).norm(dim=-1).amin(1)
    assert found.distances[:4].tolist() == [0.0] * 4
    expected = ta.feature_scores(readings(table), distances.double())
    torch.testing.assert_close(found.scores, expected, rtol=1e-3, atol=1e-3)
    assert (found.facts["align_texts"], found.facts["reference_texts"]) == (9, 11)
    assert found.top(3, 1) == found.scores.argsort(descending=True)[:3].tolist()


def test_latents_of_one_text_come_after_those_of_several() -> None:
    # Latent 0 fires on one near text, 1 on both near ones and 2 on all: the paper's score puts 0 and 1 level.
    scores = readings([[0.5, 0.3, 0.2], [0.0, 0.7, 0.3], [0.0, 0.0, 1.0]])
    topic = ta.TopicScores(
        ta.feature_scores(scores, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)),
        scores,
        torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64),
        "mean",
        {},
    )
    assert topic.top(3, 1) == [0, 1, 2]
    assert topic.top(3, 2) == [1, 2, 0]
    assert topic.top(3, 4) == [0, 1, 2]


def test_long_texts_count_piece_by_piece(tiny: LanguageModel) -> None:
    long = " ".join(CODE)
    found = ta.score_topic(tiny, tiny_sae(), WordEncoder(), SHIPS, [long, *MIXED[-2:]], chunk_tokens=32)
    cut = pieces_of(tiny, [long, "ab"], "two", 32)
    assert found.facts["reference_texts"] == 3
    assert found.facts["reference_pieces"] == found.reference.shape[0] == len(found.distances) > 3
    assert {piece.text_number for piece in cut} == {0, 1}
    assert max(len(piece.ids) for piece in cut) == 32


def recipe(
    tiny: LanguageModel, method: ta.Steering = "swap", keep_error: bool | None = None, name: str = "t"
) -> Recipe:
    sae = tiny_sae()
    found = ta.score_topic(tiny, sae, WordEncoder(), SHIPS, MIXED)
    return ta.fit(
        found, sae, model=tiny.ref, sae_ref=sae.ref("toy"), name=name, method=method, keep_error=keep_error, top=3
    )


def test_each_method_is_its_edits(tiny: LanguageModel) -> None:
    (swap,), (weight,) = recipe(tiny).edits, recipe(tiny, "weight", False).edits
    assert isinstance(swap, Swap)
    assert isinstance(weight, Weight)
    assert (swap.keep_error, weight.keep_error) == (True, False)
    assert swap.scores == weight.scores
    (plain,) = recipe(tiny, "sae").edits
    assert isinstance(plain, Weight)
    assert not plain.keep_error
    assert plain.scores.tensor.eq(1).all()
    (raised,) = recipe(tiny, "clamp").edits
    assert isinstance(raised, Add)
    best = [share.id for share in raised.features]
    assert best == ta.score_topic(tiny, tiny_sae(), WordEncoder(), SHIPS, MIXED).top(3)
    torch.testing.assert_close(raised.vector.tensor, tiny_sae().W_dec[best].sum(0))
    assert recipe(tiny, "clamp", False).edits == (plain, raised)


@pytest.mark.parametrize("method", ["sae", "clamp", "weight", "swap"])
def test_every_method_steers_the_model(tiny: LanguageModel, method: ta.Steering) -> None:
    sae = tiny_sae()
    engine = Engine(tiny, saes=lambda _ref: sae)
    made = recipe(tiny, method)
    sampling = Sampling(max_tokens=6)
    plain, steered, off = engine.generate(
        [
            Request(prompt="The ship", recipe=each, sampling=sampling, strength=strength, logprobs=1)
            for each, strength in ((None, 1.0), (made, 1.0), (made, 0.0))
        ]
    )
    assert [token.logprob for token in plain.logprobs] == [token.logprob for token in off.logprobs]
    assert [token.logprob for token in plain.logprobs] != [token.logprob for token in steered.logprobs]


def test_clamp_without_the_error_raises_activations_of_the_reconstruction(tiny: LanguageModel) -> None:
    sae, h = tiny_sae("relu"), torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    rows = sae.W_dec[[4, 9]]
    raised = sae.encode(h)
    raised[:, [4, 9]] += 0.8
    torch.testing.assert_close(sae.decode(raised), sae.reconstruct(h) + 0.8 * rows.sum(0))


@pytest.mark.parametrize(
    ("align", "reference", "message"),
    [
        ([], MIXED, "alignment set holds 0 different texts"),
        (SHIPS, ["one alone"], "reference set holds 1 different texts"),
        (SHIPS, ["the same"] * 9, "reference set holds 1 different texts"),
        (SHIPS, ["a", "b", " "], "reference set holds 0 different texts"),
        (SHIPS, SHIPS[:5], "nothing but alignment texts"),
        (SHIPS, ["x y", "y x"], "equally far from the topic"),
        ("a text", MIXED, "give a list of texts"),
    ],
)
def test_texts_that_cannot_be_scored_are_refused(
    tiny: LanguageModel, align: list[str], reference: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        ta.score_topic(tiny, tiny_sae(), WordEncoder(), align, reference)


def test_an_sae_of_another_model_and_methods_that_do_not_exist_are_refused(tiny: LanguageModel) -> None:
    stranger = tiny_sae().for_model(ModelRef(id="other", config_hash="0", weights_hash="0"))
    with pytest.raises(SaeError, match="not the model"):
        ta.score_topic(tiny, stranger, WordEncoder(), SHIPS, MIXED)
    with pytest.raises(DataError, match="unknown summary"):
        ta.score_topic(tiny, tiny_sae(), WordEncoder(), SHIPS, MIXED, summary="median")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="chunk_tokens must lie between"):
        ta.score_topic(tiny, tiny_sae(), WordEncoder(), SHIPS, MIXED, chunk_tokens=1)
    with pytest.raises(RecipeError, match="would do nothing"):
        recipe(tiny, "sae", True)
    with pytest.raises(RecipeError, match="unknown topic method"):
        recipe(tiny, "shift")  # type: ignore[arg-type]
    dead = tiny_sae()
    dead.W_dec.zero_()
    found = ta.score_topic(tiny, tiny_sae(), WordEncoder(), SHIPS, MIXED)
    ref = SaeRef(id="x", layer=2, weights_hash="0")
    with pytest.raises(RecipeError, match="dead"):
        ta.fit(found, dead, model=tiny.ref, sae_ref=ref, name="d", method="clamp")


def test_scores_do_not_depend_on_order_or_repetition(tiny: LanguageModel) -> None:
    def scores(align: list[str], reference: list[str]) -> Tensor:
        return ta.score_topic(tiny, tiny_sae(), WordEncoder(), align, reference).scores

    torch.testing.assert_close(scores(SHIPS, MIXED), scores([*SHIPS[::-1], SHIPS[0]], [*MIXED[::-1], *MIXED[:3]]))
