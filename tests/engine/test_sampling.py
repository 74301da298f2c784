"""Every setting changes the choice of a token as it says; the distributions are those of transformers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from tests.engine.rig import ask, make_engine, model_of
from torch import Tensor

from steersman.engine.request import Sampling
from steersman.engine.sampling import candidates, choose, logprob_of, penalised

DRAWS = 2000
HISTORY = (3, 3, 5, 17, 40, 5)


def some_logits(seed: int, vocab: int = 60) -> Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * 3


def theirs(logits: Tensor, sampling: Sampling, history: Sequence[int]) -> Tensor:
    """The distribution that transformers samples from."""
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    steps = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty=sampling.repetition_penalty)])
    steps.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        steps.append(TopPLogitsWarper(sampling.top_p))
    return steps(torch.tensor([history]), logits[None].clone())[0].softmax(-1)


def ours(logits: Tensor, sampling: Sampling, history: Sequence[int]) -> Tensor:
    """The share of evenly spread draws that chooses each token: its probability, up to one draw."""
    counts = Counter(choose(logits, sampling, history, (draw + 0.5) / DRAWS) for draw in range(DRAWS))
    return torch.tensor([counts[token] / DRAWS for token in range(len(logits))])


SETTINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.3),
    Sampling(temperature=5.0),
    Sampling(temperature=1.0, top_k=1),
    Sampling(temperature=1.0, top_k=7),
    Sampling(temperature=1.0, top_k=1000),
    Sampling(temperature=1.0, top_p=0.05),
    Sampling(temperature=1.0, top_p=0.8),
    Sampling(temperature=1.0, top_p=0.999),
    Sampling(temperature=1.0, repetition_penalty=1.8),
    Sampling(temperature=1.0, repetition_penalty=0.5),
    Sampling(temperature=1.7, top_k=9, top_p=0.7, repetition_penalty=1.3),
    Sampling(temperature=0.6, top_k=3, top_p=0.95, repetition_penalty=0.8),
]


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_the_distribution_is_that_of_transformers(sampling: Sampling, seed: int) -> None:
    logits = some_logits(seed)
    difference = ours(logits, sampling, HISTORY) - theirs(logits, sampling, HISTORY)
    assert difference.abs().max() < 1.5 / DRAWS


def test_top_p_looks_at_the_whole_vocabulary_where_it_must() -> None:
    logits = some_logits(0, vocab=5000) / 10
    sampling = Sampling(temperature=1.0, top_p=0.9)
    ids, kept = candidates(logits, 0, sampling.top_p)
    expected = theirs(logits, sampling, HISTORY)
    assert set(ids.tolist()) == set(expected.nonzero()[:, 0].tolist())
    assert torch.allclose((kept / kept.sum())[ids.argsort()], expected[ids.sort().values], atol=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_is_the_likeliest_token_after_the_penalty(seed: int) -> None:
    logits = some_logits(seed)
    assert choose(logits, Sampling(), HISTORY, 0.99) == int(logits.argmax())
    likeliest = int(logits.argmax())
    assert choose(logits, Sampling(repetition_penalty=100.0), [likeliest], 0.0) != likeliest


@pytest.mark.parametrize("temperature", [1e-3, 1e-10, 1e-38, 1e-45, 5e-324])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    logits = some_logits(1) * 10
    for draw in (0.0, 0.5, 0.999999):
        assert choose(logits, Sampling(temperature=temperature), (), draw) == int(logits.argmax())


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"top_p": 1e-300}])
def test_one_candidate_is_greedy_at_any_temperature(settings: dict[str, float]) -> None:
    logits = some_logits(2)
    sampling = Sampling(temperature=100.0, **settings)  # type: ignore[arg-type]
    assert {choose(logits, sampling, (), draw / 10) for draw in range(10)} == {int(logits.argmax())}


def test_a_token_counts_once_however_often_it_was_written() -> None:
    logits = some_logits(3)
    assert torch.equal(penalised(logits, [4, 4, 4, 9], 1.5), penalised(logits, [9, 4], 1.5))


def test_choosing_leaves_the_logits_alone() -> None:
    logits = some_logits(4)
    before = logits.clone()
    for sampling in (*SETTINGS, Sampling(repetition_penalty=2.0)):
        choose(logits, sampling, HISTORY, 0.3)
    assert torch.equal(logits, before)


def test_logprobs_are_those_of_the_untouched_logits() -> None:
    logits = some_logits(5)
    expected = logits.log_softmax(-1)
    found = logprob_of(logits, 11, 4)
    assert (found.token_id, found.logprob) == (11, pytest.approx(float(expected[11])))
    best = expected.sort(descending=True)
    assert [token for token, _ in found.top] == best.indices[:4].tolist()
    assert [value for _, value in found.top] == pytest.approx(best.values[:4].tolist())
    assert logprob_of(logits, 11, 0).top == ()


def test_tokens_come_as_often_as_they_are_likely() -> None:
    """Chi-square over the seeds 0 to 479, through the engine; 5 candidates leave 4 degrees of freedom."""
    engine = make_engine(model_of("llama"))
    settings = {"tokens": 1, "temperature": 12.0, "top_k": 5}
    results = engine.generate([ask("hello", seed=seed, logprobs=100, **settings) for seed in range(480)])
    counts = Counter(result.token_ids[0] for result in results)
    likeliest = results[0].logprobs[0].top[:5]
    weights = torch.tensor([logprob for _, logprob in likeliest]).div(12.0).softmax(0).tolist()
    square = sum((counts[token] - 480 * p) ** 2 / (480 * p) for (token, _), p in zip(likeliest, weights, strict=True))
    assert sum(counts.values()) == sum(counts[token] for token, _ in likeliest)
    assert square < 18.5  # Exceeded once in a thousand times.
