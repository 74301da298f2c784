"""The model as its own teacher: what is taught follows the formula, and the loss is a divergence from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.auto.rig import planted_task

from steersman.auto import lessons
from steersman.auto.contrast_set import OWN_ANSWERS, phrasings
from steersman.auto.lessons import make_lessons
from steersman.models.language_model import LanguageModel, chat
from steersman.models.spans import answer_span


def _after(model: LanguageModel, prompt: str, system: str | None, answer: str) -> torch.Tensor:
    """Log-probabilities of every token at each place of an answer, by the whole model."""
    span = answer_span(model, [*chat(prompt, system), {"role": "assistant", "content": answer}])
    logits = model.hf(input_ids=torch.tensor([span.ids[: span.stop]])).logits[0].float().log_softmax(-1)
    return logits[span.start - 1 : span.stop - 1]


def test_what_is_taught_is_the_amplified_prompt(tiny: LanguageModel) -> None:
    task = planted_task(tiny)
    [item] = task.contrast.train[:1]
    contrast = replace(task.contrast, train=(item,), validation=(), source=OWN_ANSWERS)
    made = make_lessons(tiny, 2, task.behaviour, contrast, seed=0)
    [lesson] = made.train  # The positive answer and the plain one.
    assert len(lesson) == lesson.tokens.shape[0] == int(lesson.batch.wanted.sum())
    user, system = phrasings(task.behaviour, item.prompt)[0]
    texts = [item.positive, item.negative]
    wanted = []
    for answer in texts:
        told, plain = _after(tiny, user, system, answer), _after(tiny, item.prompt, None, answer)
        guided = told + lessons.AMPLIFY * (told - plain)
        guided[told < told.max(1, keepdim=True).values - lessons._PLAUSIBLE] = -torch.inf
        wanted.append(guided.softmax(1))
    dense = torch.zeros(len(lesson), tiny.n_vocab).scatter(1, lesson.tokens, lesson.shares)
    either = (torch.cat(wanted), torch.cat(wanted[::-1]))  # Texts are shuffled.
    # A tiny model finds all tokens about equally likely: what lies beyond the likeliest ones is left out.
    kept = [torch.nn.functional.normalize(each * (dense > 0), p=1, dim=1) for each in either]
    assert any(torch.allclose(dense, each, atol=1e-4) for each in kept)


def test_the_loss_is_a_divergence(tiny: LanguageModel) -> None:
    task = planted_task(tiny)
    contrast = replace(task.contrast, source=OWN_ANSWERS)
    made = make_lessons(tiny, 2, task.behaviour, contrast, seed=0)
    for lesson in (*made.train, *made.validation):
        torch.testing.assert_close(lesson.shares.sum(1), torch.ones(len(lesson)))
        for length in (0.0, 1.0, 5.0):
            added = torch.full((tiny.d_model,), length)
            assert float(lesson.loss(made.upper, added)) >= 0


def test_somebody_elses_examples_teach_their_tokens(tiny: LanguageModel) -> None:
    task = planted_task(tiny)
    [lesson, *_] = make_lessons(tiny, 2, task.behaviour, task.contrast, seed=0).train
    assert torch.equal(lesson.tokens[:, 0], lesson.batch.targets)
    assert lesson.shares.unique().tolist() == pytest.approx([-lessons._UNLEARN, 1.0])
