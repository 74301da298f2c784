"""Compile the recipes of one batch into row-wise edits per layer. Knows nothing of text, requests or HTTP.

`BatchPlan` holds what stays the same while the same recipes run; `bind` adds what changes with every forward pass (positions,
tokens, gains) and gives one function per touched layer. Rows without a recipe are never written to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steersman.errors import SaeError
from steersman.sae.model import SparseAutoencoder
from steersman.steering.condition import Above, AllOf, AnyOf, Condition, Not, Since, TokenIs, leaves
from steersman.steering.edits import Edit, SaeEdit
from steersman.steering.recipe import Recipe
from steersman.steering.stacks import STACKS, Group, Probes
from steersman.steering.where import Constant, Schedule, Where

Latches = dict[int, bool]
"""Which `since` conditions of a request have been met so far, by identity of the condition."""

_Key = tuple[int, type, tuple[str, str, bool] | None]
"""Layer and family, and for edits of an SAE its hash, their kind and whether they keep its error: the edits that are applied in
one go, so that an SAE encodes all their rows in one product."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """What one forward pass reads."""

    token_ids: Int[Tensor, "rows seq"]
    positions: Int[Tensor, "rows seq"]
    """Position of each token in its own sequence, prompt first."""
    prompt_lengths: Int[Tensor, "rows 1"]
    valid: Bool[Tensor, "rows seq"]
    """False for padding."""
    gains: Float[Tensor, " rows"]
    """Factor on every strength of the row's recipe."""


class BatchPlan:
    """The edits and conditions of a batch, stacked for the device they run on."""

    def __init__(
        self,
        recipes: Sequence[Recipe | None],
        mean_norms: Sequence[float],
        device: torch.device,
        saes: Mapping[str, SparseAutoencoder] | None = None,
    ) -> None:
        """Stack the edits of `recipes` (one a row, None for an unsteered row), group by group.

        Args:
            recipes: what steers each row; their fit to the model was checked before.
            mean_norms: mean residual norm per layer, what a strength of 1.0 means.
            device: where the model runs.
            saes: those that `weight` and `swap` edits name, by `weights_hash`, on the same device; their fit was checked too.

        Raises:
            SaeError: an SAE that a recipe needs is not among `saes`.
        """
        self.aborts = [(row, recipe.abort) for row, recipe in enumerate(recipes) if recipe and recipe.abort]
        found: dict[_Key, list[tuple[int, Edit]]] = defaultdict(list)
        leaves_read: dict[int, list[tuple[int, Above]]] = defaultdict(list)
        for row, recipe in enumerate(recipes):
            # Strength 0 is the baseline, bit for bit: nothing runs for it, conditions neither.
            live = [edit for edit in recipe.edits if edit.strength != 0.0] if recipe else []
            for edit in live:
                found[_key(edit)].append((row, edit))
            asked = [edit.when for edit in live if edit.when] + ([recipe.abort] if recipe and recipe.abort else [])
            for leaf in (leaf for condition in asked for leaf in leaves(condition)):
                leaves_read[leaf.layer].append((row, leaf))
        self.probes = {layer: Probes(entries, mean_norms[layer], device) for layer, entries in leaves_read.items()}
        groups: dict[int, list[Group]] = defaultdict(list)
        # Sorted: floating-point sums depend on their order, which must not depend on other rows or on how edits are listed.
        for layer, family, used in sorted(found, key=repr):
            entries = sorted(found[layer, family, used], key=lambda entry: (entry[0], repr(entry[1])))
            needs = mean_norms[layer] if used is None else _handed(saes or {}, used[0])
            groups[layer].append(Group(entries, family(entries, needs, device), device))
        self.edits = {layer: _edits(own, device) for layer, own in groups.items()}
        self.layers = tuple(sorted({*self.edits, *self.probes}))

    def bind(self, batch: TokenBatch, latches: Sequence[Latches]) -> BoundPlan:
        """The plan for one forward pass over `batch`; `latches` holds one dict a row, updated by `commit`."""
        return BoundPlan(self, batch, latches)


