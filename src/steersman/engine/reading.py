"""Read rows of tokens, plain or steered, and say how likely the tokens of their answers are.

What rows begin with alike is read once and its keys and values are handed on: from the head of a batch to its stems, from a
stem to its answers. Those stand behind prompts of different lengths, so each row has its own first column. Knows nothing of
text, or of how rows are put together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.engine.cache import KVCache
from steersman.engine.reading_plan import STEP, Row, Stretch, batches, common_head, padded, stretches
from steersman.engine.runner import Runner
from steersman.steering.plan import BatchPlan, BoundPlan, Latches, TokenBatch

_MAX_LOGITS = 1 << 25
"""Numbers of logits that are held at once: 134 MB."""
_MAX_PASS_TOKENS = 2048  # Beside the logits, masks and activations take memory too.


class Reader:
    """Reads with one model; holds nothing between two calls."""

    def __init__(self, runner: Runner, mean_norms: Sequence[float]) -> None:
        """`mean_norms` is the mean residual norm of each layer, what a strength of 1.0 means."""
        self._runner = runner
        self._mean_norms = mean_norms

    def read(self, rows: Sequence[Row]) -> Iterator[tuple[Row, Float[Tensor, " tokens"]]]:
        """Each row, in any order, with the log-probability (natural, float32, on the CPU) of each token of its answer."""
        for batch in batches(stretches(rows)):
            found: dict[int, list[Tensor]] = defaultdict(list)
            self._read_batch(batch, found)
            for row in (row for part in batch for row in part.rows):
                yield row, torch.cat(found[row.index])

    def _read_batch(self, batch: Sequence[Stretch], found: dict[int, list[Tensor]]) -> None:
        shared = common_head(batch)
        cache, latches = self._slab(batch), [Latches() for _ in batch]
        if shared:
            head, met = [Stretch(batch[0].rows, 0, shared)], Latches()
            above = self._slab(head)
            self._run(above, head, [0], [met], found)
            cache.take_rows(above, [0] * len(batch), [shared] * len(batch))
            latches = [dict(met) for _ in batch]
        self._run(cache, batch, [shared] * len(batch), latches, found)
        stem_of = {tail: place for place, part in enumerate(batch) for tail in part.tails}
        for tails in batches(list(stem_of)):
            stems, starts = [stem_of[tail] for tail in tails], [tail.start for tail in tails]
            behind = self._slab(tails)
            behind.take_rows(cache, stems, starts)
            self._run(behind, tails, starts, [dict(latches[stem]) for stem in stems], found)

    def _slab(self, parts: Sequence[Stretch]) -> KVCache:
        # Padding stands in columns of its own.
        return self._runner.new_cache(max(part.start for part in parts) + padded(max(p.stop - p.start for p in parts)))

    def _run(
        self,
        cache: KVCache,
        parts: Sequence[Stretch],
        starts: Sequence[int],
        latches: Sequence[Latches],
        found: dict[int, list[Tensor]],
    ) -> None:
        """Read the parts, each from its start on, in pieces whose logits fit into memory."""
        pairs = list(zip(parts, starts, strict=True))
        width = padded(max(part.stop - start for part, start in pairs))
        most_logits = _MAX_LOGITS // self._runner.model.n_vocab // len(parts)
        most_columns = _MAX_PASS_TOKENS // len(parts)
        at = 0
        while at < width:
            to = at + STEP
            while to < min(width, at + most_columns // STEP * STEP):
                if max(len(_wanted(part, start + at, start + to + STEP)) for part, start in pairs) > most_logits:
                    break
                to += STEP
            self._pass(cache, parts, [(start + at, start + to) for start in starts], latches, found)
            at = to

    def _pass(
        self,
        cache: KVCache,
        parts: Sequence[Stretch],
        columns: Sequence[tuple[int, int]],
        latches: Sequence[Latches],
        found: dict[int, list[Tensor]],
    ) -> None:
        """Read some columns of each part; they all are of one width."""
        device, width = self._runner.model.device, columns[0][1] - columns[0][0]
        # Padding repeats token 0; it lies behind every real token and is never looked at.
        ids = [_filled(part.ids[low:high], width) for part, (low, high) in zip(parts, columns, strict=True)]
        token_ids = torch.tensor(ids, device=device)
        positions = torch.tensor([[low] for low, _ in columns], device=device) + torch.arange(width, device=device)
        wanted = [_wanted(part, low, high) for part, (low, high) in zip(parts, columns, strict=True)]
        # Never a single row of logits: see `PrefillBatch` for what that does to the last bit.
        wide = max(2 if len(parts) == 1 else 1, *map(len, wanted))
        kept = [_filled([at - low for at in some], wide) for some, (low, _) in zip(wanted, columns, strict=True)]
        bound = self._bound(parts, token_ids, positions, latches)
        logits = self._runner.forward(cache, token_ids, positions, torch.tensor(kept, device=device), bound)
        if bound is not None:
            bound.commit()
        for place, (part, some) in enumerate(zip(parts, wanted, strict=True)):
            if some:
                # Row by row: the softmax of a whole batch would double its memory.
                logprobs = logits[place, : len(some)].log_softmax(-1)
                for row in part.rows:
                    targets = torch.tensor([row.ids[at + 1] for at in some], device=device)
                    found[row.index].append(logprobs.gather(-1, targets[:, None])[:, 0].cpu())

    def _bound(
        self, parts: Sequence[Stretch], token_ids: Tensor, positions: Tensor, latches: Sequence[Latches]
    ) -> BoundPlan | None:
        rows, device = [part.rows[0] for part in parts], token_ids.device
        if not any(row.recipe for row in rows):
            return None
        batch = TokenBatch(
            token_ids=token_ids,
            positions=positions,
            prompt_lengths=torch.tensor([[row.start] for row in rows], device=device),
            valid=positions < torch.tensor([[part.stop] for part in parts], device=device),
            gains=torch.tensor([row.strength for row in rows], device=device),
        )
        saes = {key: sae for row in rows for key, sae in row.saes.items()}
        return BatchPlan([row.recipe for row in rows], self._mean_norms, device, saes).bind(batch, latches)


def _wanted(part: Stretch, low: int, high: int) -> range:
    """The columns between `low` and `high` whose logits are wanted; a column predicts the token behind it."""
    first = max(part.first, low)
    return range(first, max(first, min(part.stop, high)))


def _filled(values: Sequence[int], width: int) -> list[int]:
    return [*values, *[0] * (width - len(values))]
