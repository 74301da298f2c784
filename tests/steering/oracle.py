"""What a recipe does, said a second time: one token after the other, in float64, with no batch, padding or stack.

The "model" is three layers without attention: layer `l` of token `t` is `bases[l][t]` plus half of the layer below. So
an edit is seen by every later layer of its own token, and by nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from tests.recipes import N_LAYERS, N_VOCAB, SAE_OF, WIDTH
from torch import Tensor

from steersman.sae.model import SparseAutoencoder
from steersman.steering.condition import Above, AllOf, AnyOf, Condition, Not, Since, TokenIs
from steersman.steering.edits import Ablate, Add, Clamp, Edit, Rotate, SaeEdit, Scale, Swap, Weight
from steersman.steering.plan import BatchPlan, Latches, TokenBatch
from steersman.steering.recipe import Recipe
from steersman.steering.target import Latent, Target
from steersman.steering.where import Constant, Decay, Ramp, Schedule, Where

MEAN_NORMS = (1.5, 2.0, 3.0)


@dataclass(frozen=True)
class Row:
    """One request: what it reads, and what steers it."""

    tokens: tuple[int, ...]
    prompt_length: int
    recipe: Recipe | None
    bases: Tensor
    """(layers, seq, d_model)"""
    gain: float = 1.0


def make_row(
    recipe: Recipe | None, tokens: tuple[int, ...], prompt_length: int, *, seed: int = 0, gain: float = 1.0
) -> Row:
    """A row over random activations."""
    generator = torch.Generator().manual_seed(seed)
    bases = (
        torch.randn(N_LAYERS, len(tokens), WIDTH, generator=generator) * torch.tensor([1.0, 2.0, 0.5])[:, None, None]
    )
    return Row(tokens, prompt_length, recipe, bases, gain)


def play(rows: list[Row], chunks: list[int], *, left: bool = False) -> tuple[list[Tensor], list[int | None]]:
    """Run rows through one plan, `chunks` tokens a pass (the last one repeats), padded with the worst that could be there.

    Returns:
        For each row its residual stream (layers, seq, d_model), and the pass after which it was told to abort.
    """
    plan = BatchPlan([row.recipe for row in rows], MEAN_NORMS, torch.device("cpu"), SAE_OF)
    latches: list[Latches] = [{} for _ in rows]
    done, step = [0] * len(rows), 0
    outputs: list[list[Tensor]] = [[] for _ in rows]
    aborted: list[int | None] = [None] * len(rows)
    while any(at < len(row.tokens) for at, row in zip(done, rows, strict=True)):
        width = chunks[min(step, len(chunks) - 1)]
        taken = [min(width, len(row.tokens) - at) for at, row in zip(done, rows, strict=True)]
        batch, bases = _pass(rows, done, taken, width, left)
        bound = plan.bind(batch, latches)
        layers = _run(bases, bound.hooks)
        for row in bound.commit():
            aborted[row] = step if aborted[row] is None else aborted[row]
        for row, count in enumerate(taken):
            span = slice(width - count, width) if left else slice(0, count)
            outputs[row].append(layers[:, row, span])
            done[row] += count
        step += 1
    return [torch.cat(parts, dim=1) for parts in outputs], aborted


def _pass(rows: list[Row], done: list[int], taken: list[int], width: int, left: bool) -> tuple[TokenBatch, Tensor]:
    ids = torch.arange(len(rows) * width).reshape(len(rows), width) % N_VOCAB
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    valid = torch.zeros(len(rows), width, dtype=torch.bool)
    bases = torch.full((N_LAYERS, len(rows), width, WIDTH), 1e4)
    for index, (row, at, count) in enumerate(zip(rows, done, taken, strict=True)):
        begin = width - count if left else 0
        positions[index] = torch.arange(width) - begin + at
        valid[index, begin : begin + count] = True
        ids[index, begin : begin + count] = torch.tensor(row.tokens[at : at + count], dtype=torch.long)
        bases[:, index, begin : begin + count] = row.bases[:, at : at + count]
        bases[:, index] *= torch.where(valid[index], 1.0, (-1.0) ** index)[:, None]
    prompts = torch.tensor([[row.prompt_length] for row in rows])
    gains = torch.tensor([row.gain for row in rows])
    return TokenBatch(token_ids=ids, positions=positions, prompt_lengths=prompts, valid=valid, gains=gains), bases


def _run(bases: Tensor, hooks: dict) -> Tensor:  # type: ignore[type-arg]
    below, layers = torch.zeros_like(bases[0]), []
    for layer, base in enumerate(bases):
        hidden = base + 0.5 * below
        kept = hidden.clone()
        edited = hooks[layer](hidden) if layer in hooks else None
        assert (
            torch.equal(
                hidden,
                kept,
            )
            or hidden.isnan().any()
        ), "a hook changed its input in place"
        below = hidden if edited is None else edited
        layers.append(below)
    return torch.stack(layers)


class Oracle:
    """One row, token by token."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.read: dict[tuple[int, int], Tensor] = {}

    def run(self) -> tuple[Tensor, int | None]:
        """The residual stream (layers, seq, d_model), and the first token at which the row must abort."""
        row, aborted = self.row, None
        outputs = torch.zeros(N_LAYERS, len(row.tokens), WIDTH, dtype=torch.float64)
        for token in range(len(row.tokens)):
            below = torch.zeros(WIDTH, dtype=torch.float64)
            for layer in range(N_LAYERS):
                hidden = self.read[layer, token] = row.bases[layer, token].double() + 0.5 * below
                below = outputs[layer, token] = hidden + self._change(layer, token, hidden)
            abort = row.recipe.abort if row.recipe else None
            if aborted is None and abort is not None and token > 0 and self.holds(abort, token):
                aborted = token
        return outputs, aborted

    def _change(self, layer: int, token: int, hidden: Tensor) -> Tensor:
        row, total = self.row, torch.zeros_like(hidden)
        for edit in row.recipe.edits if row.recipe else ():
            if edit.layer != layer or not touches(edit.where, token, row.prompt_length, row.tokens[token]):
                continue
            if edit.when is not None and not self.holds(edit.when, token):
                continue
            gain = row.gain * gain_of(edit.schedule, max(token - row.prompt_length, 0))
            total += change_of(edit, hidden, gain)
        return total

    def holds(self, condition: Condition, token: int) -> bool:
        """Truth at one token, in plain words."""
        match condition:
            case Above():
                return token > 0 and self._reading(condition, self.read[condition.layer, token]) > condition.threshold
            case TokenIs():
                return self.row.tokens[token] in condition.token_ids
            case Not():
                return not self.holds(condition.item, token)
            case AllOf():
                return all(self.holds(item, token) for item in condition.items)
            case AnyOf():
                return any(self.holds(item, token) for item in condition.items)
            case Since():
                return any(self.holds(condition.item, earlier) for earlier in range(token + 1))

    def _reading(self, condition: Above, hidden: Tensor) -> float:
        reading = reading_of(condition.target, hidden)
        if isinstance(condition.target, Latent):
            return reading
        return reading / (float(hidden.norm()) if condition.measure == "cosine" else MEAN_NORMS[condition.layer])


