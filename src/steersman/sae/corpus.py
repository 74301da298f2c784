"""Texts to train on: read from files, mixed by weight, shuffled, a part held out, cut into sequences of tokens.

Everything streams: memory holds one bucket of some million characters a group, whatever the files weigh. The order depends
on the contents and the seed alone. Knows nothing of activations.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from operator import itemgetter
from pathlib import Path

from steersman.errors import DataError, RequestError, did_you_mean
from steersman.models.language_model import LanguageModel
from steersman.models.spans import in_common
from steersman.sae.texts import Row, read_rows

EVERYTHING = "everything"
"""Name of the one group of a corpus without a mix."""

_BUCKET_CHARS = 16_000_000
_HASH_RANGE = 1 << 64
_WHOLE_CHATS = 16
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Group:
    """One entry of a mix and what the files hold of it."""

    name: str
    weight: float
    """Share of the characters drawn, relative to the other groups' weights."""
    files: tuple[Path, ...]
    n_rows: int
    train_chars: int
    held_out_chars: int


@dataclass(frozen=True, slots=True)
class Corpus:
    """Files that have been looked through once; `rows` reads them anew each time."""

    groups: tuple[Group, ...]
    seed: int
    held_out: float
    """Share of the rows that is never trained on."""
    sha256: str
    """Over the contents of all rows in the order of the files."""

    def rows(self, *, held_out: bool = False) -> Iterator[Row]:
        """Every row of one side once, in shuffled order, the groups' shares kept at every point.

        A group that runs out is left behind: the others go on without it.
        """
        streams = {group.name: self._shuffled(group, held_out) for group in self.groups}
        weights = {group.name: group.weight for group in self.groups}
        drawn = dict.fromkeys(weights, 0)
        while streams:
            # The group that lags most behind its share comes next.
            name = min(streams, key=lambda each: drawn[each] / weights[each])
            row = next(streams[name], None)
            if row is None:
                del streams[name]
                _log.info("no more %r in the corpus after %d characters", name, drawn[name])
                continue
            drawn[name] += max(row.n_chars, 1)
            yield row

    def _shuffled(self, group: Group, held_out: bool) -> Iterator[Row]:
        """The rows of a group sorted by a seeded hash: a shuffle of all files, taken bucket by bucket of the hash's range."""
        chars = group.held_out_chars if held_out else group.train_chars
        buckets = max(1, math.ceil(chars / _BUCKET_CHARS))
        for bucket in range(buckets):
            low, high = (_HASH_RANGE * number // buckets for number in (bucket, bucket + 1))
            found: list[tuple[int, Row]] = []
            for index, path in enumerate(group.files):
                for row in read_rows(path):
                    if _is_held_out(row, self.held_out) == held_out and _belongs(row, group.name):
                        key = _key(row, self.seed, index)
                        if low <= key < high:
                            found.append((key, row))
            found.sort(key=itemgetter(0), reverse=True)
            while found:
                yield found.pop()[1]


def open_corpus(
    files: Sequence[Path], *, mix: Mapping[str, float] | None = None, seed: int = 0, held_out: float = 0.01
) -> Corpus:
    """Look through all files once: check every row, count what each entry of the mix has.

    Args:
        files: `.jsonl`, `.jsonl.gz` (rows with `text` or `messages`, perhaps `kind` and `source`), `.txt`, `.txt.gz`.
        mix: share of the characters drawn, by the `kind` or `source` of a row or by a glob of the file's name or path. Rows that
            fit no entry are left out, a row that fits two is an error. None takes everything as it comes.
        seed: of the shuffle.
        held_out: share of the rows kept out of training, chosen by content, the same for every seed.

    Raises:
        DataError: a file that cannot be read, is in no known format or not UTF-8, a bad row, or a bad mix.
    """
    if not files:
        raise DataError("there are no texts; name at least one .jsonl or .txt file")
    if not 0.0 <= held_out < 1.0:
        raise DataError(f"the held-out share must be at least 0 and below 1, not {held_out}")
    weights = {EVERYTHING: 1.0} if mix is None else dict(mix)
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight > 0.0):
            raise DataError(f"the weight of {name!r} in the mix must be above 0, not {weight}")
    if not weights:
        raise DataError("the mix is empty; give weights by kind or by file name, or no mix at all")
    counts = {name: [0, 0, 0] for name in weights}
    found: dict[str, dict[Path, None]] = {name: {} for name in weights}
    seen: dict[str, None] = {}
    digest = hashlib.sha256()
    for path in files:
        for row in read_rows(path):
            digest.update(row.digest)
            seen |= {row.kind: None, row.source: None}
            names = [name for name in weights if _belongs(row, name)]
            if len(names) > 1:
                raise DataError(
                    f"{path}, line {row.line} fits {names[0]!r} and {names[1]!r} of the mix; keep one of them"
                )
            for name in names:
                found[name][path] = None
                counts[name][0] += 1
                counts[name][1 + _is_held_out(row, held_out)] += row.n_chars
    groups = tuple(Group(name, weight, tuple(found[name]), *counts[name]) for name, weight in weights.items())
    for group in groups:
        if not group.n_rows:
            known = [*filter(None, seen), *(path.name for path in files)]
            hint = did_you_mean(group.name, known) or f" (kinds and sources: {', '.join(filter(None, seen)) or 'none'})"
            raise DataError(f"there is no text for {group.name!r}{hint}")
    return Corpus(groups, seed, held_out, digest.hexdigest())


