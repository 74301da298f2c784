"""What is read together, and what only once: stems, the prompts that several answers share, and what follows them.

Reading costs what its tokens cost, padding included, and something a pass. Knows nothing of tensors, models or caches.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from steersman.models.spans import in_common
from steersman.sae.model import SparseAutoencoder
from steersman.steering.recipe import Recipe

# Whole fours of columns: see `PrefillBatch` for what that does to the last bit.
STEP = 4
_HEAD_TOKENS = 16
_PASS_COST = 32  # What a pass costs beside its tokens, in tokens.
_MAX_ROWS, _MAX_SLAB_TOKENS = 64, 4096


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt and an answer as tokens, with all that reading them needs."""

    index: int
    ids: tuple[int, ...]
    start: int
    """Where the answer begins."""
    recipe: Recipe | None
    strength: float
    saes: Mapping[str, SparseAutoencoder]

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens that the answer stands behind."""
        return self.ids[: self.start]


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Columns `start` to `stop` of a sequence, which one row of a slab reads."""

    rows: tuple[Row, ...]
    """The answers it predicts tokens of. Up to `stop` they are alike, and so is what steers them."""
    start: int
    stop: int
    tails: tuple[Stretch, ...] = ()
    """What is read behind it, in rows that begin as this one."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Tokens from the beginning of the sequence on."""
        return self.rows[0].ids[: self.stop]

    @property
    def first(self) -> int:
        """The first column whose logits are wanted, as are all behind it: it predicts the token of an answer."""
        return max(self.start, self.rows[0].start - 1)


def stretches(rows: Sequence[Row]) -> list[Stretch]:
    """What has to be read for these rows: prompts of several answers once, if that pays, the others with their answer.

    Nobody asks what follows an answer, so its last token is not read; an answer of one token needs its prompt alone.
    """
    alike: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        alike[id(row.recipe), row.strength if row.recipe else None, row.prompt].append(row)
    stems = [_stem(some) for some in alike.values()]
    saved = {stem: sum(padded(len(row.ids) - 1) for row in stem.rows) - _stem_cost(stem) for stem in stems}
    pays = [stem for stem in stems if saved[stem] > 0 and len(stem.rows) > 1]
    passes = -(-sum(len(stem.tails) for stem in pays) // _MAX_ROWS)
    if sum(saved[stem] for stem in pays) <= passes * _PASS_COST:
        pays = []
    shared = {row.index for stem in pays for row in stem.rows}
    return [*pays, *(Stretch((row,), 0, len(row.ids) - 1) for row in rows if row.index not in shared)]


def batches(parts: Sequence[Stretch]) -> Iterator[list[Stretch]]:
    """Stretches that are cheaper read together than apart: of one system prompt, of similar length."""
    heads = Counter(_head(part) for part in parts)
    order = {recipe: place for place, recipe in enumerate(dict.fromkeys(id(part.rows[0].recipe) for part in parts))}

    def place(part: Stretch) -> tuple[object, ...]:
        row, head, width = part.rows[0], _head(part), part.stop - part.start
        near = (head, row.start, row.prompt) if heads[head] > 1 and not part.start else ()
        return order[id(row.recipe)], row.strength if row.recipe else 0.0, near, width, part.start

    batch: list[Stretch] = []
    shared = width = longest = 0
    for part in sorted(parts, key=place):
        common = min(shared, _alike(batch[0], part)) if batch else _most(part)
        wide, long = max(width, part.stop - part.start), max(longest, part.stop)
        apart = _cost(len(batch), shared, width) + _cost(1, 0, part.stop - part.start)
        full = len(batch) >= _MAX_ROWS or (len(batch) + 1) * long > _MAX_SLAB_TOKENS
        if batch and (full or _cost(len(batch) + 1, common, wide) > apart):
            yield batch
            batch, common, wide, long = [], _most(part), part.stop - part.start, part.stop
        batch, shared, width, longest = [*batch, part], common, wide, long
    if batch:
        yield batch


def common_head(batch: Sequence[Stretch]) -> int:
    """How many columns all of a batch begin with alike, in whole steps; they are read once."""
    return min((_alike(batch[0], part) for part in batch[1:]), default=0) // STEP * STEP


def padded(columns: int) -> int:
    """Columns in whole steps."""
    return -(-columns // STEP) * STEP


def _stem(rows: Sequence[Row]) -> Stretch:
    start = rows[0].start
    tails = [Stretch((row,), start, len(row.ids) - 1) for row in rows if len(row.ids) - 1 > start]
    return Stretch(tuple(rows), 0, start, tuple(tails))


def _stem_cost(stem: Stretch) -> int:
    return padded(stem.stop) + sum(padded(tail.stop - tail.start) for tail in stem.tails)


def _head(part: Stretch) -> tuple[int, ...]:
    return part.rows[0].ids[:_HEAD_TOKENS]


def _cost(rows: int, shared: int, width: int) -> int:
    """What it takes to read `rows` rows of `width` tokens that begin alike, in tokens."""
    if rows < 2 or shared < STEP:
        return rows * padded(width) + _PASS_COST
    return shared + rows * padded(width - shared) + 2 * _PASS_COST


def _most(part: Stretch) -> int:
    """How many columns could be read elsewhere; not the one that predicts the answer's first token."""
    return 0 if part.start else part.rows[0].start - 1


def _alike(one: Stretch, other: Stretch) -> int:
    """How many columns, steered alike, both begin with."""
    mine, its = one.rows[0], other.rows[0]
    if mine.recipe is not its.recipe or (mine.recipe and (mine.strength, mine.start) != (its.strength, its.start)):
        return 0  # Where edits and schedules apply is counted from the prompt's end.
    return min(_most(one), _most(other), in_common(mine.ids, its.ids))
