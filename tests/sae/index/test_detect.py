"""A good label is found out, a shuffled one scores chance, and the rule never saw what it judges."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from steersman.errors import SaeError
from steersman.sae.index import detect as module
from steersman.sae.index.detect import LocalJudge, Trial, balanced_accuracy, detect, summary
from steersman.sae.index.passages import ChatTags

JUDGE = LocalJudge(ChatTags())
WORDS = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in ("nd", "rt", "ck", "lp", "st", "mb")]


def _text(made: random.Random, *words: str) -> str:
    text = [*(made.choice(WORDS) for _ in range(12)), *words]
    made.shuffle(text)
    return " ".join(text)


def _trials(n: int, *, seen: float = 1.0, seed: int = 0) -> list[Trial]:
    """Features that fire on a word each; it stands in `seen` of the windows where they fire."""
    made = random.Random(seed)
    trials = []
    for word in made.sample(WORDS, n):
        firing = [_text(made, *([word] if made.random() < seen else [])) for _ in range(12)]
        silent = [text for text in (_text(made) for _ in range(40)) if word not in text.split()]
        trials.append(Trial(f'"{word}"', firing, silent[:24]))
    return trials


def test_true_labels_score_high_and_shuffled_ones_chance() -> None:
    found = detect(_trials(60), JUDGE)
    assert found.n_scored == found.n_total == 60
    assert found.mean is not None
    assert found.control is not None
    assert found.mean > 0.98
    assert abs(found.control - 0.5) < 0.03
    assert found.share_good == 1.0
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.mean <= found.high


def test_labels_that_say_nothing_score_chance() -> None:
    trials = _trials(60)
    labels = random.Random(1).sample([trial.label for trial in trials], 60)
    wrong = [
        trial._replace(label=label if label != trial.label else '"zzz"')
        for trial, label in zip(trials, labels, strict=True)
    ]
    mean = detect(wrong, JUDGE).mean
    assert mean is not None
    assert abs(mean - 0.5) < 0.03


def test_a_label_that_half_holds_scores_half_way() -> None:
    mean = detect(_trials(80, seen=0.5), JUDGE).mean
    assert mean is not None
    assert 0.68 < mean < 0.8


def test_few_trials_are_judged_by_the_fixed_rule() -> None:
    trial = Trial('"fox"', ["a fox"] * 4 + ["a dog"] * 4, ["a dog"] * 6 + ["the fox"] * 2)
    found = detect([trial], JUDGE)
    assert found.scores == (0.5 * (4 / 8) + 0.5 * (6 / 8),)
    assert found.control is None
    both = detect([trial, trial._replace(label='"dog"')], JUDGE)
    assert both.scores == (0.625, 0.375)
    assert both.control == 0.5  # Each with the other's label: 0.375 and 0.625.


def test_the_rule_is_fitted_on_other_features_only() -> None:
    trials = _trials(40)
    before = detect(trials, JUDGE)
    # Turning one feature's windows around must turn its score around, and cannot teach the rule that judges it.
    turned = list(trials)
    turned[7] = trials[7]._replace(firing=trials[7].silent, silent=trials[7].firing)
    after = detect(turned, JUDGE)
    assert before.scores[7] is not None
    assert after.scores[7] == pytest.approx(1 - before.scores[7])


def test_a_missing_score_has_its_reason() -> None:
    good = _trials(3)
    found = detect(
        [good[0], Trial(None, ["x"] * 9, ["y"] * 9), Trial('"x"', ["x"] * 4, ["y"] * 9), Trial('"x"', ["x"] * 9, [])],
        JUDGE,
    )
    assert [score is None for score in found.scores] == [why is not None for why in found.missing]
    assert found.missing[0] is None
    assert found.missing[1] == "the feature has no label"
    assert "only 4 held-out windows where it fires" in str(found.missing[2])
    assert "only 0 held-out windows where it does not fire" in str(found.missing[3])
    assert (found.n_scored, found.n_total) == (1, 4)


def test_nothing_to_score_is_no_error() -> None:
    found = detect([], JUDGE)
    assert (found.scores, found.mean, found.low, found.share_good, found.control) == ((), None, None, None, None)
    assert detect([Trial(None, [], [])], JUDGE).mean is None


def test_the_judge_sees_text_only_and_answers_alike_each_time() -> None:
    trials = _trials(25)
    assert detect(trials, JUDGE) == detect(trials, JUDGE)
    evidence = JUDGE.evidence('"fox"; about ships; text in code', ["a fox", "the ship", "x = f(y);\nreturn z;\n", ""])
    assert evidence[:, 1].tolist() == [1.0, 1.0, 1.0, 0.0]
    assert evidence[:, 2].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert JUDGE.evidence('"fox"', []).shape[0] == 0
    # Words of anybody's own are read too.
    assert JUDGE.evidence("things about ships", ["the ship sails", "a fox"])[:, 1].tolist() == [1.0, 0.0]


def test_clues_that_hold_together_must_both_hold() -> None:
    evidence = JUDGE.evidence('"bank" about river', ["bank of a river", "a bank", "two rivers"])
    assert evidence[:, 1].tolist() == [1.0, 0.0, 0.0]


# --- with a sentence encoder

MEANINGS = {"boat": 0, "vessel": 0, "cat": 1, "kitten": 1, "sun": 2, "star": 2}


def _encode(texts: Sequence[str]) -> Tensor:
    """An encoder that knows three meanings."""
    rows = torch.zeros(len(texts), 4)
    rows[:, 3] = 0.1
    for row, text in zip(rows, texts, strict=True):
        for word in text.replace('"', "").split():
            if word in MEANINGS:
                row[MEANINGS[word]] += 1
    return F.normalize(rows, dim=1)


def test_meaning_is_judged_where_no_word_is_shared() -> None:
    made = random.Random(0)
    trials = []
    for number in range(60):
        said, shown = (("boat", "vessel"), ("cat", "kitten"), ("sun", "star"))[number % 3]
        others = [word for word in MEANINGS if MEANINGS[word] != MEANINGS[said]]
        firing = [_text(made, shown) for _ in range(8)]
        trials.append(Trial(f"about {said}", firing, [_text(made, made.choice(others)) for _ in range(8)]))
    reference = [_text(made, *made.sample(list(MEANINGS), made.randint(0, 1))) for _ in range(60)]
    plain, near = detect(trials, JUDGE), detect(trials, LocalJudge(ChatTags(), _encode, reference))
    assert plain.mean is not None
    assert near.mean is not None
    assert plain.mean < 0.55
    assert near.mean > 0.9


def test_an_encoder_needs_texts_to_compare_with() -> None:
    with pytest.raises(SaeError, match="needs reference windows"):
        LocalJudge(ChatTags(), _encode)


# --- arithmetic


def test_balanced_accuracy_counts_both_sides_alike() -> None:
    fires = torch.tensor([True] * 2 + [False] * 8)
    assert balanced_accuracy(torch.tensor([True, False] + [False] * 6 + [True] * 2), fires) == (0.5 + 0.75) / 2
    assert balanced_accuracy(torch.ones(10, dtype=torch.bool), fires) == 0.5


def test_the_interval_shrinks_with_the_number_of_labels() -> None:
    made = random.Random(0)
    scores = [made.gauss(0.7, 0.1) for _ in range(400)]
    few, many = summary(scores[:20], [None] * 20, []), summary(scores, [None] * 400, [])
    assert few.low is not None
    assert few.high is not None
    assert many.low is not None
    assert many.high is not None
    assert few.high - few.low > 2 * (many.high - many.low)
    assert many.high - many.low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.2)
    assert summary(scores, [None] * 400, []) == many
    assert replace(many, control=0.5) == summary(scores, [None] * 400, [0.4, 0.6])


def test_with_many_trials_the_rule_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    # A clue that holds everywhere but where the feature fires: only a fitted rule can turn that around.
    made = random.Random(0)
    trials = [
        Trial('"the"', [_text(made) for _ in range(8)], [_text(made, "the") for _ in range(8)]) for _ in range(40)
    ]
    fitted = detect(trials, JUDGE).mean
    monkeypatch.setattr(module, "_MIN_TRIALS", 1000)
    fixed = detect(trials, JUDGE).mean
    assert fitted == 1.0
    assert fixed == 0.0
