"""Write continuations of a few prompts under many vectors at once, and keep what the SAE's layer says while they are written.

All rows of a batch move in step: one prefill a vector and prompt, shared by its samples, then one pass a token. Steering at a
layer changes only the blocks above it; so what the block puts out, before the edit, is what the plain model reads in the text
that the steered one wrote, and no second reading is needed. Knows nothing of scales, files or maps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.engine.cache import KVCache
from steersman.engine.runner import Runner
from steersman.errors import DataError, RequestError
from steersman.evals.effects.facts import EffectSettings
from steersman.models.blocks import reading
from steersman.models.language_model import LanguageModel
from steersman.steering.edits import Add
from steersman.steering.plan import BatchPlan, BoundPlan, Latches, TokenBatch
from steersman.steering.recipe import Recipe
from steersman.steering.vector import Vector

_QUERY_STEP = 4  # Prompts are padded to whole fours, as in the engine, so that a row does not depend on its neighbours.
_BLOCK = 128  # Tokens of the vocabulary whose maximum is looked at first.


class Written(NamedTuple):
    """What one vector made the model write."""

    ids: Int[Tensor, "prompts samples tokens"]
    residuals: Float[Tensor, "prompts samples tokens d_model"]
    """Output of the block at the layer for each written token, before the edit, in the model's number format."""


