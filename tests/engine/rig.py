"""What the engine's tests share: engines over tiny models, recipes of every kind, and generation without cache or batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from tests.tiny import D_MODEL, N_VOCAB, tiny_model
from torch import Tensor

from steersman.engine import sequence
from steersman.engine.engine import Engine, EngineLimits
from steersman.engine.guard import Guard
from steersman.engine.request import Request, Result, Sampling
from steersman.engine.runner import Runner
from steersman.models.blocks import editing
from steersman.models.language_model import LanguageModel
from steersman.models.residuals import ModelProfile
from steersman.sae.model import SparseAutoencoder
from steersman.steering.condition import Above, AllOf, AnyOf, Condition, Not, Since, TokenIs
from steersman.steering.edits import Ablate, Add, Clamp, Edit, Rotate, Scale
from steersman.steering.plan import BatchPlan, TokenBatch
from steersman.steering.recipe import Recipe
from steersman.steering.target import Direction, Latent
from steersman.steering.vector import Vector
from steersman.steering.where import Constant, Decay, Ramp, Schedule, Where

NORMS = (6.0, 9.0, 12.0, 15.0)
SOME_TOKENS = tuple(range(0, N_VOCAB, 3))
"""A third of the vocabulary, so that a condition on them is soon true and soon false."""


@cache
def model_of(kind: str) -> LanguageModel:
    """One tiny model of each architecture for all tests; none of them changes it."""
    return tiny_model(kind)


def make_engine(model: LanguageModel, **limits: int) -> Engine:
    """An engine with round residual norms, so that no test waits for them to be measured."""
    return Engine(model, EngineLimits(**limits), profile=ModelProfile(model.ref.weights_hash, NORMS))


def ask(prompt: Any, recipe: Recipe | None = None, tokens: int = 8, **settings: Any) -> Request:
    """A request that goes on after end tokens, reports log-probabilities and names its seed, so that results can be compared."""
    ours = {name: settings.pop(name) for name in ("strength", "guard", "logprobs") if name in settings}
    sampling = Sampling(**{"max_tokens": tokens, "ignore_eos": True, "seed": 0, **settings})
    return Request(prompt=prompt, recipe=recipe, sampling=sampling, **{"logprobs": 0, **ours})


ALWAYS = -1e-9
"""No text is likelier than this, so that the guard always has something to say."""


def watching(mode: str, **fields: Any) -> Guard:
    """A guard that minds only how likely the text is, unless told otherwise."""
    return Guard(
        **{"mode": mode, "every_tokens": 4, "window_tokens": 6, "max_repetition": 1.0, "min_logprob": ALWAYS, **fields}
    )


def answer(request: Request, model: LanguageModel | None = None) -> Result:
    return make_engine(model or model_of("llama")).generate([request])[0]


def vector(seed: int, width: int = D_MODEL) -> Vector:
    """A random direction."""
    return Vector(torch.randn(width, generator=torch.Generator().manual_seed(seed)))


def latent(seed: int, width: int = D_MODEL) -> Latent:
    """A random SAE latent, on about half of the time."""
    return Latent(id=seed, encoder_row=vector(seed, width), encoder_bias=0.1, decoder_row=vector(seed + 1, width))


def push(seed: int = 0, strength: float = 0.7, layer: int = 1, **rest: Any) -> Recipe:
    """A recipe of one `add` edit, strong enough to change what a tiny model writes."""
    return Recipe(name=f"push{seed}", edits=(Add(layer=layer, vector=vector(seed), strength=strength, **rest),))


def edit_of(kind: str, seed: int, width: int = D_MODEL, **common: Any) -> Edit:
    """An edit of the kind, with random directions."""
    target = Direction(vector=vector(seed, width))
    match kind:
        case "add":
            return Add(vector=vector(seed, width), **{"strength": 0.4, **common})
        case "add-raw":
            return Add(vector=vector(seed, width), unit="raw", **{"strength": 0.7, **common})
        case "clamp":
            return Clamp(target=target, value=0.5, unit="residual_norm", **common)
        case "scale":
            return Scale(target=target, factor=4.0, **common)
        case "ablate":
            return Ablate(target=target, **common)
        case "rotate":
            return Rotate(vector=vector(seed, width), degrees=35.0, **common)
        case "latent":
            return Clamp(target=latent(seed, width), value=3.0, **common)
    raise ValueError(kind)


KINDS = ("add", "add-raw", "clamp", "scale", "ablate", "rotate", "latent")
WHERES = (
    Where(),
    Where(scope="prompt"),
    Where(scope="generated"),
    Where(scope="generated", start=2, stop=5),
    Where(positions=(1, 7, -1, -3)),
    Where(first_token=True, token_ids=SOME_TOKENS),
    Where(scope="prompt", start=3),
)
SCHEDULES: tuple[Schedule, ...] = (Constant(), Ramp(tokens=4, start=0.2), Decay(half_life_tokens=2.0, floor=0.3))


def conditions(width: int = D_MODEL) -> tuple[Condition | None, ...]:
    """None, and one of each kind; they read layers 0 and 1."""
    high = Above(layer=0, target=Direction(vector=vector(90, width)), threshold=0.0)
    near = Above(layer=1, target=Direction(vector=vector(91, width)), threshold=0.05, measure="cosine")
    active = Above(layer=1, target=latent(92, width), threshold=0.5)
    named = TokenIs(token_ids=SOME_TOKENS)
    late = Since(item=AllOf(items=(named, high)))
    return (None, named, high, Not(item=near), AnyOf(items=(active, named)), Since(item=active), late)


def recipes(width: int = D_MODEL, thin: int = 1) -> list[Recipe]:
    """Recipes of every edit kind, where, schedule and condition, combined; with `thin`, every so-manieth combination.

    Where `thin` has no factor in common with the numbers of choices (3 and 7), all choices still occur.
    """
    found = []
    ways = itertools.product(KINDS, enumerate(WHERES), enumerate(SCHEDULES), enumerate(conditions(width)))
    for number, (kind, (w, where), (s, schedule), (c, when)) in itertools.islice(enumerate(ways), 0, None, thin):
        edit = edit_of(kind, number, width, layer=1 + number % 2, where=where, schedule=schedule, when=when)
        found.append(Recipe(name=f"{kind}-{w}-{s}-{c}", edits=(edit,)))
    return found


def prompts(count: int, longest: int = 40) -> list[str]:
    """Texts of many lengths, all different, one token a character on the tiny models."""
    letters = "the quick brown fox jumps over a lazy dog and runs away "
    return [
        "".join(
            letters[(7 * index + 3 * place + place * index) % len(letters)] for place in range(1 + 11 * index % longest)
        )
        for index in range(count)
    ]


@torch.no_grad()
def without_cache(
    model: LanguageModel, request: Request, saes: Mapping[str, SparseAutoencoder] | None = None
) -> tuple[list[int], list[float], str]:
    """Greedy tokens, their log-probabilities and why it ended: every token from a full forward pass over the whole sequence."""
    prompt = model.encode(request.prompt)
    ids, logprobs = list(prompt), []
    while len(ids) < len(prompt) + request.sampling.max_tokens:
        batch = TokenBatch(
            token_ids=torch.tensor([ids]),
            positions=torch.arange(len(ids))[None],
            prompt_lengths=torch.tensor([[len(prompt)]]),
            valid=torch.ones(1, len(ids), dtype=torch.bool),
            gains=torch.tensor([request.strength]),
        )
        bound = BatchPlan([request.recipe], NORMS, torch.device("cpu"), saes).bind(batch, [{}])
        with editing(model.blocks, bound.hooks):
            logits: Tensor = model.hf(input_ids=batch.token_ids, use_cache=False).logits[0, -1].float()
        if bound.commit():
            return ids[len(prompt) :], logprobs, "abort"
        ids.append(int(logits.argmax()))
        logprobs.append(float(logits.log_softmax(-1)[ids[-1]]))
    return ids[len(prompt) :], logprobs, "length"


def bits(result: Result) -> list[tuple[int, float]]:
    """The tokens of an answer and their log-probabilities."""
    return [(item.token_id, item.logprob) for item in result.logprobs]


def differs_from(one: Result, other: Result) -> int:
    """Index of the first token that one answer finds more or less likely than the other, if only by a bit."""
    pairs = zip(bits(one), bits(other), strict=False)
    return next((index for index, (mine, its) in enumerate(pairs) if mine != its), len(one.logprobs))


def hooks_of(model: LanguageModel) -> int:
    """How many forward hooks hang on the model."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.hf.modules())


