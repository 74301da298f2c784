"""How often clues occur in random windows, whatever the feature. Knows nothing of features."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from steersman.sae.index.clues import topic_words
from steersman.sae.index.passages import ChatTags, find_literal, folded
from steersman.sae.index.places import KINDS, PLACES

_GAP = "\0"


@dataclass(frozen=True)
class Background:
    """Random windows, made ready to say in which of them a clue holds. A set of windows is an integer, bit `i` for window `i`."""

    texts: tuple[str, ...]
    tags: ChatTags
    stems: dict[str, int] = field(init=False)
    """In which windows each topic word occurs, by its stem."""
    tests: dict[str, int] = field(init=False)
    """In which windows each kind and place of `places` is found."""

    def __post_init__(self) -> None:
        stems: dict[str, int] = defaultdict(int)
        tests: dict[str, int] = dict.fromkeys((*KINDS, *PLACES), 0)
        for index, text in enumerate(self.texts):
            for stem, _ in topic_words(text, self.tags):
                stems[stem] |= 1 << index
            for name, test in (*KINDS.items(), *PLACES.items()):
                tests[name] |= test(text, self.tags) << index
        joined = _GAP.join(self.texts)
        starts = list(itertools.accumulate((len(text) + 1 for text in self.texts), initial=0))
        for name, value in (("stems", dict(stems)), ("tests", tests), ("_joined", (joined, folded(joined), starts))):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_literals", {})

    def __len__(self) -> int:
        return len(self.texts)

    def literal(self, literal: str) -> int:
        """The windows that hold a literal, as `find_literal` finds it."""
        known: dict[str, int] = self.__dict__["_literals"]
        if literal not in known:
            joined, lower, starts = self.__dict__["_joined"]
            found = 0
            for at in find_literal(joined, lower, literal):
                found |= 1 << (bisect_right(starts, at) - 1)
            known[literal] = found
        return known[literal]

    def quiet(self, fires: Sequence[bool] | None) -> int:
        """The windows where a feature does not fire; all where it is not known."""
        everything = (1 << len(self)) - 1
        return everything if fires is None else everything & ~sum(1 << i for i, fired in enumerate(fires) if fired)
