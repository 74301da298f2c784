"""Log-probabilities of written tokens in the forms of OpenAI's chats and completions. Knows nothing of requests."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from steersman.engine.request import TokenLogprob
from steersman.models.language_model import LanguageModel

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_REPLACEMENT = "�"
_LEAST = -9999.0
"""JSON has no infinity."""


class TokenTexts:
    """What single tokens of one model say."""

    def __init__(self, model: LanguageModel) -> None:
        """Prepare for a model; tokens are looked up when they are asked for."""
        self._model = model
        self._look: Callable[[int], tuple[str, tuple[int, ...] | None]] = cache(self._found)

    def written(self, logprobs: Sequence[TokenLogprob]) -> list[TokenLogprob]:
        """All but the end token, which is no part of the text."""
        return [item for item in logprobs if item.token_id not in self._model.eos_ids]

    def chat(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The `logprobs` of a chat's choice."""
        content = [
            {**self._entry(item.token_id, item.logprob), "top_logprobs": [self._entry(*each) for each in item.top]}
            for item in self.written(logprobs)
        ]
        return {"content": content, "refusal": None}

    def completion(self, logprobs: Sequence[TokenLogprob], offset: int = 0) -> tuple[dict[str, Any], int]:
        """The `logprobs` of a completion's choice, and where the next token would stand.

        Args:
            logprobs: of the tokens.
            offset: characters of the answer before them.
        """
        written = self.written(logprobs)
        offsets = []
        for item in written:
            offsets.append(offset)
            offset += len(self._model.decode([item.token_id]))
        told = {
            "tokens": [self._look(item.token_id)[0] for item in written],
            "token_logprobs": [_finite(item.logprob) for item in written],
            "top_logprobs": [{self._look(token)[0]: _finite(value) for token, value in item.top} for item in written],
            "text_offset": offsets,
        }
        return told, offset

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text, data = self._look(token)
        return {"token": text, "logprob": _finite(logprob), "bytes": None if data is None else list(data)}

    def _found(self, token: int) -> tuple[str, tuple[int, ...] | None]:
        """Text and bytes of a token; for one that holds part of a character, its bytes as OpenAI writes them."""
        # Some vocabularies are padded: there are tokens without a name.
        text, raw = self._model.decode([token]), self._model.tokenizer.convert_ids_to_tokens(token) or ""
        if raw.startswith("▁") and not text.startswith(" "):
            text = f" {text}"  # Some tokenizers drop the space at the beginning of a text.
        if _REPLACEMENT not in text:
            text = text or raw  # A special token is shown by its name.
            return text, tuple(text.encode())
        data = _raw_bytes(raw)
        if data is None:
            return text, None
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data), tuple(data)


def _raw_bytes(raw: str) -> bytes | None:
    """The bytes of a token from its name in the vocabulary; None where that does not say."""
    if match := _BYTE.fullmatch(raw):
        return bytes([int(match[1], 16)])
    known = _byte_names()
    return bytes(known[char] for char in raw) if all(char in known for char in raw) else None


@cache
def _byte_names() -> dict[str, int]:
    """How byte-level vocabularies write bytes: printable ones as they are, the others as letters from 256 on."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