@contextmanager
def broken_block(model: LanguageModel, error: BaseException, after: int = 0, layer: int = 2) -> Iterator[None]:
    """Within, the block raises `error` once, after it has run `after` times."""
    block, calls = model.blocks[layer], itertools.count()
    original = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == after:
            raise error
        return original(*args, **kwargs)

    block.forward = forward  # type: ignore[assignment]
    try:
        yield
    finally:
        del block.forward


class Passes:
    """A record of the forward passes that the engine runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, int]] = []
        """Rows and columns of each."""
        self.token_ids: list[Tensor] = []
        self.slab_tokens: list[int] = []
        """Rows times columns that the pass's slab holds afterwards."""
        original = Runner.forward

        def forward(runner: Runner, kv: Any, token_ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            logits = original(runner, kv, token_ids, *args, **kwargs)
            self.shapes.append((token_ids.shape[0], token_ids.shape[1]))
            self.token_ids.append(token_ids.clone())
            self.slab_tokens.append(kv.layers[0].keys.shape[0] * kv.layers[0].keys.shape[2])
            return logits

        monkeypatch.setattr(Runner, "forward", forward)


def dictate(monkeypatch: pytest.MonkeyPatch, model: LanguageModel, text: str, *, end: bool = True) -> list[int]:
    """Make every answer be `text` (and the end token), whatever the model thinks; returns the tokens."""
    script = [*model.encode(text), *([2] if end else [])]
    # Not by identity: that of an answer which is over may be given to a new one.
    counts: WeakKeyDictionary[sequence.RunningSequence, int] = WeakKeyDictionary()
    original = sequence.RunningSequence.accept

    def accept(running: sequence.RunningSequence, logits: Tensor) -> None:
        at = counts.get(running, 0)
        counts[running] = at + 1
        chosen = torch.full_like(logits, -100.0)
        chosen[script[at % len(script)]] = 100.0
        original(running, chosen)

    monkeypatch.setattr(sequence.RunningSequence, "accept", accept)
    return script
