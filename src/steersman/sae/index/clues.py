"""The grammar of labels made from contexts: written, read back, and looked for in a text.

    label    := clues ("; " clues)*        any of them explains the feature; the one that explains most comes first
    clues    := what [" " where] | where   where there are two, both hold
    what     := quoted (", " quoted)*      fires on these words, or parts of words: "un…", "…ing"
              | "after " quoted (...)      fires after them
              | KIND                       numbers, line breaks, capitalised words ...: `places.KINDS`
    where    := "about " word (", " word)*             near these words, in any form
              | ["text "] "in " PLACE                  French, code, lists ...: `places.PLACES`
    or       "various: " quoted (...)      the contexts have nothing in common; its strongest tokens

Quoted is literal, everything else is a clue. A quoted word without capitals stands for any case. Knows nothing of features.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from steersman.sae.index.languages import little_words
from steersman.sae.index.passages import ChatTags, find_literal, folded
from steersman.sae.index.places import KINDS, PLACES

ClueKind = Literal["words", "after", "kind", "about", "in", "various"]

_QUOTED = r"""(?:"[^"]+"|'[^']+')"""
_LIST = rf"{_QUOTED}(?:, {_QUOTED})*"
_TOPIC = r"[^\W\d_]+(?:, [^\W\d_]+)*"
_ALTERNATIVE = re.compile(
    rf"(?:(?P<lead>after |various: )?(?P<quoted>{_LIST})|(?P<kind>{'|'.join(KINDS)}))?"
    rf"(?:(?:^| )about (?P<about>{_TOPIC})|(?:^text| )?(?:^| )in (?P<place>{'|'.join(map(re.escape, PLACES))}))?"
)
_SPLIT = re.compile(rf"((?:{_QUOTED}|[^;\"'])+)(?:; |$)")
_WORD = re.compile(r"[^\W\d_]{3,}")
_ENDINGS = (
    "ations",
    "ation",
    "ingly",
    "ments",
    "ment",
    "ings",
    "ness",
    "ing",
    "ers",
    "ies",
    "ied",
    "est",
    "ed",
    "er",
    "es",
    "ly",
    "s",
)


@dataclass(frozen=True, slots=True)
class Clue:
    """One thing that a label says."""

    kind: ClueKind
    words: tuple[str, ...]
    """Literals, topic words, or the name of a kind or place."""

    def __str__(self) -> str:
        if self.kind in ("words", "after", "various"):
            lead = {"words": "", "after": "after ", "various": "various: "}[self.kind]
            return lead + ", ".join(map(quote, self.words))
        return {"kind": "", "about": "about ", "in": "in "}[self.kind] + ", ".join(self.words)


Clues = tuple[Clue, ...]
"""One or two clues that hold together."""


def quote(literal: str) -> str:
    """A literal as a label writes it."""
    return f"'{literal}'" if '"' in literal else f'"{literal}"'


def can_quote(literal: str) -> bool:
    """Whether a label can hold a literal."""
    return bool(literal) and literal.isprintable() and not ('"' in literal and "'" in literal)


def write_label(alternatives: Sequence[Clues]) -> str:
    """The label that says these clues."""
    parts = []
    for clues in alternatives:
        text = " ".join(map(str, clues))
        parts.append(f"text {text}" if clues[0].kind == "in" else text)
    return "; ".join(parts)


def read_label(label: str) -> tuple[Clues, ...] | None:
    """The clues of a label; None where a person or a language model wrote it in words of their own."""
    parts = _SPLIT.findall(label)
    if not parts or "; ".join(parts) != label:
        return None
    read = [_read_alternative(part) for part in parts]
    return None if any(clues is None for clues in read) else tuple(clues for clues in read if clues)


def _read_alternative(text: str) -> Clues | None:
    match = _ALTERNATIVE.fullmatch(text)
    if not text or match is None:
        return None
    clues = []
    if match["quoted"]:
        lead = (match["lead"] or "words").strip(" :")
        words = tuple(found[1:-1] for found in re.findall(_QUOTED, match["quoted"]))
        clues.append(Clue(lead, words))  # type: ignore[arg-type]
    if match["kind"]:
        clues.append(Clue("kind", (match["kind"],)))
    if match["about"]:
        clues.append(Clue("about", tuple(match["about"].split(", "))))
    if match["place"]:
        clues.append(Clue("in", (match["place"],)))
    return tuple(clues) or None


def free_clues(label: str) -> tuple[Clues, ...]:
    """What can be looked for in a label of any wording: what it quotes, and its other words as a topic."""
    quoted = tuple(found[1:-1] for found in re.findall(_QUOTED, label))
    topic = tuple(word for _, word in topic_words(re.sub(_QUOTED, " ", label)))
    found: list[Clues] = [(Clue("words", quoted),)] if quoted else []
    return (*found, (Clue("about", topic),)) if topic else tuple(found)


@dataclass(frozen=True, slots=True)
class Searched:
    """A text made ready to be searched for clues."""

    text: str
    lower: str
    stems: frozenset[str]
    tags: ChatTags

    @classmethod
    def of(cls, text: str, tags: ChatTags) -> Searched:
        """Fold and stem a text once."""
        return cls(text, folded(text), frozenset(each for each, _ in topic_words(text, tags)), tags)

    def holds(self, clue: Clue) -> bool:
        """Whether the text shows what one clue says."""
        match clue.kind:
            case "words" | "various":
                return any(True for word in clue.words for _ in find_literal(self.text, self.lower, word))
            case "after":
                ends = (at + len(word) for word in clue.words for at in find_literal(self.text, self.lower, word))
                return any(self.text[end:].strip() for end in ends)
            case "about":
                return any(stem(word) in self.stems for word in clue.words)
            case "kind" | "in":
                return (KINDS if clue.kind == "kind" else PLACES)[clue.words[0]](self.text, self.tags)


def topic_words(text: str, tags: ChatTags | None = None) -> list[tuple[str, str]]:
    """Words of a text that can name a topic, as pairs of stem and word: no little words, no tags of a chat."""
    for tag in (*tags.openings, tags.end) if tags else ():
        text = text.replace(tag, "\n") if tag else text
    little = little_words()
    words = (word.lower() for word in _WORD.findall(text))
    return [(stem(word), word) for word in words if word not in little]


def stem(word: str) -> str:
    """A word without its commonest English endings, the same for its commonest forms."""
    lower = word.lower()
    ending = next((end for end in _ENDINGS if lower.endswith(end) and len(lower) - len(end) >= 3), "")
    root = lower[: len(lower) - len(ending)].rstrip("eiy")
    if len(root) > 3 and root[-1] == root[-2]:
        root = root[:-1]
    return root if len(root) >= 3 else lower
