"""Detection: does a label alone tell the windows where a feature fires from those where it does not?

After EleutherAI's delphi (arXiv:2410.13928). The judge sees the label and the text of one window, never activations or the
contexts that the label was made from. The score of a label is the balanced accuracy over windows that were held out. Where
delphi asks a language model, the judge here reads the label's own grammar (`clues`); `label_llm` asks a model.

One rule decides for all labels. It weighs what a window shows of a label (its words, its topic, its place, and, with a
sentence encoder, the nearness of meaning) and is fitted on other features than the one it is used on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steersman.errors import SaeError
from steersman.facts import fact
from steersman.sae.index.clues import Clue, Searched, free_clues, read_label, stem
from steersman.sae.index.passages import ChatTags

MIN_WINDOWS = 5
"""A score needs so many windows of either side."""
GOOD = 0.7
"""`Detection.share_good` counts the scores above it."""

Encode = Callable[[Sequence[str]], Tensor]
"""A sentence encoder: texts to rows of norm 1."""

_KINDS = ("words", "after", "kind", "about", "in", "various")
_FOLDS = 5
_MIN_TRIALS = 20  # to fit a rule on; with fewer a window is said to fire where any of the label's clues holds
_RIDGE = 1e-3
_RESAMPLES = 1000


class Trial(NamedTuple):
    """One label and the windows to tell apart: text only."""

    label: str | None
    firing: Sequence[str]
    """Held-out windows where the feature fires, from its whole range of activations."""
    silent: Sequence[str]
    """Random windows where it does not."""


@fact
class Detection:
    """Scores of labels, in the order of the trials."""

    scores: tuple[float | None, ...]
    """Balanced accuracy; 0.5 is chance."""
    missing: tuple[str | None, ...]
    """Why there is no score; None where there is one."""
    mean: float | None
    """Over those that are scored; None where none is."""
    low: float | None
    """Of the bootstrap 95 % interval of the mean."""
    high: float | None
    share_good: float | None
    """Share of the scores above `GOOD`."""
    control: float | None
    """Mean score when every feature is given another one's label; an honest judge is near 0.5. None below two labels."""

    @property
    def n_scored(self) -> int:
        """Labels with a score."""
        return sum(score is not None for score in self.scores)

    @property
    def n_total(self) -> int:
        """All trials."""
        return len(self.scores)


@dataclass(frozen=True)
class LocalJudge:
    """Reads labels without a language model."""

    tags: ChatTags
    """Of the model's chat template: `Reader.tags`."""
    encode: Encode | None = None
    """Sentence encoder for the nearness of meaning; without one, labels and windows share words or they do not."""
    reference: Sequence[str] = ()
    """Random windows: how near the meaning of just any text is to a label. Needed with `encode`."""

    _embedded: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.encode is not None and len(self.reference) < 2:
            raise SaeError("a judge with a sentence encoder needs reference windows; give it some random ones")

    def evidence(self, label: str, texts: Sequence[str]) -> Float[Tensor, "texts evidence"]:
        """What each text shows of the label. The first column is 1, the second whether any of the clues holds."""
        alternatives = read_label(label) or free_clues(label)
        said = {clue.kind for clues in alternatives for clue in clues}
        topic = [stem(word) for clues in alternatives for clue in clues if clue.kind == "about" for word in clue.words]
        rows = []
        for text in texts:
            searched = Searched.of(text, self.tags)
            held: list[tuple[bool, tuple[Clue, ...]]] = [
                (all(searched.holds(clue) for clue in clues), clues) for clues in alternatives
            ]
            shown = {clue.kind for holds, clues in held if holds for clue in clues}
            named = sum(word in searched.stems for word in topic)
            rows.append([
                1.0,
                float(bool(shown)),
                float(bool(held) and held[0][0]),
                float(min(sum(holds for holds, _ in held), 2)),
                float(min(named, 3)),
                *(float(kind in shown) - 0.5 * (kind in said) for kind in _KINDS),
            ])  # fmt: skip
        evidence = torch.tensor(rows, dtype=torch.float64).reshape(len(texts), 5 + len(_KINDS))
        return (
            evidence if self.encode is None or not texts else torch.cat([evidence, self._nearness(label, texts)], dim=1)
        )

    def _nearness(self, label: str, texts: Sequence[str]) -> Float[Tensor, "texts 2"]:
        """Cosines of label and texts in units of their spread over random windows; for labels with a topic once more."""
        (about,) = self._embeddings([label])
        usual = self._embeddings(self.reference) @ about
        near = ((self._embeddings(texts) @ about - usual.mean()) / (usual.std() + 1e-6)).clamp(-4, 4)
        return torch.stack([near, near * ("about " in label)], dim=1)

    def _embeddings(self, texts: Sequence[str]) -> Float[Tensor, "texts width"]:
        new = [text for text in dict.fromkeys(texts) if text not in self._embedded]
        if new and self.encode is not None:
            self._embedded.update(zip(new, self.encode(new).to(torch.float64).cpu(), strict=True))
        return torch.stack([self._embedded[text] for text in texts])


