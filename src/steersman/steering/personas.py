"""Steer by words: a trait is given as examples of people who have it and who have not, and fitted from how the model sees them.

For every opening and every pair of examples there are two chats that differ in the persona alone and go on with the same words;
a method (LAT by default) fits what differs, at several middle layers. Knows nothing of sets, jobs or HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from itertools import cycle, islice

from pydantic import JsonValue

from steersman.errors import DataError, did_you_mean
from steersman.models.language_model import LanguageModel, Message, Prompt
from steersman.models.residuals import ModelProfile
from steersman.steering.contrast import Read
from steersman.steering.edits import Edit
from steersman.steering.methods import METHODS
from steersman.steering.pairs import Pair
from steersman.steering.recipe import Recipe

LENGTH = 0.25
"""What a trait at 1 adds over all its layers together, in mean residual norms: clearly seen, and at twice as much still sensible
on the bundled model (docs/log.md)."""
MOST_PAIRS = 256
"""Pairs that a trait is fitted from; of more, evenly spaced ones are taken."""
FEW_OPENINGS = 12
"""Fewer openings than these say more of themselves than of the trait: fitted on three, "gloomy" was about command lines."""
_LOWEST, _HIGHEST = 0.25, 0.6
_MOST_LAYERS = 12
_SENTENCE_ENDS = (".", "!", "?", "…", '"', "”")
_SAID = 'Please talk like someone who says things such as: "{example}"'
_BEING = "Please talk the way an extremely {example} person would talk."


def default_openings() -> tuple[str, ...]:
    """The openings that ship: the first words of answers, which say nothing of a persona yet."""
    text = (resources.files("steersman") / "data" / "prompts" / "persona_openings.txt").read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def enough_openings(given: Sequence[str] | None) -> tuple[str, ...]:
    """The openings that were given, and behind them those that ship, where they are fewer than `FEW_OPENINGS`.

    Args:
        given: None: those that ship. Where all of them are empty, there are none, which `persona_pairs` refuses.
    """
    if given is None:
        return default_openings()
    begun = tuple(dict.fromkeys(text.strip() for text in given if text.strip()))
    return begun if not 0 < len(begun) < FEW_OPENINGS else tuple(dict.fromkeys(begun + default_openings()))


def persona_pairs(
    positive: Sequence[str],
    negative: Sequence[str],
    openings: Sequence[str] | None = None,
    *,
    chat: bool = True,
    most: int = MOST_PAIRS,
) -> list[Pair]:
    """Contrast pairs of personas.

    Args:
        positive: examples of the trait, in words ("cheerful", "happy go lucky") or as something that such a person says.
        negative: of its opposite; examples go together in their order, and the shorter list begins again at its end.
        openings: words that both sides go on with; empty ones are passed over. By default `default_openings`.
        chat: chats; False: plain texts, for a model without a chat template.
        most: of more pairs than these, evenly spaced ones are taken.

    Raises:
        DataError: no examples, no openings, one of each, or examples that stand on both sides of the same pair.
    """
    sides = [_cleaned(name, words) for name, words in (("positive", positive), ("negative", negative))]
    begun = [text.strip() for text in (default_openings() if openings is None else openings) if text.strip()]
    if not begun:
        raise DataError("there are no openings to go on with; give at least one that is not empty, or leave them out")
    n = max(map(len, sides))
    personas = list(dict.fromkeys(zip(*(islice(cycle(side), n) for side in sides), strict=True)))
    for one, other in personas:
        if one == other:
            raise DataError(
                f"{one[:60]!r} is a positive and a negative example; an example shows the trait or does not"
            )
    whole = [(one, other, opening) for opening in dict.fromkeys(begun) for one, other in personas]
    if len(whole) < 2:
        raise DataError("one pair of examples and one opening are too few to see a trait; give more of either")
    kept = whole if len(whole) <= most else [whole[place * len(whole) // most] for place in range(most)]
    return [
        Pair(positive=_side(one, opening, chat), negative=_side(other, opening, chat)) for one, other, opening in kept
    ]


def middle_layers(n_layers: int) -> tuple[int, ...]:
    """Layers to steer personas at: from a quarter to six tenths of the way up, twelve at most.

    Zou et al. (arXiv:2310.01405, section 3.1) find that concepts are read best in the middle; below, a vector turns words,
    above, it comes too late to be thought through.
    """
    low = min(round(_LOWEST * n_layers), n_layers - 1)
    high = max(low + 1, min(round(_HIGHEST * n_layers), n_layers))
    n = min(high - low, _MOST_LAYERS)
    return tuple(low + place * (high - low) // n for place in range(n))


def fit_trait(
    model: LanguageModel,
    pairs: Sequence[Pair],
    *,
    profile: ModelProfile,
    name: str,
    method: str = "lat",
    layers: Sequence[int] | None = None,
    length: float = LENGTH,
) -> Recipe:
    """A recipe that shows the trait at strength 1 and its opposite at -1, whatever the trait.

    What a method finds is as long as the two sides happen to lie apart. Here every trait is brought to the same length: its
    layers add `length` mean residual norms together, each in proportion to what was found there. So multipliers mean the same
    for all traits, and sums of them can be reasoned about.

    Args:
        model: the model to read, and the only one that the recipe fits.
        pairs: as `persona_pairs` makes them, or others.
        profile: the model's mean residual norms.
        name: of the recipe.
        method: one of `methods.METHODS`.
        layers: decoder blocks, counted from 0; by default `middle_layers`.
        length: sum of the layers' strengths at 1.

    Raises:
        DataError: an unknown method, or pairs that cannot be read or do not differ.
        ModelError: a layer that the model does not have.
    """
    if method not in METHODS:
        raise DataError(f"unknown method {method!r}; there are {', '.join(METHODS)}{did_you_mean(method, METHODS)}")
    chosen = middle_layers(model.n_layers) if layers is None else tuple(layers)
    read: Read = "answer" if all(not isinstance(pair.positive, str) for pair in pairs) else "last"
    fitted = METHODS[method](model, pairs, profile=profile, layers=chosen, name=name, read=read)
    found = sum(edit.strength for edit in fitted.edits)
    edits: tuple[Edit, ...] = tuple(replace(edit, strength=edit.strength * length / found) for edit in fitted.edits)
    data: dict[str, JsonValue] = {**fitted.data, "length": length, "length_as_found": found}
    return replace(fitted, edits=edits, data=data)


def _cleaned(side: str, examples: Sequence[str]) -> list[str]:
    words = [" ".join(example.split()) for example in examples]
    if not words or not all(words):
        raise DataError(f"the {side} examples are missing, or one of them is empty; give words such as 'cheerful'")
    return words


def _side(example: str, opening: str, chat: bool) -> Prompt:
    """One persona asked for, and the opening as what it answers."""
    asked = (_SAID if example[-1] in _SENTENCE_ENDS else _BEING).format(example=example)
    if not chat:
        return f"{asked}\n\n{opening}"
    return Message(role="user", content=asked), Message(role="assistant", content=opening)