class BoundPlan:
    """A plan with the tokens it will meet: one function per layer, for one forward pass."""

    def __init__(self, plan: BatchPlan, batch: TokenBatch, latches: Sequence[Latches]) -> None:
        self._plan, self._batch, self._latches = plan, batch, latches
        self._truths: dict[tuple[int, int], Tensor] = {}
        self._coefficients: dict[tuple[Where, Schedule], Tensor] = {}

    @property
    def hooks(self) -> dict[int, Callable[[Tensor], Tensor | None]]:
        """For each touched layer, the function from the block's output to its replacement (None: unchanged)."""
        return {layer: self._hook(layer) for layer in self._plan.layers}

    def commit(self) -> set[int]:
        """After the forward pass: remember what `since` conditions saw, and return the rows whose recipe says abort."""
        aborted: set[int] = set()
        if self._plan.aborts:
            later = (self._batch.positions > 0) & self._batch.valid
            aborted = {row for row, abort in self._plan.aborts if bool((self._holds(row, abort) & later[row]).any())}
        for (row, key), truth in self._truths.items():
            if key in self._latches[row]:
                # Or-ed: a pass may hold nothing but padding for a row that met its condition before.
                self._latches[row][key] |= bool(truth.any())
        return aborted

    def _hook(self, layer: int) -> Callable[[Tensor], Tensor | None]:
        def edit(hidden: Tensor) -> Tensor | None:
            if layer in self._plan.probes:
                # The first token is an attention sink: what is read there means nothing.
                self._truths.update(self._plan.probes[layer].read(hidden, self._batch.positions > 0))
            edits = self._plan.edits.get(layer)
            return self._apply(edits, hidden) if edits else None

        return edit

    def _apply(self, edits: _LayerEdits, hidden: Tensor) -> Tensor:
        old = hidden[edits.rows]
        # Float32 while the changes add up, one rounding at the end.
        before = old.float()
        total = before.clone()
        for group, places in zip(edits.groups, edits.places, strict=True):
            if places is None:
                total += group.stack.change(before, self._gain(group))
            else:
                total.index_add_(0, places, group.stack.change(before[places], self._gain(group)))
        # What did not change keeps every bit, the sign of a zero too.
        new = torch.where(total == before, old, total.to(hidden.dtype))
        if len(new) == len(hidden):
            return new
        result = hidden.clone()
        result[edits.rows] = new
        return result

    def _gain(self, group: Group) -> Float[Tensor, "entries seq"]:
        """Gain of each entry at each token: row gain, position mask, schedule and condition."""
        first, *others = [self._coefficient(*way) for way in group.ways]
        gain = torch.stack([first, *others])[group.way, group.index] if others else first[group.index]
        for entry, (row, condition) in group.conditions.items():
            gain[entry] *= self._holds(row, condition)
        return gain

    def _coefficient(self, where: Where, schedule: Schedule) -> Float[Tensor, "rows seq"]:
        """Row gain, position mask and schedule at each token of each row."""
        if (where, schedule) not in self._coefficients:
            batch = self._batch
            mask = where.mask(batch.positions, batch.prompt_lengths, batch.token_ids) & batch.valid
            gains = batch.gains[:, None] * mask
            if not isinstance(schedule, Constant):
                gains = schedule.gains((batch.positions - batch.prompt_lengths).clamp(min=0)) * gains
            self._coefficients[where, schedule] = gains
        return self._coefficients[where, schedule]

    def _holds(self, row: int, condition: Condition) -> Bool[Tensor, " seq"]:
        """Truth of a condition at each token of the row, all its layers having been read."""
        known = self._truths.get((row, id(condition)))
        if known is not None:
            return known
        batch = self._batch
        match condition:
            case Above():
                raise AssertionError("a condition's layer is read before it is asked for")
            case TokenIs():
                truth = torch.isin(
                    batch.token_ids[row], torch.tensor(condition.token_ids, device=batch.token_ids.device)
                )
            case Not():
                truth = ~self._holds(row, condition.item)
            case AllOf():
                truth = torch.stack([self._holds(row, item) for item in condition.items]).all(0)
            case AnyOf():
                truth = torch.stack([self._holds(row, item) for item in condition.items]).any(0)
            case Since():
                now = self._holds(row, condition.item) & batch.valid[row]
                met = self._latches[row].setdefault(id(condition), False)
                truth = now.cummax(0).values | met
        self._truths[row, id(condition)] = truth & batch.valid[row]
        return self._truths[row, id(condition)]


@dataclass(frozen=True, slots=True)
class _LayerEdits:
    """What happens at one layer."""

    groups: Sequence[Group]
    rows: slice | Int[Tensor, " touched"]
    """The rows that any group touches, in order; there may be others behind those that the plan knows."""
    places: Sequence[Int[Tensor, " entries"] | None]
    """For each group, where among those rows its entries are; None: one at each, in order."""


def _edits(groups: Sequence[Group], device: torch.device) -> _LayerEdits:
    rows = sorted({row for group in groups for row in group.rows})
    # Where it can be, a slice: it copies nothing.
    index = slice(len(rows)) if rows == list(range(len(rows))) else torch.tensor(rows, device=device)
    local = {row: place for place, row in enumerate(rows)}
    places = [
        None if group.rows == rows else torch.tensor([local[row] for row in group.rows], device=device)
        for group in groups
    ]
    return _LayerEdits(groups, index, places)


def _key(edit: Edit) -> _Key:
    of_sae = (edit.sae.weights_hash, edit.kind, edit.keep_error) if isinstance(edit, SaeEdit) else None
    return edit.layer, STACKS[edit.kind], of_sae


def _handed(saes: Mapping[str, SparseAutoencoder], weights_hash: str) -> SparseAutoencoder:
    if weights_hash not in saes:
        raise SaeError(
            f"the plan needs the SAE of weights {weights_hash[:8]}, which it was not handed; pass it in `saes`"
        )
    return saes[weights_hash]
