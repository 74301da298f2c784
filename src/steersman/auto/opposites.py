"""Words that exclude each other, and descriptions that ask for both."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

_OPPOSITES = (
    ("cheerful", "sad"), ("happy", "sad"), ("cheerful", "grumpy"), ("formal", "casual"), ("formal", "informal"),
    ("concise", "verbose"), ("short", "long"), ("brief", "long"), ("honest", "dishonest"), ("polite", "rude"),
    ("optimistic", "pessimistic"), ("confident", "shy"), ("confident", "unsure"), ("humble", "arrogant"), ("calm", "angry"),
    ("calm", "excited"), ("kind", "cruel"), ("serious", "funny"), ("simple", "complicated"), ("enthusiastic", "bored"),
    ("warm", "cold"), ("loud", "quiet"), ("friendly", "hostile"), ("sincere", "sarcastic"), ("modest", "boastful"),
)  # fmt: skip
_NEGATIONS = ("un", "in", "im", "ir", "dis", "non")
_NOT = {"not", "never", "non", "don't", "don’t"}
_JOINTS = {"and", "but", "yet", "while", "also", "&", ","}
_BETWEEN = _NOT | _JOINTS | {
    "a", "also", "always", "answer", "as", "at", "be", "being", "both", "do", "equally", "extremely", "quite", "same", "sound",
    "still", "talk", "the", "time", "too", "very", "well", "write",
}  # fmt: skip
_BEHIND = {
    "about", "all", "always", "answers", "as", "at", "fashion", "in", "language", "manner", "style", "tone", "together", "too",
    "voice", "way", "when", "whenever", "with",
}  # fmt: skip
"""What may follow the second word where both say how to behave: not what "formal and casual clothes" goes on with."""
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|[&,.;:!?]")


def exclude_each_other(one: str, other: str) -> bool:
    """Whether two words, in small letters, are known as opposites."""
    pairs = ((one, other), (other, one))
    prefixed = any(len(word) > 3 and long in {no + word for no in _NEGATIONS} for word, long in pairs)
    return prefixed or any(pair in _OPPOSITES for pair in pairs)


def opposites_among(words: Sequence[str]) -> list[tuple[str, str]]:
    """All pairs of opposites among the words of a name, in small letters; a word and its denial are one too."""
    found = [pair for pair in itertools.combinations(dict.fromkeys(words), 2) if exclude_each_other(*pair)]
    denied = {after for word, after in itertools.pairwise(words) if word in _NOT}
    return found + [(word, f"not {word}") for word in sorted(denied) if words.count(word) > 1]


def contradiction(sentence: str) -> tuple[str, str] | None:
    """Two things that a sentence asks for at once although they exclude each other, such as "be formal and casual".

    Opposites count only where they are joined and say how to behave: "talk of happy and of sad days", "explain simple and
    complicated words" and "be kind, not cruel" contradict nothing. What is not found may contradict itself all the same.
    """
    words = _WORD.findall(sentence.lower())
    for at, first in enumerate(words):
        stretch = list(itertools.takewhile(_BETWEEN.__contains__, words[at + 1 :]))
        end = at + 1 + len(stretch)
        if end == len(words) or not _JOINTS & set(stretch) or not _ends(words[end + 1 :]):
            continue
        second, is_denied = words[end], bool(_NOT & set(stretch))
        was_denied = bool(_NOT & set(itertools.takewhile((_BETWEEN - _JOINTS).__contains__, reversed(words[:at]))))
        if not is_denied and not was_denied and exclude_each_other(first, second):
            return first, second
        if is_denied != was_denied and first == second and len(first) > 2:
            return first, f"not {second}"
    return None


def _ends(behind: Sequence[str]) -> bool:
    return not behind or not behind[0][0].isalpha() or behind[0] in _BEHIND | _JOINTS
