"""Make a feature index: one pass over activations, the logit lens, neighbours, labels with their scores, embeddings.

Each step is a file of its own; this one knows their order, and which windows of text each may see: a label is made from a
feature's top contexts and three quarters of its samples, and scored on the rest.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from steersman.facts import fact
from steersman.models.asking import Ask, in_parallel
from steersman.models.language_model import LanguageModel
from steersman.models.sentence_encoder import TextEncoder
from steersman.sae.index.background import Background
from steersman.sae.index.build import BuildSettings, Built, build
from steersman.sae.index.detect import Detection, LocalJudge, Trial, detect
from steersman.sae.index.embed import embed_index
from steersman.sae.index.facts import Contexts, FeatureIndex, IndexFacts, Label
from steersman.sae.index.label_llm import detect_by_llm, label_by_llm
from steersman.sae.index.labels import label_contexts
from steersman.sae.index.lens import logit_lens
from steersman.sae.index.neighbours import nearest
from steersman.sae.index.passages import Reader
from steersman.sae.model import SparseAutoencoder
from steersman.sae.shards import ActivationStore

Report = Callable[[str, int, int], None]
"""Called with what is being done, how much of it, and of how much."""

_SILENT_WINDOWS = 48
_ASKED_AT_ONCE = 8


@fact
class IndexSettings:
    """What an index holds and how it is scored."""

    build: BuildSettings = BuildSettings()
    promoted: int = 10
    """Tokens a feature that it makes likelier, and as many that it makes less likely."""
    neighbours: int = 8
    scored: int | None = None
    """Labels that are scored, drawn at random among live features; None scores all."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class MadeIndex:
    """An index and how its labels did."""

    index: FeatureIndex
    detection: Detection


def make_index(
    model: LanguageModel,
    sae: SparseAutoencoder,
    name: str,
    stores: Sequence[ActivationStore],
    encoder: TextEncoder,
    settings: IndexSettings | None = None,
    *,
    sources: Mapping[str, float] | None = None,
    ask: Ask | None = None,
    report: Report | None = None,
) -> MadeIndex:
    """Make the index of an SAE from stored activations.

    Args:
        model: that the SAE reads.
        sae: whose features are indexed.
        name: what the SAE is called.
        stores: activations of the SAE's layer.
        encoder: for search by meaning.
        settings: what the index holds.
        sources: shares of the texts, as far as known.
        ask: a language model that writes labels and judges them; where it fails, a label by rules stands. None: rules alone.
        report: of progress.

    Raises:
        SaeError: an SAE or stores of another model.
        DataError: no activations.
    """
    settings, report = settings or IndexSettings(), report or (lambda _what, _done, _total: None)
    sae.check_fits(model.ref)
    built = build(sae, stores, settings.build, progress=lambda done, total: report("reading activations", done, total))
    lens = logit_lens(model, sae, settings.promoted)
    near = nearest(sae.W_dec, settings.neighbours)
    labels, detection = _labelled(built, Reader(model.tokenizer), settings, ask, report)
    found = built.activity
    index = FeatureIndex(
        facts=IndexFacts(sae=sae.ref(name), model=model.ref, tokens=found.tokens, sources=dict(sources or {})),
        density=found.density,
        mean_activation=found.mean_activation,
        max_activation=found.max_activation,
        context_tokens=found.context_tokens,
        context_activations=found.context_activations,
        promoted=lens.promoted,
        suppressed=lens.suppressed,
        neighbours=near.ids,
        cosines=near.cosines,
        labels=labels,
    )
    index = embed_index(index, encoder, model.tokenizer, lambda done, total: report("embedding", done, total))
    return MadeIndex(index, detection)