class Sampler:
    """Continuations of the prompts of one measurement."""

    def __init__(self, model: LanguageModel, layer: int, mean_norms: Sequence[float], settings: EffectSettings) -> None:
        """Split the prompts into tokens.

        Raises:
            DataError: a prompt of fewer than two tokens, or too long for the context.
            UnsupportedModel: as for the engine.
        """
        self.model, self.layer, self.settings = model, layer, settings
        self._norms = mean_norms
        self._runner = Runner(model)
        self._prompts = [model.encode(prompt) for prompt in settings.prompts]
        for prompt, ids in zip(settings.prompts, self._prompts, strict=True):
            if not 2 <= len(ids) <= model.context_tokens - settings.tokens:
                raise DataError(
                    f"the prompt {prompt!r} has {len(ids)} tokens; effects need prompts of 2 to "
                    f"{model.context_tokens - settings.tokens} tokens, as the first one is never steered"
                )

    def write(
        self, edits: Sequence[tuple[Vector, float] | None], seeds: Sequence[int], *, samples: int | None = None
    ) -> list[Written]:
        """Continue every prompt under every vector; results do not depend on what else is in the batch, up to rounding.

        Args:
            edits: vector and strength in mean residual norms, one a row group; None is the plain model.
            seeds: of the samples of each.
            samples: continuations of each prompt; by default as the settings say.

        Raises:
            RequestError: the model's output is no number; a strength is far too high.
        """
        samples = samples or self.settings.samples
        recipes = [None if edit is None else _recipe(self.layer, *edit) for edit in edits]
        with torch.inference_mode():
            cache, logits = self._prefill(recipes)
            cache.spread(samples)
            rows = [recipe for recipe in recipes for _ in range(len(self._prompts) * samples)]
            draws = _draws(seeds, len(self._prompts) * samples, self.settings.tokens).to(self.model.device)
            ids, residuals = self._decode(cache, logits.repeat_interleave(samples, 0), rows, samples, draws)
        shape = (len(edits), len(self._prompts), samples, self.settings.tokens)
        return [Written(*each) for each in zip(ids.view(shape), residuals.view(*shape, -1), strict=True)]

    def _prefill(self, recipes: Sequence[Recipe | None]) -> tuple[KVCache, Tensor]:
        """Read every prompt under every recipe; the cache, and the logits `(vectors * prompts, vocab)` at its last token."""
        width = -(-max(map(len, self._prompts)) // _QUERY_STEP) * _QUERY_STEP
        device, prompts = self.model.device, [ids for _ in recipes for ids in self._prompts]
        ids = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts], device=device)
        lengths = torch.tensor([[len(prompt)] for prompt in prompts], device=device)
        positions = torch.arange(width, device=device).expand(len(prompts), -1)
        cache = self._runner.new_cache()
        plan = BatchPlan([recipe for recipe in recipes for _ in self._prompts], self._norms, device)
        bound = plan.bind(_batch(ids, positions, lengths, positions < lengths), [{} for _ in prompts])
        return cache, self._runner.forward(cache, ids, positions, lengths - 1, bound)[:, 0]

    def _decode(
        self, cache: KVCache, logits: Tensor, recipes: Sequence[Recipe | None], samples: int, draws: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write token by token; ids `(rows, tokens)` and residuals `(rows, tokens, d_model)`."""
        device, settings = self.model.device, self.settings
        lengths = torch.tensor([[len(ids)] for ids in self._prompts], device=device)
        lengths = lengths.repeat_interleave(samples, 0).repeat(len(recipes) // (len(self._prompts) * samples), 1)
        plan = BatchPlan(recipes, self._norms, device)
        latches: list[Latches] = [{} for _ in recipes]
        keep = torch.zeros_like(lengths)
        written: list[Tensor] = []
        heard: list[Tensor] = []
        for step in range(settings.tokens):
            if not bool(logits.amax(-1).isfinite().all()):
                raise RequestError("the model's output is not a number under one of the vectors; lower 'rise'")
            ids = choose_rows(logits, draws[:, step], settings)[:, None]
            written.append(ids)
            positions = lengths + step
            if step < settings.tokens - 1:
                bound = _Ear(plan, _batch(ids, positions, lengths, torch.ones_like(ids, dtype=torch.bool)), latches)
                bound.layer = self.layer
                logits = self._runner.forward(cache, ids, positions, keep, bound)[:, 0]
                heard.append(bound.heard)
        # The last token needs no successor: the pass ends at the layer.
        with self.model.lock, reading(self.model.blocks, [self.layer]) as outputs:
            self._runner.forward(cache, ids, positions, keep)
        heard.append(outputs[self.layer])
        return torch.cat(written, 1), torch.cat(heard, 1)


class _Ear(BoundPlan):
    """A bound plan that also keeps what the block at `layer` puts out before it is edited."""

    layer: int
    heard: Tensor

    @property
    def hooks(self) -> dict[int, Callable[[Tensor], Tensor | None]]:
        edits = super().hooks
        edit = edits.get(self.layer)

        def hear(hidden: Tensor) -> Tensor | None:
            self.heard = hidden
            return edit(hidden) if edit else None

        return {**edits, self.layer: hear}


def choose_rows(
    logits: Float[Tensor, "rows vocab"], draws: Float[Tensor, " rows"], settings: EffectSettings
) -> Int[Tensor, " rows"]:
    """The next token of every row: what the engine's `choose` chooses with the same draw, all rows at once.

    Args:
        logits: float32.
        draws: uniform in [0, 1).
        settings: temperature, top-k and top-p.
    """
    if settings.temperature == 0.0:
        return logits.argmax(-1)
    likeliest, ids = top_of_rows(logits, settings.top_k)
    shares = (likeliest / settings.temperature).softmax(-1)
    before = shares.cumsum(-1) - shares
    keep = before < settings.top_p
    keep[:, 0] = True
    cumulative = (shares * keep).double().cumsum(-1)
    index = torch.searchsorted(cumulative, draws.double()[:, None] * cumulative[:, -1:], right=True)
    index = torch.minimum(index, keep.sum(-1, keepdim=True) - 1)
    return ids.gather(1, index)[:, 0]


def top_of_rows(logits: Float[Tensor, "rows vocab"], k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest of each row and where they stand, largest first; like `topk`, in a third of the time on a CPU.

    They all lie in the `k` blocks of the vocabulary that have the largest maxima.
    """
    rows, vocab = logits.shape
    k, blocks = min(k, vocab), vocab // _BLOCK
    if blocks <= k or vocab % _BLOCK:
        return logits.topk(k, dim=-1)
    parts = logits.view(rows, blocks, _BLOCK)
    chosen = parts.amax(-1).topk(k, dim=-1, sorted=False).indices
    found = parts.gather(1, chosen[:, :, None].expand(-1, -1, _BLOCK)).flatten(1)
    values, places = found.topk(k, dim=-1)
    return values, chosen.gather(1, places // _BLOCK) * _BLOCK + places % _BLOCK


def _recipe(layer: int, vector: Vector, strength: float) -> Recipe:
    return Recipe(name="effect", edits=(Add(layer=layer, vector=vector, strength=strength),))


def _batch(ids: Tensor, positions: Tensor, lengths: Tensor, valid: Tensor) -> TokenBatch:
    gains = torch.ones(len(ids), device=ids.device)
    return TokenBatch(token_ids=ids, positions=positions, prompt_lengths=lengths, valid=valid, gains=gains)


def _draws(seeds: Sequence[int], rows: int, tokens: int) -> Float[Tensor, "rows tokens"]:
    made = [torch.rand(rows, tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.cat(made)