def reading_of(target: Target, hidden: Tensor) -> float:
    """Projection or activation."""
    if isinstance(target, Latent):
        value = float(hidden @ target.encoder_row.tensor.double()) + target.encoder_bias
        return value if value > target.threshold else 0.0
    return float(hidden @ unit_of(target.vector.tensor))


def unit_of(values: Tensor) -> Tensor:
    """Float64, norm 1."""
    return values.double() / values.double().norm()


def change_of(edit: Edit, hidden: Tensor, gain: float) -> Tensor:
    """What an edit adds to one token."""
    amount = gain * edit.strength
    match edit:
        case Add():
            if edit.unit == "raw":
                return amount * edit.vector.tensor.double()
            return amount * MEAN_NORMS[edit.layer] * unit_of(edit.vector.tensor)
        case Rotate():
            return rotation_of(hidden, unit_of(edit.vector.tensor), amount * edit.degrees) if amount else 0 * hidden
        case Clamp() | Scale() | Ablate():
            reading = reading_of(edit.target, hidden)
            wanted = {
                "clamp": lambda: edit.value * (MEAN_NORMS[edit.layer] if edit.unit == "residual_norm" else 1.0),
                "scale": lambda: edit.factor * reading,
                "ablate": lambda: 0.0,
            }[edit.kind]()
            along = edit.target.decoder_row.tensor.double() if isinstance(edit.target, Latent) else None
            return amount * (wanted - reading) * (unit_of(edit.target.vector.tensor) if along is None else along)
        case Weight() | Swap():
            return amount * reweighing_of(SAE_OF[edit.sae.weights_hash], edit, hidden)


