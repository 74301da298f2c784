"""Measure what many steering vectors do to the features of an SAE, into a folder that can be gone on with at any time.

The effect of a vector is the mean activation of every feature over the tokens that the steered model wrote, as the plain model
reads them, minus the same of unsteered text (arXiv:2411.02193, section 3). We leave the prompts' own tokens out, which the
paper counts in: they are the same on both sides.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.errors import DataError, RequestError
from steersman.evals.effects.facts import EffectSettings
from steersman.evals.effects.sampling import Sampler
from steersman.evals.effects.scale import CrossEntropyScale, Scale, plain_pieces
from steersman.evals.effects.store import EffectIndex, Effects, EffectStore
from steersman.evals.effects.vectors import KINDS, Probe, Probes
from steersman.models.language_model import LanguageModel
from steersman.models.residuals import ModelProfile
from steersman.sae.config import SaeRef
from steersman.sae.model import SparseAutoencoder

ROWS = 128
"""Rows of a batch: near the decode limit of two cores, and little enough memory."""
_SHARD = 32
_MAX_ACTIVATIONS = 1 << 24
_BASELINE_SEED, _SEED_STEP = 1 << 40, 1 << 20


class EffectProgress(NamedTuple):
    """How far a measurement is."""

    done: int
    total: int
    vectors_per_minute: float
    """In this run; 0 before the first batch."""
    seconds_left: float | None


class Meter:
    """Turns vectors into effects; holds what all of them share."""

    def __init__(
        self, model: LanguageModel, sae: SparseAutoencoder, profile: ModelProfile, settings: EffectSettings
    ) -> None:
        """Split prompts and plain text into tokens, and read the text unsteered.

        Raises:
            DataError: prompts or texts that cannot be used, or an SAE of another width.
            ModelError: the model lacks the SAE's layer.
            SaeError: an SAE of another model.
        """
        layer = sae.config.layer
        sae.check_fits(model.ref)
        if sae.config.d_model != model.d_model:
            raise DataError(f"the SAE reads {sae.config.d_model} dimensions; {model.name} has {model.d_model}")
        self.sae, self.settings = sae, settings
        self._sampler = Sampler(model, layer, profile.mean_norms, settings)
        self.mean_norm = profile.mean_norms[layer]
        pieces = plain_pieces(model, settings.texts, settings.text_tokens, settings.seed)
        self.scale = CrossEntropyScale(model, layer, self.mean_norm, pieces, settings.rise)
        self.batch = max(1, ROWS // (len(settings.prompts) * settings.samples))
        """Vectors that are written for at once, by default."""

    def baseline(self) -> Float[Tensor, " d_sae"]:
        """Mean activation of every feature in unsteered text."""
        samples = self.settings.samples
        rounds = -(-self.settings.baseline_samples // samples)
        seeds = [_seed(self.settings, _BASELINE_SEED + number) for number in range(rounds)]
        means = [
            self._read(written.residuals)[0]
            for start in range(0, rounds, self.batch)
            for written in self._sampler.write(
                [None] * len(seeds[start : start + self.batch]), seeds[start : start + self.batch]
            )
        ]
        return torch.stack(means).mean(0)

    def measure(self, probes: Sequence[Probe], baseline: Float[Tensor, " d_sae"]) -> tuple[Effects, tuple[int, ...]]:
        """Effects of some vectors, and the numbers of those under which the model's output is no number."""
        vectors = torch.stack([probe.vector.tensor for probe in probes])
        scales = self.scale.find(vectors)
        rows: list[tuple[Probe, Scale, Tensor, float]] = []
        failed: list[int] = []
        for start in range(0, len(probes), self.batch):
            part = list(zip(probes, scales, strict=True))[start : start + self.batch]
            for (probe, scale), residuals in zip(part, self._written(part), strict=True):
                if residuals is None:
                    failed.append(probe.number)
                else:
                    mean, noise = self._read(residuals)
                    rows.append((probe, scale, (mean - baseline).half().cpu(), noise))
        return _table(rows, self.sae.config.d_model, self.sae.config.d_sae), tuple(failed)

    def _written(self, part: Sequence[tuple[Probe, Scale]]) -> list[Tensor | None]:
        """Residuals of what each vector made the model write; None where that failed, which costs the others nothing."""
        edits = [(probe.vector, scale.strength) for probe, scale in part]
        seeds = [_seed(self.settings, probe.number) for probe, _ in part]
        try:
            return [written.residuals for written in self._sampler.write(edits, seeds)]
        except RequestError:
            return [None] if len(part) == 1 else [self._written([each])[0] for each in part]

    def _read(self, residuals: Float[Tensor, "prompts samples tokens d_model"]) -> tuple[Tensor, float]:
        """Mean activations `(d_sae,)`, and their variance through sampling summed over features (NaN for one sample)."""
        prompts, samples, tokens, _ = residuals.shape
        step = max(1, _MAX_ACTIVATIONS // (samples * tokens * self.sae.config.d_sae))
        with torch.inference_mode():
            parts = [self.sae.encode(part).mean(2) for part in torch.split(residuals, step)]
            means = torch.cat(parts)  # (prompts, samples, d_sae)
            noise = float(means.var(1).sum()) / (samples * prompts**2) if samples > 1 else float("nan")
            return means.mean((0, 1)).clone(), noise


def measure_effects(
    model: LanguageModel,
    sae: SparseAutoencoder,
    ref: SaeRef,
    *,
    profile: ModelProfile,
    folder: Path,
    vectors: int,
    settings: EffectSettings | None = None,
    report: Callable[[EffectProgress], None] | None = None,
) -> EffectStore:
    """Measure the first `vectors` of the SAE's probes into `folder`, those that are there already aside.

    An interrupt keeps every vector that is done. The same settings with more vectors go on where the folder ends.

    Args:
        model: what is steered.
        sae: whose features are measured, at whose layer vectors are added.
        ref: what the SAE is called.
        profile: the model's mean residual norms.
        folder: made if need be.
        vectors: how many there shall be, failures counted.
        settings: how; the defaults are those of the shipped map.
        report: called before the first batch and after each.

    Raises:
        DataError: settings that cannot be used, or a folder of something else.
        SaeError: an SAE of another model, or a folder of effects of another SAE.
        StorageError: the disk refused.
    """
    settings = settings or EffectSettings()
    if vectors < 1:
        raise DataError(f"measure at least one vector, not {vectors}")
    meter = Meter(model, sae, profile, settings)
    fresh = EffectIndex(
        model=model.ref,
        sae=ref,
        d_model=sae.config.d_model,
        d_sae=sae.config.d_sae,
        mean_norm=meter.mean_norm,
        settings=settings,
        baseline_cross_entropy=meter.scale.baseline,
    )
    store = EffectStore.begin(folder, fresh)
    baseline = store.baseline()
    if baseline is None:
        baseline = meter.baseline().cpu()
        store.save_baseline(baseline)
    known = store.done
    missing = (probe for probe in Probes(sae, settings.seed).first(vectors) if probe.number not in known)
    clock = _Clock(len(known & frozenset(range(vectors))), vectors, report)
    return _run(meter, store, baseline, missing, clock)


def _run(meter: Meter, store: EffectStore, baseline: Tensor, probes: Iterator[Probe], clock: _Clock) -> EffectStore:
    baseline = baseline.to(meter.sae.device)
    clock.tell(0)
    pending: list[Effects] = []
    failed: tuple[int, ...] = ()
    with contextlib.ExitStack() as at_the_end:

        def flush() -> None:
            nonlocal store, pending, failed
            if pending or failed:
                rows = Effects(*(torch.cat(tensors) for tensors in zip(*pending, strict=True)))
                store, pending, failed = store.appended(rows, failed), [], ()

        at_the_end.callback(flush)  # After an interrupt too.
        while batch := list(islice(probes, 4 * meter.batch)):
            rows, gaps = meter.measure(batch, baseline)
            pending.append(rows)
            failed += gaps
            if sum(len(part.number) for part in pending) >= _SHARD:
                flush()
            clock.tell(len(batch))
    return store


class _Clock:
    """Counts vectors and tells how long the rest will take."""

    def __init__(self, done: int, total: int, report: Callable[[EffectProgress], None] | None) -> None:
        self._done, self._before, self._total, self._report = done, done, total, report
        self._began = time.perf_counter()

    def tell(self, more: int) -> None:
        self._done += more
        passed = time.perf_counter() - self._began
        rate = (self._done - self._before) / passed if passed > 0 else 0.0
        left = (self._total - self._done) / rate if rate else None
        if self._report is not None:
            self._report(EffectProgress(self._done, self._total, 60 * rate, left))


def _seed(settings: EffectSettings, number: int) -> int:
    return (settings.seed * _SEED_STEP + number * 2_654_435_761) % (1 << 62)


def _table(rows: Sequence[tuple[Probe, Scale, Tensor, float]], d_model: int, d_sae: int) -> Effects:
    features = [[*probe.features, -1, -1][:2] for probe, *_ in rows]
    return Effects(
        number=torch.tensor([probe.number for probe, *_ in rows], dtype=torch.long),
        kind=torch.tensor([KINDS.index(probe.kind) for probe, *_ in rows], dtype=torch.uint8),
        features=torch.tensor(features, dtype=torch.long).view(-1, 2),
        vectors=torch.cat([probe.vector.tensor[None] for probe, *_ in rows] or [torch.zeros(0, d_model)]),
        strengths=torch.tensor([scale.strength for _, scale, *_ in rows]),
        reached=torch.tensor([scale.is_reached for _, scale, *_ in rows], dtype=torch.bool),
        noise=torch.tensor([noise for *_, noise in rows]),
        effects=torch.cat([effect[None] for _, _, effect, _ in rows] or [torch.zeros(0, d_sae).half()]),
    )
