"""Read the residual stream of many sequences at chosen layers, and the typical norm of it.

The forward pass stops at the last layer asked for. Padding never appears in what is returned, and the first token of each
sequence is left out by default: its activations are an attention sink, tens of times larger than all others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.errors import DataError
from steersman.files import write_bytes
from steersman.models.blocks import check_layer, reading
from steersman.models.language_model import LanguageModel

_BATCH_TOKENS = 2048


@torch.no_grad()
def read_residuals(
    model: LanguageModel,
    sequences: Sequence[Sequence[int]],
    layers: Sequence[int],
    *,
    skip_first: bool = True,
    batch_tokens: int = _BATCH_TOKENS,
) -> list[dict[int, Float[Tensor, "tokens d_model"]]]:
    """Residual stream of each sequence at each of `layers`, in the model's number format, on its device.

    Args:
        model: the model to read.
        sequences: token ids, one list a sequence.
        layers: decoder blocks whose output is wanted.
        skip_first: leave out the first token of each sequence.
        batch_tokens: at most this many tokens, padding counted, run at once.

    Returns:
        For each sequence, in order, a tensor `(tokens, d_model)` per layer.

    Raises:
        DataError: no sequences, an empty one, one longer than the model reads, or no layers.
        ModelError: a layer that the model does not have.
    """
    if not sequences or not layers:
        raise DataError("nothing to read: give at least one sequence and one layer")
    for index, sequence in enumerate(sequences):
        if len(sequence) <= skip_first:
            raise DataError(f"sequence {index} has {len(sequence)} tokens; at least {1 + skip_first} are needed")
        if len(sequence) > model.context_tokens:
            raise DataError(
                f"sequence {index} has {len(sequence)} tokens; {model.name} reads {model.context_tokens}: cut it"
            )
    for layer in layers:
        check_layer(layer, model.n_layers)
    results: list[dict[int, Tensor]] = [{} for _ in sequences]
    start = int(skip_first)
    for batch in _batches([len(sequence) for sequence in sequences], batch_tokens):
        outputs = _forward(model, [sequences[index] for index in batch], layers)
        for row, index in enumerate(batch):
            stop = len(sequences[index])
            # Cloned: a view would keep the whole padded batch alive.
            results[index] = {layer: hidden[row, start:stop].clone() for layer, hidden in outputs.items()}
    return results


def _batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices grouped by similar length, so that little is spent on padding."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _forward(model: LanguageModel, rows: Sequence[Sequence[int]], layers: Sequence[int]) -> dict[int, Tensor]:
    width = max(map(len, rows))
    # Padded on the right: causal attention never looks there, and positions count from 0 as they should.
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    with model.lock, reading(model.blocks, sorted(set(layers))) as outputs:
        model.hf(input_ids=ids, attention_mask=mask, use_cache=False)
    return outputs


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """What is typical of a model's residual stream."""

    weights_hash: str
    """Which model."""
    mean_norms: tuple[float, ...]
    """Mean L2 norm of the residual stream at each layer, first tokens left out. A strength of 1.0 means this much."""


def load_profile(model: LanguageModel, cache: Path) -> ModelProfile:
    """The model's profile from `cache`, measured and stored there the first time.

    Raises:
        StorageError: the cache cannot be written.
    """
    path = cache / "profiles" / f"{model.ref.weights_hash[:32]}.json"
    try:
        facts = json.loads(path.read_text())
        profile = ModelProfile(facts["weights_hash"], tuple(float(norm) for norm in facts["mean_norms"]))
        sound = all(math.isfinite(norm) and norm > 0 for norm in profile.mean_norms)
        if sound and profile.weights_hash == model.ref.weights_hash and len(profile.mean_norms) == model.n_layers:
            return profile
    except (OSError, ValueError, KeyError, TypeError):
        pass  # Absent or damaged: measure again.
    profile = measure_profile(model)
    facts = {"weights_hash": profile.weights_hash, "mean_norms": list(profile.mean_norms)}
    write_bytes(path, json.dumps(facts).encode())
    return profile


def measure_profile(model: LanguageModel) -> ModelProfile:
    """Run the shipped profile text through the model once and average the norms of its residual stream."""
    longest = min(256, model.context_tokens)
    sequences = [model.tokenizer(text)["input_ids"][:longest] for text in profile_texts()]
    sequences = [ids for ids in sequences if len(ids) > 1]
    layers = range(model.n_layers)
    totals, tokens = torch.zeros(model.n_layers, dtype=torch.float64), 0
    for ids in sequences:
        residuals = read_residuals(model, [ids], layers)[0]
        for layer, hidden in residuals.items():
            totals[layer] += hidden.float().norm(dim=-1).double().sum().cpu()
        tokens += len(ids) - 1
    return ModelProfile(model.ref.weights_hash, tuple((totals / tokens).tolist()))


def profile_texts() -> list[str]:
    """The shipped passages that profiles are measured on: prose, talk, explanation, lists and code, in paragraphs."""
    text = (resources.files("steersman") / "data" / "profile_text.txt").read_text(encoding="utf-8")
    return [part.strip() for part in text.split("\n\n") if part.strip()]
