"""Chats that the model answers itself, to train on: what its residual stream holds while it writes is what steering meets.

Knows nothing of how answers are made: a function that answers prompts is handed in. The file grows batch by batch; the same
call goes on where an interrupt left it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from steersman.errors import DataError
from steersman.facts import fact
from steersman.files import storage_errors
from steersman.models.language_model import LanguageModel, Message
from steersman.sae.corpus import Corpus
from steersman.sae.texts import Row

KIND = "on_policy"
"""`kind` of the rows that are written."""

Answer = Callable[[Sequence[Sequence[Message]]], Sequence[str]]
"""The answers to some chats, one each, in order."""


@fact
class OnPolicySettings:
    """How much is written, and to which prompts."""

    tokens: int
    """Of answers; stop at the batch that completes this many."""
    max_prompt_tokens: int = 192
    """Longer prompts are left out."""
    batch_chats: int = 256
    """Answered at once, and written at once: what an interrupt loses at most."""

    def __post_init__(self) -> None:
        for name in ("tokens", "max_prompt_tokens", "batch_chats"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} must be 1 or more, not {getattr(self, name)}")


@fact
class OnPolicyProgress:
    """Where the writing stands."""

    tokens: int
    total_tokens: int
    chats: int


def write_chats(
    model: LanguageModel,
    corpus: Corpus,
    path: Path,
    answer: Answer,
    settings: OnPolicySettings,
    progress: Callable[[OnPolicyProgress], None] | None = None,
) -> OnPolicyProgress:
    """Answer the prompts of the corpus's training chats and keep prompt and answer as rows of `path` (JSONL).

    A prompt is a chat up to its first answer. Ends early where the prompts do; empty answers are counted as prompts used,
    and not written as text.

    Args:
        model: whose template and tokenizer count.
        corpus: where the prompts come from; its held-out chats are not asked.
        path: of the rows; what an earlier call wrote there is gone on from.
        answer: writes the answers.
        settings: how much.
        progress: called after every batch.

    Raises:
        DataError: the corpus holds no chat that fits, or the file holds something else.
        StorageError: the disk refused; whole rows are kept.
    """
    written, tokens = _resume(model, path)
    prompts = itertools.islice(_prompts(model, corpus, settings.max_prompt_tokens), written, None)
    now = OnPolicyProgress(tokens=tokens, total_tokens=settings.tokens, chats=written)
    while now.tokens < settings.tokens and (batch := list(itertools.islice(prompts, settings.batch_chats))):
        answers = answer(batch)
        rows = [[*chat, Message(role="assistant", content=text)] for chat, text in zip(batch, answers, strict=True)]
        lines = [json.dumps({"kind": KIND, "messages": row}, ensure_ascii=False) + "\n" for row in rows]
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
        tokens = now.tokens + sum(_count(model, text) for text in answers)
        now = OnPolicyProgress(tokens=tokens, total_tokens=settings.tokens, chats=now.chats + len(batch))
        if progress is not None:
            progress(now)
    if not now.chats:
        raise DataError(
            "the texts hold no chat with a question that could be answered; give some, or leave on-policy text out"
        )
    return now


def _prompts(model: LanguageModel, corpus: Corpus, max_tokens: int) -> Iterator[tuple[Message, ...]]:
    """Every chat of the training side up to its first answer, each once."""
    seen: set[str] = set()
    for row in corpus.rows():
        chat = _question(row)
        if not chat or chat[-1]["content"] in seen:
            continue
        seen.add(chat[-1]["content"])
        if _count(model, "".join(message["content"] for message in chat)) <= max_tokens:
            yield chat


def _question(row: Row) -> tuple[Message, ...]:
    if isinstance(row.content, str):
        return ()
    chat = tuple(itertools.takewhile(lambda message: message["role"] != "assistant", row.content))
    return chat if chat and chat[-1]["role"] == "user" and chat[-1]["content"].strip() else ()


def _count(model: LanguageModel, text: str) -> int:
    return len(model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _resume(model: LanguageModel, path: Path) -> tuple[int, int]:
    """Rows that are whole and the tokens of their answers; half a row at the end is cut off."""
    if not path.exists():
        return 0, 0
    tokens = rows = whole_bytes = 0
    with storage_errors(path), path.open("r+b") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                tokens += _count(model, json.loads(line)["messages"][-1]["content"])
            except (ValueError, LookupError, TypeError) as error:
                raise DataError(
                    f"{path}, line {rows + 1}: not a chat that was written here; move the file away"
                ) from error
            rows += 1
            whole_bytes += len(line)
        file.truncate(whole_bytes)
    return rows, tokens
