"""The two halves of a step: prompts being prefilled, and rows being decoded.

A prefill batch has a small slab of its own and works through its prompts chunk by chunk; when it is through, its rows move into
the decode slab. In the decode slab the running rows are always the first ones, so that a pass needs no gathering.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steersman.engine.cache import KVCache
from steersman.engine.runner import Runner
from steersman.engine.sequence import RunningSequence
from steersman.steering.plan import BatchPlan, TokenBatch
from steersman.steering.recipe import Recipe

# Attention kernels treat a remainder of one to three queries differently, in the last bit; a prompt is padded to whole
# fours, so that its keys and values do not depend on its neighbours.
_QUERY_STEP = 4
# For the same reason a row is never decoded alone: a matrix product with one row takes another path through the kernels.
_MIN_ROWS = 2


class _Steered:
    """What both halves share: a plan for the present rows, rebuilt when they change, and a steered pass."""

    def __init__(self, runner: Runner, mean_norms: Sequence[float]) -> None:
        self.runner = runner
        self.mean_norms = mean_norms
        self.sequences: list[RunningSequence] = []
        self._planned: list[Recipe | None] = []
        self._plan: BatchPlan | None = None

    def _pass(self, cache: KVCache, ids: Tensor, positions: Tensor, valid: Tensor, keep: Tensor) -> Tensor:
        """Run the rows, steered; rows whose recipe aborts are finished."""
        recipes = [sequence.recipe for sequence in self.sequences]
        if not any(recipes):
            return self.runner.forward(cache, ids, positions, keep)
        if (
            self._plan is None
            or len(recipes) != len(self._planned)
            or any(new is not old for new, old in zip(recipes, self._planned, strict=True))
        ):
            saes = {key: sae for sequence in self.sequences for key, sae in sequence.saes.items()}
            self._plan, self._planned = BatchPlan(recipes, self.mean_norms, ids.device, saes), recipes
        # Rows beyond the sequences are company only; nothing steers them.
        company = len(ids) - len(self.sequences)
        lengths = torch.tensor([[len(each.prompt_ids)] for each in self.sequences] + [[0]] * company, device=ids.device)
        gains = torch.tensor(
            [each.strength for each in self.sequences] + [0.0] * company, dtype=torch.float32, device=ids.device
        )
        batch = TokenBatch(token_ids=ids, positions=positions, prompt_lengths=lengths, valid=valid, gains=gains)
        bound = self._plan.bind(batch, [sequence.latches for sequence in self.sequences])
        logits = self.runner.forward(cache, ids, positions, keep, bound)
        for row in bound.commit():
            if not self.sequences[row].is_done:
                self.sequences[row].finish_reason = "abort"
        return logits


class PrefillBatch(_Steered):
    """A few prompts on their way into the cache, all from position 0 on, padded on the right."""

    def __init__(
        self, runner: Runner, mean_norms: Sequence[float], sequences: Sequence[RunningSequence], chunk_tokens: int
    ) -> None:
        super().__init__(runner, mean_norms)
        self.sequences = list(sequences)
        self.cache = runner.new_cache()
        self._chunk_tokens = max(_QUERY_STEP, chunk_tokens // _QUERY_STEP * _QUERY_STEP)
        self._at = 0
        self._width = -(-max(len(sequence.prompt_ids) for sequence in sequences) // _QUERY_STEP) * _QUERY_STEP
        # Padding repeats token 0; it lies behind every real token and is never looked at.
        self._ids = torch.zeros(len(sequences), self._width, dtype=torch.long, device=runner.model.device)
        for row, sequence in enumerate(self.sequences):
            self._ids[row, : len(sequence.prompt_ids)] = torch.tensor(sequence.prompt_ids)

    @property
    def is_complete(self) -> bool:
        """Whether every prompt is in the cache."""
        return self._at >= self._width or all(sequence.is_done for sequence in self.sequences)

    @property
    def next_tokens(self) -> int:
        """Tokens that the next pass reads, padding included."""
        return min(self._chunk_tokens, self._width - self._at) * len(self.sequences)

    def advance(self) -> list[RunningSequence]:
        """Read the next chunk; prompts that end in it get their first token. Returns those."""
        start, stop = self._at, min(self._at + self._chunk_tokens, self._width)
        ends = [len(sequence.prompt_ids) - 1 for sequence in self.sequences]
        ending = {row: end - start for row, end in enumerate(ends) if start <= end < stop}
        keep = torch.tensor([[ending.get(row, 0)] for row in range(len(ends))], device=self._ids.device)
        # Padding may reach past the context, where a model with learned positions has none to look up.
        positions = torch.arange(start, stop, device=self._ids.device).clamp(max=self.runner.model.context_tokens - 1)
        positions = positions.expand(len(self.sequences), -1)
        valid = positions <= torch.tensor(ends, device=self._ids.device)[:, None]
        logits = self._pass(self.cache, self._ids[:, start:stop], positions, valid, keep)
        self._at = stop
        going = [row for row in ending if not self.sequences[row].is_done]
        for row in going:
            self.sequences[row].accept(logits[row, 0])
        return [self.sequences[row] for row in going]


class DecodeBatch(_Steered):
    """The running rows: each step reads the token written last and writes one more."""

    def __init__(self, runner: Runner, mean_norms: Sequence[float]) -> None:
        super().__init__(runner, mean_norms)
        self.cache = runner.new_cache()

    def join(self, prefill: PrefillBatch) -> None:
        """Take over the prefilled rows that go on."""
        joining = [(row, sequence) for row, sequence in enumerate(prefill.sequences) if not sequence.is_done]
        if not joining:
            return
        together = [*self.sequences, *(sequence for _, sequence in joining)]
        self.cache.fit(len(together), max(sequence.reserved_tokens for sequence in together))
        for row, sequence in joining:
            self.cache.copy_row(prefill.cache, row, len(self.sequences), sequence.length)
            self.sequences.append(sequence)

    def drop_finished(self) -> None:
        """Give rows back; the last one moves into each gap."""
        row = 0
        while row < len(self.sequences):
            if not self.sequences[row].is_done:
                row += 1
                continue
            last = self.sequences[-1]
            if row < len(self.sequences) - 1:
                self.cache.move_row(len(self.sequences) - 1, row, last.length)
                self.sequences[row] = last
            self.sequences.pop()

    def advance(self) -> list[RunningSequence]:
        """One token for every row. Returns the sequences that got one."""
        self.drop_finished()
        if not self.sequences:
            return []
        device = self.runner.model.device
        rows = self.sequences * _MIN_ROWS if len(self.sequences) < _MIN_ROWS else self.sequences
        ids = torch.tensor([[sequence.last_token] for sequence in rows], device=device)
        positions = torch.tensor([[sequence.length] for sequence in rows], device=device)
        logits = self._pass(self.cache, ids, positions, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids))
        going = [(row, sequence) for row, sequence in enumerate(self.sequences) if not sequence.is_done]
        for row, sequence in going:
            sequence.accept(logits[row, 0])
        return [sequence for _, sequence in going]
