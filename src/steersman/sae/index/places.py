"""What kinds of token there are and what kinds of text they stand in, each told from the text alone.

Knows nothing of features or activations, so that the same tests serve who writes a label and who judges it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from steersman.sae.index.languages import LANGUAGES, is_foreign, language
from steersman.sae.index.passages import ChatTags, word_at

Test = Callable[[str, ChatTags], bool]

_YEAR = re.compile(r"(?<!\d)(1[5-9]|20)\d\d(?!\d)")
_NUMBER = re.compile(r"\d")
_CAPITALISED = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+")
_CAPITALS = re.compile(r"\b[A-Z]{2,}\b")
_LINE_BREAK = re.compile(r"\n")
_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE = re.compile(r"[.!?][\"”’)]*\s+[\"“‘(]*[A-Z]")
_LONG_WORD = re.compile(r"[^\W\d_]{10,}")

_PATTERNS = {
    "lists": r"(^|\n)\s*([-*•+]|\d+[.)]|\(?[a-hA-H][.)])\s",
    "headings": r"(^|\n)\s*(#{1,6} |=+ .+ =+)|(^|\n)\*\*[^*\n]+\*\*\s*(\n|$)",
    "tables": r"(?<!<)\|[^|\n]+\|(?!>)",
    "quotations": r"[“\"][^”\"\n]{2,}|‘\w",
    "URLs": r"https?:|www\.|\w\.(com|org|net|io|gov|edu|wiki)\b|/wiki/",
    "maths": r"\d\s*[=+*/×÷<>^]|[=+*/×÷<>^]\s*\$?\d|\\(frac|sum|cdot|times|sqrt|left|begin)",
    "markup": r"</?[a-z]\w*[ />]",
    "brackets": r"[(\[][^)\]\n]*",
    "questions": r"\?",
    "exclamations": r"!",
    "money": r"[$€£]\s?\d|\b(dollars?|euros?|cents?)\b",
    "Markdown": r"\*\*|`|\]\(",
    "dialogue": r"(^|\n)\s*(User|System|Assistant|Person|[A-Z][a-z]+)( \d)?: ",
    "dates": r"(January|February|March|April|May|June|July|August|September|October|November|December)\s+\d|"
    r"\d (January|February|March|April|May|June|July|August|September|October|November|December)",
    "the first person": r"\b(I|[Mm]y|I'm|I've)\b",
    "speech": r"[,.!?][\"”’]\s+(said|asked|he|she|I|replied|cried|answered)\b|\b(said|asked|replied|cried|answered)\b",
}
_CODE = re.compile(
    r"[;{}]\s*(\n|$)|[=!<>+-]=|->|=>|::|\w\(|\)\s*[;{:]|\w\.\w+\(|\[\w+\]|"
    r"\b(def|return|import|const|var|let|function|class|public|void|int|self|SELECT|FROM|WHERE|print|elif|null|None)\b|"
    r"\b[a-z]+_[a-z]+|\b[a-z]+[A-Z][a-z]+|\{\{|--\w|^\s*(//|#include)|```"
)
_CODE_SIGNS = 3
_SHORT_LINES = 3
_NEAR = 80


def _found(pattern: re.Pattern[str], text: str, tags: ChatTags) -> bool:
    return pattern.search(text) is not None


def _in_language(name: str, text: str, tags: ChatTags) -> bool:
    return language(text) == name


def _foreign(text: str, tags: ChatTags) -> bool:
    return is_foreign(text)


def _code(text: str, tags: ChatTags) -> bool:
    return len(_CODE.findall(text)) >= _CODE_SIGNS


def _short_lines(text: str, tags: ChatTags) -> bool:
    return text.count("\n") >= _SHORT_LINES


def _titles(text: str, tags: ChatTags) -> bool:
    """Most words begin with a capital."""
    words = re.findall(r"[^\W\d_]{3,}", text)
    return len(words) >= 4 and sum(word[0].isupper() for word in words) >= 0.5 * len(words)


def _opens(which: str, text: str, tags: ChatTags) -> bool:
    """A turn opens in the text."""
    tag: str = getattr(tags, which)
    return bool(tag) and tag.strip() in text


def _text_start(text: str, tags: ChatTags) -> bool:
    """Begins as texts begin: without a space, with a capital or a mark of a heading."""
    return bool(re.match(r"[A-Z#\"“*]", text)) and not _opens("question", text, tags)


TAG_KINDS: dict[str, Test] = {
    "ends of turns": partial(_opens, "end"),
    "assistant tags": partial(_opens, "answer"),
    "user tags": partial(_opens, "question"),
}
"""Those of `KINDS` that a chat template writes."""

POSITIONS: dict[str, Test] = {
    "first words of an answer": partial(_opens, "answer"),
    "first words of a question": partial(_opens, "question"),
    "first words of a text": _text_start,
}
"""Those of `PLACES` that are told by where they begin."""

KINDS: dict[str, Test] = {
    "years": partial(_found, _YEAR),
    "numbers": partial(_found, _NUMBER),
    "later digits of numbers": partial(_found, re.compile(r"\d\d")),
    "spaces before numbers": partial(_found, re.compile(r"[^\S\n]\d")),
    "capitalised words": partial(_found, _CAPITALISED),
    "words in capitals": partial(_found, _CAPITALS),
    "empty lines": partial(_found, _PARAGRAPH),
    "line breaks": partial(_found, _LINE_BREAK),
    "first words of lines": partial(_found, re.compile(r"\n[ \t]*[^\W\d_]")),
    "first words of sentences": partial(_found, _SENTENCE),
    "parts of long words": partial(_found, _LONG_WORD),
    **TAG_KINDS,
}
"""Kinds of token: whether a text holds one."""

PLACES: dict[str, Test] = {
    **{name: partial(_in_language, name) for name in LANGUAGES},
    "a foreign language": _foreign,
    "code": _code,
    **{name: partial(_found, re.compile(pattern)) for name, pattern in _PATTERNS.items()},
    "short lines": _short_lines,
    "titles and names": _titles,
    **POSITIONS,
}
"""Kinds of text that a token can stand in: whether a text is, or holds, one."""


def is_kind(name: str, text: str, start: int, end: int, tags: ChatTags) -> bool:
    """Whether the token `text[start:end]` is of a kind."""
    token, before = text[start:end], text[:start]
    bare = token.strip()
    grown = word_at(text, inner := start + token.find(bare), inner + len(bare))
    word = text[slice(*grown)]
    match name:
        case "years":
            return any(match.start() < end and match.end() > start for match in _YEAR.finditer(text))
        case "numbers":
            return bool(_NUMBER.search(token))
        case "later digits of numbers":
            return bare[:1].isdigit() and not token[0].isspace() and before[-1:].isdigit()
        case "spaces before numbers":
            return token.isspace() and text[end : end + 1].isdigit()
        case "capitalised words":
            return word[:1].isupper() and word[1:].islower() and bool(re.search(r"[\w,]\s+$", text[: grown[0]]))
        case "words in capitals":
            return word.isupper() and len(word) >= 2
        case "line breaks":
            return "\n" in token
        case "empty lines":
            return "\n" in token and (token.count("\n") > 1 or before.endswith("\n"))
        case "first words of lines":
            return bare[:1].isalpha() and bool(re.search(r"\n[ \t]*$", before))
        case "first words of sentences":
            return bare[:1].isupper() and bool(re.search(r"[.!?][\"”’)]*\s*[\"“‘(]*$", before))
        case "parts of long words":
            return bare.isalpha() and bool(re.search(r"[^\W\d_]{3,}$", before)) and not token[0].isspace()
        case "ends of turns":
            return bool(tags.end) and (bare == tags.end or (not bare and before.rstrip().endswith(tags.end)))
        case "assistant tags" | "user tags":
            tag = tags.answer if name == "assistant tags" else tags.question
            return bool(tag) and _inside(tag, text, start, end)
        case _:
            return False


def stands_in(name: str, text: str, start: int, end: int, tags: ChatTags) -> bool:
    """Whether the token `text[start:end]` can stand in a place that the text holds: only openings ask where it is."""
    match name:
        case "first words of an answer" | "first words of a question":
            tag = tags.answer if name.endswith("answer") else tags.question
            at = text.rfind(tag, 0, end) if tag else -1
            return at >= 0 and 0 <= start - (at + len(tag)) < _NEAR
        case "first words of a text":
            return start < _NEAR // 2
        case _:
            return True


def _inside(tag: str, text: str, start: int, end: int) -> bool:
    """Whether a stretch lies in a tag, its surrounding white space aside."""
    at = text.find(tag)
    while at >= 0:
        if at <= start and end <= at + len(tag):
            return True
        at = text.find(tag, at + 1)
    return False