def reweighing_of(sae: SparseAutoencoder, edit: SaeEdit, hidden: Tensor) -> Tensor:
    """What an edit through a whole SAE adds to one token, latent by latent."""
    c, h = sae.config, hidden.double()
    shift, scale, divide = torch.zeros(()).double(), torch.ones(()).double(), 1.0
    if c.normalise == "expected_norm":
        divide, scale = 1 / c.input_scale, scale / c.input_scale
    elif c.normalise == "layer_norm":
        shift, scale = h.mean(), h.std()
        divide = float(scale) + 1e-5
    elif c.normalise == "unit_norm":
        scale = (h**2).mean().sqrt()
        divide = float(scale)
    x = (h - shift) / divide - (sae.b_dec.double() if c.subtract_decoder_bias else 0.0)
    read = [float(x @ sae.W_enc[:, j].double() + sae.b_enc[j].double()) for j in range(c.d_sae)]
    weighted = [value * score for value, score in zip(read, edit.scores.tensor.tolist(), strict=True)]
    firing = _firing(sae, weighted)
    kept = [max(value, 0.0) for value in read] if isinstance(edit, Swap) else weighted
    new = {j: kept[j] for j in firing}
    old = {j: read[j] for j in _firing(sae, read)}

    def made(acts: dict[int, float]) -> Tensor:
        total = sae.b_dec.double().clone()
        for latent, value in acts.items():
            total += value * sae.W_dec[latent].double()
        return total * scale + shift

    return made(new) - (made(old) if edit.keep_error else h)


def _firing(sae: SparseAutoencoder, read: list[float]) -> set[int]:
    if sae.config.k is not None and sae.config.architecture == "topk":
        largest = sorted(range(len(read)), key=lambda latent: -read[latent])[: sae.config.k]
        return {latent for latent in largest if read[latent] > 0}
    least = [0.0] * len(read) if sae.threshold is None else sae.threshold.double().tolist()
    return {latent for latent, value in enumerate(read) if value > least[latent]}


def rotation_of(hidden: Tensor, unit: Tensor, degrees: float) -> Tensor:
    """The change that turns one token towards a unit vector, stopping at it."""
    norm, along = float(hidden.norm()), float(hidden @ unit)
    across = hidden - along * unit
    angle = math.atan2(float(across.norm()), along)
    turned = min(max(angle - math.radians(degrees), 0.0), math.pi)
    return norm * (math.cos(turned) * unit + math.sin(turned) * across / across.norm()) - hidden


def touches(where: Where, position: int, prompt_length: int, token: int) -> bool:
    """Whether one token is edited, in plain words."""
    is_prompt = position < prompt_length
    if position == 0 and not where.first_token:
        return False
    if (where.scope == "prompt" and not is_prompt) or (where.scope == "generated" and is_prompt):
        return False
    index = position - prompt_length if where.scope == "generated" else position
    if index < where.start or (where.stop is not None and index >= where.stop):
        return False
    if where.positions is not None:
        named = {at if at >= 0 else prompt_length + at for at in where.positions}
        if position not in named:
            return False
    return where.token_ids is None or token in where.token_ids


def gain_of(schedule: Schedule, index: int) -> float:
    """The factor at one generated token, in plain words."""
    match schedule:
        case Constant():
            return 1.0
        case Ramp():
            return schedule.start + (schedule.end - schedule.start) * min(index / schedule.tokens, 1.0)
        case Decay():
            return schedule.floor + (1.0 - schedule.floor) * 0.5 ** (index / schedule.half_life_tokens)
