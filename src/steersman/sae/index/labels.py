"""Label a feature from the stretches of text that it fires in: which clues do they share that random text does not?

Clues are gathered at the tokens that fire (the word or part of it, what stands before it, what kind of token it is) and
from the text around them (topic, language, format, position). Each is weighed by the share of the contexts that it explains
less the share of random windows where it holds anyway; the best one to three make the label. Rules only: the same contexts
give the same label. Knows nothing of the SAE or of scores. `clues` documents how labels are written.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from steersman.sae.index.background import Background
from steersman.sae.index.clues import Clue, ClueKind, Clues, can_quote, topic_words, write_label
from steersman.sae.index.facts import Contexts
from steersman.sae.index.passages import ChatTags, Passage, Reader, folded, word_at
from steersman.sae.index.places import KINDS, PLACES, POSITIONS, TAG_KINDS, is_kind, stands_in

MAX_CHARS = 60
"""Length of a label."""

_STRONG = 0.5  # of the window's largest activation: tokens that count as firing
_MAX_LITERAL = 24
_MAX_WORDS = 6
_SEEN_ONCE = 1.0  # of a context: the one that brought a word up is no evidence for it (overfitting)
_WORD_COST = 0.005
_COST: dict[ClueKind, float] = {"words": 0.0, "kind": 0.08, "after": 0.04, "about": 0.08, "in": 0.08}
# Positions say more than that a text holds brackets; that a word is long says less than anything.
_COST_OF = {**dict.fromkeys((*POSITIONS, *TAG_KINDS), 0.02), "parts of long words": 0.2}
_PAIR_COST = 0.03
_MIN_GAIN = 0.06
_MIN_WORTH = 0.18
_MAX_RATE = 0.08  # of random windows: a topic word is rarer
_KIND_SHARE = 0.6
_BEFORE = re.compile(r"(\w+|[^\w\s]+)\s?$")
_TWO_BEFORE = re.compile(r"(?<!\S)(\S+ \S+)\s?$")


class Found(NamedTuple):
    """Clues and where they hold."""

    clues: Clues
    contexts: int
    """Bit `i`: they hold in context `i`."""
    random: int
    """Bit `i`: they hold in random window `i`."""
    cost: float


def label_contexts(
    contexts: Contexts, reader: Reader, background: Background, fires: Sequence[bool] | None = None
) -> str | None:
    """Say what a feature fires on.

    Args:
        contexts: stretches where it fires: the strongest, and better still some from its whole range.
        reader: of the model's tokenizer.
        background: random windows of the same width and texts.
        fires: in which of them the feature fires.

    Returns:
        A label of at most `MAX_CHARS` characters; None where it never fires.
    """
    passages = [passage for passage in reader.passages(contexts) if passage.height > 0]
    if not passages:
        return None
    scene = _Scene.of(passages, reader, background, fires)
    found = sorted(scene.candidates(), key=scene.worth, reverse=True)
    if not found or scene.worth(found[0]) < _MIN_WORTH:
        return _fitted([scene.last_resort()])
    chosen = [found[0]]
    while len(chosen) < 3:
        best = max(found, key=lambda each: scene.worth(*chosen, each))
        if scene.worth(*chosen, best) - scene.worth(*chosen) < _MIN_GAIN:
            break
        chosen.append(best)
    return _fitted([each.clues for each in chosen])


def _fitted(alternatives: Sequence[Clues]) -> str:
    """The label, the least of its words left out until it fits."""
    kept = [list(clues) for clues in alternatives]
    while len(label := write_label([tuple(clues) for clues in kept])) > MAX_CHARS:
        longest = max(kept[-1], key=lambda clue: len(clue.words))
        if len(longest.words) > 1:
            kept[-1][kept[-1].index(longest)] = Clue(longest.kind, longest.words[:-1])
        elif len(kept) > 1:
            del kept[-1]
        else:
            return label[: MAX_CHARS - 1] + "…"
    return label


@dataclass(frozen=True)
class _Scene:
    """One feature's contexts beside the random windows."""

    passages: Sequence[Passage]
    weights: tuple[float, ...]
    """Of the contexts; they sum to 1."""
    peaks: tuple[tuple[int, int], ...]
    """Start and end of each context's strongest token."""
    reader: Reader
    background: Background
    quiet: int
    """The random windows where the feature does not fire."""

    @classmethod
    def of(
        cls, passages: Sequence[Passage], reader: Reader, background: Background, fires: Sequence[bool] | None
    ) -> _Scene:
        # Between counting contexts alike and counting their activation: weak ones are many, strong ones are clear.
        heights = [passage.height**0.5 for passage in passages]
        weights = tuple(height / sum(heights) for height in heights)
        peaks = tuple(
            (passage.bounds[peak], passage.bounds[peak + 1]) for passage in passages for peak in [passage.peak]
        )
        return cls(passages, weights, peaks, reader, background, background.quiet(fires))

    def share(self, contexts: int) -> float:
        """Weight of a set of contexts."""
        return sum(weight for index, weight in enumerate(self.weights) if contexts >> index & 1)

    def rate(self, random: int) -> float:
        """Share of the random windows, of those where the feature does not fire."""
        return (random & self.quiet).bit_count() / max(self.quiet.bit_count(), 1)

    def worth(self, *found: Found) -> float:
        """What is explained by any of these, less what is so anyway, less what they cost."""
        contexts = random = 0
        for each in found:
            contexts |= each.contexts
            random |= each.random
        return self.share(contexts) - self.rate(random) - sum(each.cost for each in found)

    # --- candidates

    def candidates(self) -> list[Found]:
        """Everything that the contexts may have in common."""
        whats = [
            *self._sets("words", self._literals(), self.background.literal),
            *self._sets("after", self._befores(), self.background.literal),
            *self._kinds(),
        ]
        topic = self._topic()
        wheres = [*topic, *self._places()]
        wheres.sort(key=self.worth, reverse=True)
        pairs = [
            Found((*what.clues, *where.clues), what.contexts & where.contexts, what.random & where.random,
                  what.cost + where.cost + _PAIR_COST)
            for what in sorted(whats, key=self.worth, reverse=True)[:4]
            for where in {id(each): each for each in (*topic, *wheres[:4])}.values()
        ]  # fmt: skip
        return [*whats, *wheres, *pairs]

    def _sets(self, kind: ClueKind, where: Mapping[str, int], random: Callable[[str], int]) -> list[Found]:
        """The set of words that explains most, taken greedily, and its beginnings."""
        # Words of a topic are many and chance meetings common: they have to be seen once more.
        least = min(1 + (len(self.passages) > 3) + (kind == "about" and len(self.passages) > 10), 3)
        masks = {word: (mask, random(word)) for word, mask in where.items() if mask.bit_count() >= least}
        chosen: list[str] = []
        result: list[Found] = []
        contexts = anyway = 0
        cost = _COST[kind]
        while len(chosen) < _MAX_WORDS and masks:
            unit = _SEEN_ONCE / len(self.passages) if least > 1 else 0.0
            gains = {
                word: self.share(contexts | mask) - self.rate(anyway | rate) for word, (mask, rate) in masks.items()
            }
            best = max(gains, key=lambda word: (round(gains[word], 6), -word.count("…"), len(word), word))
            if gains[best] - (self.share(contexts) - self.rate(anyway)) < unit + _WORD_COST:
                break
            mask, rate = masks.pop(best)
            contexts, anyway, cost = contexts | mask, anyway | rate, cost + unit + _WORD_COST
            chosen.append(best)
            result.append(Found((Clue(kind, tuple(chosen)),), contexts, anyway, cost))
        return result[-1:] + result[:1]

    def _firing(self) -> Iterable[tuple[int, Passage, int, int]]:
        """Context, passage, start and end of the tokens that fire, without white space around them."""
        for index, passage in enumerate(self.passages):
            enough = _STRONG * passage.height
            for token, value in enumerate(passage.activations):
                if value >= enough:
                    text = passage.token(token)
                    bare = text.strip()
                    start = passage.bounds[token] + text.find(bare)
                    if bare:
                        yield index, passage, start, start + len(bare)

    def _literals(self) -> dict[str, int]:
        where: dict[str, int] = defaultdict(int)
        for index, passage, start, end in self._firing():
            for literal in _forms(passage.text, start, end):
                where[literal] |= 1 << index
        return _quotable(where)

    def _befores(self) -> dict[str, int]:
        where: dict[str, int] = defaultdict(int)
        for index, passage, start, end in self._firing():
            before = passage.text[: word_at(passage.text, start, end)[0]]
            for match in (_BEFORE.search(before), _TWO_BEFORE.search(before)):
                if match:
                    where[match[1]] |= 1 << index
        return _quotable(where)

    def _kinds(self) -> list[Found]:
        return self._tested("kind", KINDS, is_kind)

    def _places(self) -> list[Found]:
        def stands(name: str, text: str, start: int, end: int, tags: ChatTags) -> bool:
            return PLACES[name](text, tags) and stands_in(name, text, start, end, tags)

        return self._tested("in", PLACES, stands)

    def _tested(
        self, kind: ClueKind, names: Iterable[str], test: Callable[[str, str, int, int, ChatTags], bool]
    ) -> list[Found]:
        """Each name with the contexts whose strongest token passes the test, if there are any."""
        texts = [(passage.text, *peak) for passage, peak in zip(self.passages, self.peaks, strict=True)]
        found = []
        for name in names:
            contexts = sum(test(name, *where, self.reader.tags) << index for index, where in enumerate(texts))
            if contexts:
                cost = _COST_OF.get(name, _COST[kind]) + _SEEN_ONCE / len(self.passages)
                found.append(Found((Clue(kind, (name,)),), contexts, self.background.tests[name], cost))
        return found

    def _topic(self) -> list[Found]:
        where: dict[str, int] = defaultdict(int)
        shown: dict[str, Counter[str]] = defaultdict(Counter)
        for index, passage in enumerate(self.passages):
            for stem, word in topic_words(passage.text, self.reader.tags):
                where[stem] |= 1 << index
                shown[stem][word] += 1
        stems = self.background.stems
        rare = {stem: mask for stem, mask in where.items() if self.rate(stems.get(stem, 0)) <= _MAX_RATE}
        return [
            found._replace(
                clues=(Clue("about", tuple(shown[stem].most_common(1)[0][0] for stem in found.clues[0].words)),)
            )
            for found in self._sets("about", rare, lambda stem: stems.get(stem, 0))
        ]

    def last_resort(self) -> Clues:
        """What to say where nothing is shared: a kind of token if most are of one, else the strongest tokens."""
        kinds = sorted(self._kinds(), key=lambda each: self.share(each.contexts), reverse=True)
        if kinds and self.share(kinds[0].contexts) >= _KIND_SHARE:
            return kinds[0].clues
        strongest: dict[str, float] = defaultdict(float)
        for _, passage, start, end in self._firing():
            word = passage.text[slice(*word_at(passage.text, start, end))]
            if can_quote(word):
                strongest[word] += passage.height
        words = sorted(strongest, key=lambda word: (-strongest[word], word))[:4]
        return (Clue("various", tuple(words)),) if words else (Clue("kind", ("line breaks",)),)


