"""The embedding judge: examples give an axis for new texts, a description gives likeness, no engine gives a reason."""

from __future__ import annotations

import pytest
import torch
from tests.engine.rig import make_engine, model_of
from tests.sae.index.toy_index import WordEncoder

from steersman.errors import DataError
from steersman.judges.embedding import EmbeddingJudge, fit_axis
from steersman.judges.facts import Answered
from steersman.judges.local import LocalJudge
from steersman.models.sentence_encoder import load_encoder
from steersman.steering.pairs import load_named

TOPICS = ("tea", "snow", "bread", "ships", "stars", "horses", "rivers", "clocks")
SHOUTED = tuple(f"hurrah hurrah for {topic}" for topic in TOPICS)
SAID = tuple(f"there is some {topic} here" for topic in TOPICS)


def clouds(seed: int, n: int = 40, width: int = 12, apart: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two clouds that part along the first axis."""
    made = torch.Generator().manual_seed(seed)
    one, other = (torch.randn(n, width, generator=made) * 0.3 for _ in range(2))
    one[:, 0] += apart
    return one, other


def test_an_axis_finds_where_texts_part() -> None:
    axis = fit_axis(*clouds(0))
    assert int(axis.weights.abs().argmax()) == 0
    one, other = clouds(1)
    assert sum(value > 0.5 for value in axis.scores(one)) >= 36
    assert sum(value < 0.5 for value in axis.scores(other)) >= 36


def test_scores_are_as_sure_as_left_out_examples_allow() -> None:
    sure = fit_axis(*clouds(2))
    one, other = clouds(3)
    assert 0.8 < sum(sure.scores(one)) / 40 < 0.91
    assert 0.09 < sum(sure.scores(other)) / 40 < 0.2
    # In so many dimensions any two sets of a few texts part widely, and say nothing of others.
    away = []
    for seed in range(12):
        unsure = fit_axis(*clouds(seed, n=12, width=400, apart=0.0))
        away += [abs(value - 0.5) for side in clouds(seed + 50, 12, 400, 0.0) for value in unsure.scores(side)]
    assert sum(away) / len(away) < 0.1


def test_sets_that_do_not_part_give_about_one_half() -> None:
    made = torch.Generator().manual_seed(0)
    text = torch.randn(8, 6, generator=made)
    axis = fit_axis(torch.cat([text, -text]), torch.cat([text, -text]) + 1e-2)
    assert all(abs(value - 0.5) < 0.1 for value in axis.scores(text * 1e-2))


def test_topics_of_paired_examples_do_not_hide_the_behaviour() -> None:
    made = torch.Generator().manual_seed(0)
    topics = torch.randn(8, 40, generator=made) * 2
    shown = torch.zeros(40)
    shown[3] = 1.0
    axis = fit_axis(topics + shown, topics)
    new = torch.randn(20, 40, generator=made) * 2
    gains = [one - other for one, other in zip(axis.scores(new + shown), axis.scores(new), strict=True)]
    assert min(gains) > 0.0
    assert sum(gains) / len(gains) > 0.1


def test_exchanged_examples_exchange_the_scores() -> None:
    one, other = clouds(3)
    there, back = fit_axis(one, other).scores(one), fit_axis(other, one).scores(one)
    assert torch.allclose(torch.tensor(there), 1 - torch.tensor(back), atol=1e-4)


def test_examples_that_tell_nothing_are_refused() -> None:
    one, other = clouds(4)
    with pytest.raises(DataError, match="at least 4"):
        fit_axis(one[:3], other)
    with pytest.raises(DataError, match="same"):
        fit_axis(one, one.clone())
    with pytest.raises(DataError, match="0 plain texts"):
        EmbeddingJudge(WordEncoder(), SHOUTED)


def test_examples_carry_to_answers_about_other_things() -> None:
    judge = EmbeddingJudge(WordEncoder(), SHOUTED[:6], SAID[:6])
    items = [Answered("?", text) for text in (*SHOUTED[6:], *SAID[6:])]
    scores = [verdict.behaviour or 0.0 for verdict in judge.judge("shout", items)]
    assert min(scores[:2]) > 0.5 > max(scores[2:])


def test_without_examples_the_description_is_compared() -> None:
    judge = EmbeddingJudge(WordEncoder())
    items = [Answered("?", "a pirate likes to talk and talk"), Answered("?", "water boils at a hundred degrees")]
    close, far = judge.judge("talk like a pirate", items)
    assert (close.behaviour or 0.0) > (far.behaviour or 0.0)
    with pytest.raises(DataError, match="empty"):
        judge.judge(" ", items)


def test_coherence_is_another_judges_or_missing_with_the_reason() -> None:
    encoder, other = WordEncoder(), LocalJudge(make_engine(model_of("llama")), WordEncoder())
    items = [Answered("about tea?", SHOUTED[0]), Answered("about tea?", "")]
    alone = EmbeddingJudge(encoder, SHOUTED, SAID).judge("shout", items)
    assert [(verdict.coherence, verdict.missing is None) for verdict in alone] == [(None, False)] * 2
    whole = EmbeddingJudge(encoder, SHOUTED, SAID, coherence=other).judge("shout", items)
    assert [verdict.coherence for verdict in whole] == [each.coherence for each in other.judge("shout", items)]
    assert [verdict.behaviour for verdict in whole] == [verdict.behaviour for verdict in alone]
    assert all(verdict.missing is None for verdict in whole)
    assert alone[1].behaviour == 0.0
    assert EmbeddingJudge(encoder).judge("shout", []) == []


def test_a_coherence_that_another_judge_lacks_is_lacking_here_for_the_same_reason() -> None:
    lacking = EmbeddingJudge(WordEncoder())
    item = Answered("about tea?", SHOUTED[0])
    found = EmbeddingJudge(WordEncoder(), SHOUTED, SAID, coherence=lacking).judge("shout", [item])[0]
    assert found.coherence is None
    assert found.behaviour is not None
    assert found.missing == lacking.judge("shout", [item])[0].missing


@pytest.mark.model
@pytest.mark.parametrize("name", ["pirate", "formal", "cheerful", "for-children"])
def test_half_of_a_contrast_set_judges_the_other_half(name: str) -> None:
    sides = [
        [str(side[-1]["content"]) for side in (pair.positive, pair.negative) if not isinstance(side, str)]
        for pair in load_named(name)
    ]
    positive, negative = ([pair[side] for pair in sides] for side in (0, 1))
    judge = EmbeddingJudge(load_encoder(), positive[::2], negative[::2])
    items = [Answered("?", text) for text in (*positive[1::2], *negative[1::2])]
    scores = [verdict.behaviour or 0.0 for verdict in judge.judge(name, items)]
    half = len(scores) // 2
    right = sum(one > other for one in scores[:half] for other in scores[half:])
    assert right / half**2 > 0.9
