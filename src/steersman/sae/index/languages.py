"""Which language a short text is in: by its script, then by the little words and letters of the languages we know.

A few words are enough, and no answer is better than a wrong one. Knows nothing of labels.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import itemgetter

_SCRIPTS = (
    ("Japanese", "぀-ヿ"),
    ("Korean", "가-힣ᄀ-ᇿ"),
    ("Chinese", "一-鿿"),
    ("Russian", "Ѐ-ӿ"),
    ("Arabic", "؀-ۿ"),
    ("Hindi", "ऀ-ॿ"),
    ("Greek", "Ͱ-Ͽ"),
    ("Hebrew", "֐-׿"),
    ("Thai", "฀-๿"),
)
_PERSIAN, _UKRAINIAN = re.compile("[پچژگی]"), re.compile("[іїєґ]")
_LITTLE_WORDS = {
    "English": "the of and to is that it was for on are with as his they be at this have from or had by but not what all"
    " were we when your can said there an which she do how their if will up about out many then them these so her him has"
    " he you i my me our would been who more no could than its into only some time other over did just",
    "Spanish": "el la de que y en un una los las del por con para se es no su al lo como más pero sus le ya o este sí porque"
    " esta son entre está cuando muy sin sobre también me hasta hay donde",
    "French": "le la les de des du et un une en que qui est dans pour pas sur avec il elle au ce par plus ne se sont vous je"
    " nous leur ou mais aux cette ses son sa être été fait l d qu c n s",
    "German": "der die das und ist in den von zu mit sich des auf für nicht ein eine als auch es an werden aus er hat dass sie"
    " nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder aber vor zur bis mehr durch",
    "Italian": "il la di che e è un una in per non con del della si le i da al dei sono come gli lo alla ma anche nel più se su"
    " questo delle ha nella o ed essere",
    "Portuguese": "o a de que e do da em um uma para com não os as no se na por mais dos como mas ao ele das à seu sua ou quando"
    " muito nos já eu também só pelo pela até isso são é",
    "Dutch": "de het een van en in is dat op te zijn met voor niet aan er om ook als dan maar bij of uit nog naar heeft worden"
    " wordt deze door hij wij je dit",
    "Romanian": "și de la în nu cu pe un o să este care din mai pentru că a ce au fost dar sau sunt prin ca al ale lui se",
    "Turkish": "ve bir bu için de da ile çok ne daha olarak gibi olan var ama kadar sonra o en her ki değil",
    "Vietnamese": "và của là có cho không một các được trong người với để những này đã khi từ tôi đến ra như về",
    "Indonesian": "yang dan di untuk dengan ini itu dari dalam tidak akan pada juga ke karena ada oleh sebagai atau",
}
_LETTERS = {
    "Spanish": "ñ¿¡",
    "French": "èêœùûî",
    "German": "ßäöü",
    "Italian": "ìòù",
    "Portuguese": "ãõ",
    "Romanian": "ățșşţă",
    "Turkish": "ğışİ",
    "Vietnamese": "ơưđạảấầậắặẹẻẽếềệỉịọỏốồộớờợụủứừựỳỵỷỹ",
}


def _inverted(many: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """From what a language has to the languages that have it."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, parts in many.items():
        for part in dict.fromkeys(parts):
            found[part].append(name)
    return {part: tuple(names) for part, names in found.items()}


_SPOKEN_BY = _inverted({name: words.split() for name, words in _LITTLE_WORDS.items()})
_WRITTEN_BY = _inverted(_LETTERS)
_PATTERNS = tuple((name, re.compile(f"[{span}]")) for name, span in _SCRIPTS)
_WORD = re.compile(r"[^\W\d_]+")
_ENOUGH = 2.0
_LETTER_WEIGHT = 0.75
_FOREIGN_LETTERS = 3

LANGUAGES = (
    *(name for name, _ in _SCRIPTS),
    "Persian",
    "Ukrainian",
    *(name for name in _LITTLE_WORDS if name != "English"),
)
"""Names that `language` can answer, besides English."""


@lru_cache(maxsize=64)
def language(text: str) -> str | None:
    """Name of the language of a text, such as "French"; None where the text does not tell."""
    if not text.isascii():
        for name, pattern in _PATTERNS:
            if len(pattern.findall(text)) >= _FOREIGN_LETTERS:
                return _relative(name, text)
    total: dict[str, float] = defaultdict(float)
    for word in _WORD.findall(text.lower()):
        for name in _SPOKEN_BY.get(word, ()):
            total[name] += 1
        for letter in word:
            for name in () if letter.isascii() else _WRITTEN_BY.get(letter, ()):
                total[name] += _LETTER_WEIGHT
    best = sorted(total.items(), key=itemgetter(1), reverse=True)[:2]
    is_clear = bool(best) and best[0][1] >= _ENOUGH and (len(best) == 1 or best[0][1] > best[1][1])
    return best[0][0] if is_clear else None


def is_foreign(text: str) -> bool:
    """Whether a text is in a language other than English, known or not."""
    name = language(text)
    letters = sum(1 for char in text if char.isalpha() and not char.isascii())
    return letters >= _FOREIGN_LETTERS if name is None else name != "English"


def little_words() -> frozenset[str]:
    """Little words of English, which say nothing of a topic."""
    return frozenset(_LITTLE_WORDS["English"].split())


def _relative(name: str, text: str) -> str:
    """Languages that share a script, told by the letters of their own."""
    if name == "Arabic" and len(_PERSIAN.findall(text)) >= 2:
        return "Persian"
    return "Ukrainian" if name == "Russian" and _UKRAINIAN.search(text) else name
