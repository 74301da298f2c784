"""From texts to a trained autoencoder: collect, train, measure. Each part goes on where an interrupt left it.

The folder holds `train`, `held_out` and `on_policy` (activations), `on_policy.jsonl` and `checkpoint`. With the same machine,
library versions and number of threads, an interrupted training ends with the same weights, bit for bit, as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from steersman.errors import DataError
from steersman.facts import fact
from steersman.models.language_model import LanguageModel
from steersman.sae.activations import CollectProgress, CollectSettings, collect
from steersman.sae.batches import ShuffledBatches
from steersman.sae.checkpoint import CurvePoint, DataFacts, load_checkpoint, save_checkpoint
from steersman.sae.corpus import Corpus, open_corpus, pack
from steersman.sae.file import StoreDtype, as_stored
from steersman.sae.metrics import Prediction, Reconstruction, prediction, reconstruction
from steersman.sae.model import SparseAutoencoder
from steersman.sae.on_policy import Answer, OnPolicyProgress, OnPolicySettings, write_chats
from steersman.sae.shards import ActivationStore
from steersman.sae.trainer import Trainer, TrainSettings

REPORT_STEPS = 50
"""Steps from one point of the curve to the next."""
CHECKPOINT_STEPS = 500
"""Steps from one checkpoint to the next: what an interrupt loses at most."""

_CENTRE_BATCHES = 4


@fact
class TrainProgress:
    """Where a training stands."""

    steps: int
    """Of the whole training."""
    point: CurvePoint
    learning_rate: float
    tokens_per_s: float
    """Since this run began."""


AnyProgress = CollectProgress | OnPolicyProgress | TrainProgress


@fact
class Quality:
    """What was measured on held-out text."""

    reconstruction: Reconstruction
    prediction: Prediction


@dataclass(frozen=True, slots=True)
class TrainedSae:
    """A trained autoencoder and the evidence."""

    sae: SparseAutoencoder
    curve: tuple[CurvePoint, ...]
    """What training showed, from the first step to the last."""
    quality: Quality | None = None
    """None where no text was held out, or it has not been measured."""
    collected_tokens: int = 0
    """Different tokens that it was trained on."""
    on_policy_tokens: int = 0
    """Of those, read from chats that the model answered itself."""


def train_sae(
    model: LanguageModel,
    corpus: Corpus,
    folder: Path,
    *,
    collecting: CollectSettings,
    settings: TrainSettings,
    held_out_tokens: int = 100_000,
    on_policy: tuple[OnPolicySettings, Answer] | None = None,
    store_dtype: StoreDtype = "float32",
    progress: Callable[[AnyProgress], None] | None = None,
) -> TrainedSae:
    """Collect activations of `corpus`, train on them, and measure the result on the held-out texts.

    Args:
        model: the model that the SAE is for.
        corpus: the texts; what it holds out is measured on.
        folder: of activations and checkpoint; the same call with the same folder goes on after an interrupt.
        collecting: the layer, and how many tokens are kept on disk.
        settings: of the training.
        held_out_tokens: how much is measured on; cross-entropy on a fifth of it.
        on_policy: let the model answer prompts of the corpus, and train on those chats too.
        store_dtype: what the result will be kept in; it is rounded to that before it is measured.
        progress: called every few seconds.

    Raises:
        DataError: the folder belongs to other settings, or texts or settings cannot be used.
        ModelError: a layer that the model does not have, or activations that are not finite.
        StorageError: not enough room, or the disk refused; what is whole is kept.
    """
    held_out = replace(collecting, tokens=held_out_tokens)
    has_held_out = any(group.held_out_chars for group in corpus.groups)
    if has_held_out:
        measured = collect(model, corpus, folder / "held_out", held_out, held_out=True, progress=progress)
    stores = [collect(model, corpus, folder / "train", collecting, progress=progress)]
    if on_policy is not None:
        stores.append(_collect_on_policy(model, corpus, folder, collecting, *on_policy, progress=progress))
    trained = fit(stores, folder / "checkpoint", settings, device=model.device, progress=progress)
    trained = replace(
        trained,
        sae=as_stored(trained.sae, store_dtype).to(model.device),
        collected_tokens=sum(store.tokens for store in stores),
        on_policy_tokens=sum(store.tokens for store in stores[1:]),
    )
    if not has_held_out or not measured.tokens:
        return trained
    return replace(trained, quality=measure(model, trained.sae, corpus, measured, held_out_tokens // 5))


def _collect_on_policy(
    model: LanguageModel,
    corpus: Corpus,
    folder: Path,
    collecting: CollectSettings,
    settings: OnPolicySettings,
    answer: Answer,
    progress: Callable[[AnyProgress], None] | None,
) -> ActivationStore:
    """Write chats, and read the residual stream of all of them."""
    path = folder / "on_policy.jsonl"
    write_chats(model, corpus, path, answer, settings, progress)
    chats = open_corpus([path], seed=corpus.seed, held_out=0.0)
    everything = sum(
        len(piece.ids) - piece.skip for piece in pack(model, chats.rows(), context_tokens=collecting.context_tokens)
    )
    return collect(model, chats, folder / "on_policy", replace(collecting, tokens=everything), progress=progress)


def fit(
    stores: Sequence[ActivationStore],
    folder: Path,
    settings: TrainSettings,
    *,
    device: torch.device | None = None,
    origin: str = "",
    progress: Callable[[TrainProgress], None] | None = None,
) -> TrainedSae:
    """Train on stored activations; go on from the checkpoint in `folder` where there is one.

    Args:
        stores: activations of one model and layer.
        folder: of the checkpoint.
        settings: of the training.
        device: to train on; None: the CPU.
        origin: what the SAE says of where it comes from.
        progress: called every `REPORT_STEPS` steps.

    Raises:
        DataError: stores that do not go together, a checkpoint of something else, or a loss that is not finite.
        StorageError: the disk refused; the checkpoint before is kept.
    """
    batches = ShuffledBatches(tuple(stores), settings.batch_tokens, settings.seed, settings.window_tokens)
    data = _data_facts(stores)
    trainer = Trainer(settings, data.d_model, data.scale, device)
    curve: list[CurvePoint] = []
    found = load_checkpoint(folder, settings, data)
    if found is None:
        trainer.centre(torch.cat(list(islice(batches.read(), _CENTRE_BATCHES))))
    else:
        facts, tensors = found
        trainer.restore(facts.step, facts.threshold, tensors)
        curve = list(facts.curve)
    began, first = time.perf_counter(), trainer.step_number
    for batch in islice(batches.read(first), settings.steps - first):
        learning_rate = settings.learning_rate_at(trainer.step_number)
        showed = trainer.step(batch)
        done = trainer.step_number
        is_last = done == settings.steps
        if done % REPORT_STEPS == 0 or done == 1 or is_last:
            curve.append(CurvePoint(step=done, facts=showed))
            speed = (done - first) * settings.batch_tokens / (time.perf_counter() - began)
            if progress is not None:
                progress(
                    TrainProgress(
                        steps=settings.steps, point=curve[-1], learning_rate=learning_rate, tokens_per_s=speed
                    )
                )
        if done % CHECKPOINT_STEPS == 0 or is_last:
            save_checkpoint(
                folder,
                settings,
                data,
                step=done,
                threshold=trainer.threshold,
                curve=tuple(curve),
                tensors=trainer.state(),
            )
    return TrainedSae(trainer.autoencoder(data.layer, data.model, origin), tuple(curve))


def measure(
    model: LanguageModel,
    sae: SparseAutoencoder,
    corpus: Corpus,
    store: ActivationStore,
    prediction_tokens: int = 20_000,
    *,
    held_out: bool = True,
) -> Quality:
    """Measure an SAE: reconstruction on all of `store`, cross-entropy on some of the same texts.

    Args:
        model: the model that the SAE is for.
        sae: what is measured.
        corpus: the texts that `store` was collected from.
        store: activations.
        prediction_tokens: how much is predicted.
        held_out: whether the store is of the corpus's held-out side.

    Raises:
        DataError: there is no text.
        SaeError: the SAE belongs to another model.
    """
    shards = (store.read(number) for number in range(len(store.index.shards)))
    sequences: list[tuple[int, ...]] = []
    tokens = 0
    for piece in pack(model, corpus.rows(held_out=held_out), context_tokens=store.index.context_tokens):
        sequences.append(piece.ids)
        tokens += len(piece.ids)
        if tokens >= prediction_tokens:
            break
    return Quality(reconstruction=reconstruction(sae, shards), prediction=prediction(model, sae, sequences))


def _data_facts(stores: Sequence[ActivationStore]) -> DataFacts:
    tokens = sum(store.tokens for store in stores)
    mean_norm = sum(store.mean_norm * store.tokens for store in stores) / tokens
    if not mean_norm > 0:
        raise DataError("the activations are all zero; collect them again")
    index = stores[0].index
    return DataFacts(
        model=index.model,
        layer=index.layer,
        d_model=index.d_model,
        scale=math.sqrt(index.d_model) / mean_norm,
        shards=tuple((store.index.corpus_sha256, shard.tokens) for store in stores for shard in store.index.shards),
    )