def _quotable(where: Mapping[str, int]) -> dict[str, int]:
    """Literals that a label can hold, and where; those that occur in several cases without capitals, too."""
    short = {word: mask for word, mask in where.items() if can_quote(word) and len(word) <= _MAX_LITERAL}
    any_case: dict[str, int] = defaultdict(int)
    for word, mask in short.items():
        any_case[folded(word)] |= mask
    exact = {word: mask for word, mask in short.items() if mask == any_case[folded(word)]}
    same = set(map(folded, exact))
    return {**{word: mask for word, mask in any_case.items() if word not in same}, **exact}


def _forms(text: str, start: int, end: int) -> list[str]:
    """How a label can name the token `text[start:end]`: its word, the part of the word it is, or a phrase that it ends."""
    word_start, word_end = word_at(text, start, end)
    piece = "…" * (word_start < start) + text[start:end] + "…" * (word_end > end)
    forms = [text[word_start:word_end]]
    if not (text[start].isdigit() and word_start < start):  # Digits in the middle of a number say nothing.
        forms.append(piece)
    if word_start < start and word_end > end:
        forms.append(text[word_start:end] + "…")
    before = text[:word_start]
    for pattern in (_BEFORE, _TWO_BEFORE):
        match = pattern.search(before)
        if match and before.endswith(" "):
            forms.append(text[match.start(1) : word_end])
    return forms