def detect(trials: Sequence[Trial], judge: LocalJudge, *, seed: int = 0) -> Detection:
    """Score labels by detection.

    Args:
        trials: a label each, and held-out windows; those without enough of either stay without a score.
        judge: what looks at the windows.
        seed: of the folds, the control's order and the bootstrap.
    """
    missing = tuple(map(why_missing, trials))
    scored = [index for index, why in enumerate(missing) if why is None]
    order = random.Random(seed).sample(scored, len(scored))
    # The label of the next one in a random order: nobody keeps their own.
    others = dict(pairwise([*order, *order[:1]]))
    fold = {index: place % _FOLDS for place, index in enumerate(order)}
    sides = {index: (list(trials[index].firing), list(trials[index].silent)) for index in scored}

    def seen(index: int, label_of: int) -> tuple[Tensor, Bool[Tensor, " texts"]]:
        firing, silent = sides[index]
        evidence = judge.evidence(str(trials[label_of].label), [*firing, *silent])
        return evidence, torch.arange(len(evidence)) < len(firing)

    own = {index: seen(index, index) for index in scored}
    rules = _rules(own, fold)
    scores = {index: balanced_accuracy(own[index][0] @ rules[fold[index]] > 0, own[index][1]) for index in scored}
    control = []
    for index in scored if len(scored) > 1 else ():
        evidence, fires = seen(index, others[index])
        control.append(balanced_accuracy(evidence @ rules[fold[index]] > 0, fires))
    return summary([scores.get(index) for index in range(len(trials))], missing, control, seed)


def why_missing(trial: Trial) -> str | None:
    """Why a trial cannot be scored; None where it can."""
    if trial.label is None:
        return "the feature has no label"
    for name, windows in (("where it fires", trial.firing), ("where it does not fire", trial.silent)):
        if len(windows) < MIN_WINDOWS:
            return f"only {len(windows)} held-out windows {name}; a score needs {MIN_WINDOWS}"
    return None


def balanced_accuracy(said: Bool[Tensor, " texts"], fires: Bool[Tensor, " texts"]) -> float:
    """Mean of the shares judged right where the feature fires and where it does not; both must be there."""
    right = (said == fires).to(torch.float64)
    return float((right[fires].mean() + right[~fires].mean()) / 2)


def summary(
    scores: Sequence[float | None], missing: Sequence[str | None], control: Sequence[float], seed: int = 0
) -> Detection:
    """Scores and what they amount to."""
    known = torch.tensor([score for score in scores if score is not None], dtype=torch.float64)
    low = high = None
    if len(known):
        made = torch.Generator().manual_seed(seed)
        means = known[torch.randint(len(known), (_RESAMPLES, len(known)), generator=made)].mean(1)
        low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Detection(
        scores=tuple(scores),
        missing=tuple(missing),
        mean=float(known.mean()) if len(known) else None,
        low=low,
        high=high,
        share_good=float((known > GOOD).double().mean()) if len(known) else None,
        control=sum(control) / len(control) if control else None,
    )


def _rules(seen: dict[int, tuple[Tensor, Tensor]], fold: dict[int, int]) -> list[Float[Tensor, " evidence"]]:
    """One rule a fold, fitted on the trials of the other folds: least squares to +1 and -1, each trial and side alike."""
    width = next((evidence.shape[1] for evidence, _ in seen.values()), 2)
    grams = torch.zeros(_FOLDS, width, width, dtype=torch.float64)
    aims = torch.zeros(_FOLDS, width, dtype=torch.float64)
    for index, (evidence, fires) in seen.items():
        signs = torch.where(fires, 1.0, -1.0).to(torch.float64)
        weights = torch.where(fires, 0.5 / fires.sum(), 0.5 / (~fires).sum()).to(torch.float64)
        grams[fold[index]] += evidence.T @ (evidence * weights[:, None])
        aims[fold[index]] += evidence.T @ (signs * weights)
    rules = []
    for held in range(_FOLDS):
        n = sum(each != held for each in fold.values())
        if n < _MIN_TRIALS:
            rule = torch.zeros(width, dtype=torch.float64)
            rule[:2] = torch.tensor([-0.5, 1.0])
        else:
            gram = (grams.sum(0) - grams[held]) / n + _RIDGE * torch.eye(width, dtype=torch.float64)
            rule = torch.linalg.solve(gram, (aims.sum(0) - aims[held]) / n)
        rules.append(rule)
    return rules