def _belongs(row: Row, name: str) -> bool:
    return name in (EVERYTHING, row.kind, row.source) or fnmatch(row.path.name, name) or fnmatch(str(row.path), name)


def _is_held_out(row: Row, share: float) -> bool:
    return int.from_bytes(row.digest) < share * _HASH_RANGE


def _key(row: Row, seed: int, file: int) -> int:
    return int.from_bytes(hashlib.blake2b(row.digest + f"{seed}/{file}/{row.line}".encode(), digest_size=8).digest())


@dataclass(frozen=True, slots=True)
class Piece:
    """One sequence for the model."""

    ids: tuple[int, ...]
    skip: int
    """Leading tokens whose activations are not kept: the first, which is an attention sink, or more."""


def pack(model: LanguageModel, rows: Iterable[Row], *, context_tokens: int = 256) -> Iterator[Piece]:
    """Rows as sequences of at most `context_tokens` tokens; long ones are cut, short ones are never joined.

    Chats go through the model's template, nothing added for an answer to come. What the template writes before every chat is
    kept of one chat in 16 only: its activations are the same each time.

    Raises:
        DataError: sequences too short or too long for the model, or a chat for a model without a chat template.
    """
    if not 2 <= context_tokens <= model.context_tokens:
        raise DataError(
            f"context_tokens must lie between 2 and the {model.context_tokens} of {model.name}, not {context_tokens}"
        )
    opening = _opening(model)
    for row in rows:
        is_text = isinstance(row.content, str)
        ids = _tokens(model, row)
        # Where the tokenizer begins each text with a token of its own, later pieces of the text get it too.
        begin = ids[:1] if is_text and ids[:1] == [model.tokenizer.bos_token_id] else []
        is_whole = is_text or row.digest[0] % _WHOLE_CHATS == 0
        skip = 1 if is_whole else max(1, in_common(ids, opening))
        while len(ids) > 1:
            piece, rest = ids[:context_tokens], ids[context_tokens:]
            if len(piece) > skip:
                yield Piece(tuple(piece), skip)
            ids, skip = [*begin, *rest] if rest else [], 1


def _tokens(model: LanguageModel, row: Row) -> list[int]:
    """Token ids of a row; none where the model's template refuses the chat, which is logged."""
    from jinja2 import TemplateError

    if isinstance(row.content, str):
        return list(model.tokenizer(row.content, verbose=False)["input_ids"])
    if not model.is_chat:
        raise DataError(f"{row.path}, line {row.line}: {model.name} has no chat template; give it texts, not chats")
    try:
        text = model.render(row.content, answer=False)
    except (RequestError, TemplateError) as error:
        _log.warning("%s, line %d is left out: %s", row.path, row.line, error)
        return []
    return list(model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _opening(model: LanguageModel) -> list[int]:
    """Tokens that the template writes before every chat that has no system prompt of its own."""
    if not model.is_chat:
        return []
    texts = [model.render([{"role": "user", "content": text}], answer=False) for text in "01"]
    one, other = (list(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    return one[: in_common(one, other)]