def _labelled(
    built: Built, reader: Reader, settings: IndexSettings, ask: Ask | None, report: Report
) -> tuple[tuple[Label | None, ...], Detection]:
    """A label for every live feature, with its score."""
    evidence = built.evidence
    # Labels are made against windows of every second piece of text, and tested on those of the others.
    other = evidence.pool_pieces % 2 == 1
    background = Background(tuple(reader.texts(evidence.pool_tokens[~other])), reader.tags)
    unseen = reader.texts(evidence.pool_tokens[other])
    n = len(built.activity.density)
    texts: list[str | None] = []
    for feature in range(n):
        fires = _fires(built, feature)
        texts.append(label_contexts(_seen(built, feature), reader, background, fires[~other].tolist()))
        report("labelling", feature + 1, n)
    live = [feature for feature, text in enumerate(texts) if text is not None]
    written = _by_llm(built, reader, live, ask, report) if ask is not None else {}
    texts = [written.get(feature, text) for feature, text in enumerate(texts)]
    chosen = live
    if settings.scored is not None and settings.scored < len(live):
        chosen = sorted(random.Random(settings.seed).sample(live, settings.scored))
    trials = []
    for feature in chosen:
        silent = [text for text, fired in zip(unseen, _fires(built, feature)[other].tolist(), strict=True) if not fired]
        few = random.Random(feature).sample(silent, min(_SILENT_WINDOWS, len(silent)))
        firing = [passage.text for passage in reader.passages(_held_out(built, feature))]
        trials.append(Trial(texts[feature], firing, few))
    if ask is None:
        detection = detect(trials, LocalJudge(reader.tags), seed=settings.seed)
    else:
        detection = detect_by_llm(trials, ask, seed=settings.seed)
    scored = dict(zip(chosen, zip(detection.scores, detection.missing, strict=True), strict=True))
    labels = []
    for feature, text in enumerate(texts):
        score, missing = scored.get(feature, (None, "not among the features drawn to be scored"))
        origin: Literal["contexts", "llm"] = "llm" if feature in written else "contexts"
        labels.append(None if text is None else Label(text=text, origin=origin, score=score, missing=missing))
    return tuple(labels), detection


def _by_llm(built: Built, reader: Reader, live: Sequence[int], ask: Ask, report: Report) -> dict[int, str]:
    """Labels that a language model wrote, by feature; those it could not write are left out."""
    found: dict[int, str] = {}
    for start in range(0, len(live), _ASKED_AT_ONCE):
        some = live[start : start + _ASKED_AT_ONCE]
        answers = in_parallel(lambda feature: label_by_llm(_seen(built, feature), reader, ask), some, _ASKED_AT_ONCE)
        for feature, answer in zip(some, answers, strict=True):
            if answer.label is not None:
                found[feature] = answer.label.text
        report("asking for labels", min(start + _ASKED_AT_ONCE, len(live)), len(live))
    return found


def _fires(built: Built, feature: int) -> Tensor:
    """In which windows of the pool a feature fires."""
    fires = torch.zeros(len(built.evidence.pool_tokens), dtype=torch.bool)
    fires[built.evidence.firing(feature)[0]] = True
    return fires


def _seen(built: Built, feature: int) -> Contexts:
    """What a label may be made from: the top contexts, and the samples that it is not tested on."""
    top = built.activity.context_pieces[feature] >= 0
    samples = built.evidence.samples(feature)
    seen = ~_tested(len(samples))
    return Contexts(
        torch.cat([built.activity.context_tokens[feature][top], samples.tokens[seen]]),
        torch.cat([built.activity.context_activations[feature][top], samples.activations[seen]]),
    )


def _held_out(built: Built, feature: int) -> Contexts:
    """What a label is tested on: every fourth sample, unless it overlaps a top context."""
    samples = built.evidence.samples(feature)
    pieces = built.evidence.sample_pieces[feature][: len(samples)]
    rest = _tested(len(samples)) & ~torch.isin(pieces, built.activity.context_pieces[feature])
    return Contexts(samples.tokens[rest], samples.activations[rest])


def _tested(n: int) -> Tensor:
    """Which of `n` samples, ordered by strength, are held out: every fourth, so that weak ones and strong ones are among them."""
    return torch.arange(n) % 4 == 1
