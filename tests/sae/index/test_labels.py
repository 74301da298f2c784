"""Labels say what contexts have in common: tokens, parts of words, what comes before, topic, language, format, position."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest
import torch
from tests.tiny import tiny_tokenizer
from torch import Tensor

from steersman.models.language_model import LanguageModel
from steersman.sae.index.background import Background
from steersman.sae.index.clues import (
    Clue,
    Searched,
    can_quote,
    free_clues,
    quote,
    read_label,
    stem,
    topic_words,
    write_label,
)
from steersman.sae.index.facts import NO_TOKEN, Contexts
from steersman.sae.index.labels import MAX_CHARS, label_contexts
from steersman.sae.index.languages import LANGUAGES, is_foreign, language
from steersman.sae.index.passages import ChatTags, Reader, chat_tags, find_literal, folded, word_at
from steersman.sae.index.places import KINDS, PLACES

WORDS = [
    "table",
    "green",
    "walk",
    "under",
    "paper",
    "little",
    "music",
    "stone",
    "open",
    "quick",
    "brother",
    "window",
    "letter",
    "garden",
    "yellow",
    "people",
    "morning",
    "carry",
    "simple",
    "number",
    "answer",
    "water",
    "follow",
    "bread",
    "season",
    "market",
    "figure",
    "silver",
    "travel",
    "copper",
]
FILLER = ["the", "a", "of", "to", "and", "in", "was", "it", "for", "on"]


def _sentence(made: random.Random, n: int = 9) -> str:
    return " ".join(made.choice(WORDS if made.random() < 0.6 else FILLER) for _ in range(n))


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(tiny_tokenizer())


@pytest.fixture(scope="module")
def background(reader: Reader) -> Background:
    made = random.Random(0)
    return Background(tuple(_sentence(made) + "." for _ in range(300)), reader.tags)


def contexts_of(reader: Reader, texts: list[str], fires: str | Callable[[str], range]) -> Contexts:
    """Contexts of whole texts where the tokens that overlap a pattern's last match (or a range of characters) fire."""
    rows, values = [], []
    for text in texts:
        ids = reader.tokenizer(text, add_special_tokens=False)["input_ids"]
        span = fires(text) if callable(fires) else range(*list(re.finditer(fires, text))[-1].span())
        bounds = reader.passage(ids).bounds
        rows.append(ids)
        values.append([float(bounds[i] < span.stop and bounds[i + 1] > span.start) * 3.0 for i in range(len(ids))])
    width = max(map(len, rows))
    tokens = torch.full((len(rows), width), NO_TOKEN, dtype=torch.int32)
    activations = torch.zeros(len(rows), width)
    for i, (ids, each) in enumerate(zip(rows, values, strict=True)):
        tokens[i, : len(ids)] = torch.tensor(ids)
        activations[i, : len(ids)] = torch.tensor(each)
    return Contexts(tokens, activations)


def _around(middle: Callable[[random.Random], str], n: int = 12) -> list[str]:
    made = random.Random(1)
    return [f"{_sentence(made, 5)} {middle(made)} {_sentence(made, 3)}" for _ in range(n)]


def test_a_word_is_named(reader: Reader, background: Background) -> None:
    texts = _around(lambda made: made.choice(["thou", "thee", "Thou"]))
    label = label_contexts(contexts_of(reader, texts, "(?i)thou|thee"), reader, background)
    assert read_label(label or "") == ((Clue("words", ("thou", "thee")),),)


def test_capitals_that_never_fail_are_kept(reader: Reader, background: Background) -> None:
    label = label_contexts(contexts_of(reader, _around(lambda _: "SELECT"), "SELECT"), reader, background)
    assert label == '"SELECT"'


def test_a_part_of_words_is_named_as_one(reader: Reader, background: Background) -> None:
    made = iter(
        [
            "walking",
            "sleeping",
            "burning",
            "melting",
            "turning",
            "falling",
            "shaking",
            "rowing",
            "mending",
            "boiling",
            "hunting",
            "selling",
        ]
    )
    label = label_contexts(contexts_of(reader, _around(lambda _: next(made)), "(?<=in)g"), reader, background)
    # The tokens are single letters here, so its last letter is all that fires in the same place.
    assert label == '"…g"'  # A token is a letter here.


def test_what_comes_before_is_named_where_the_tokens_differ(reader: Reader, background: Background) -> None:
    made = iter(
        ["apple", "ocean", "yard", "zebra", "kettle", "ladder", "uncle", "igloo", "parrot", "violin", "jacket", "queen"]
    )
    texts = _around(lambda _: f"behind her {next(made)}")
    label = label_contexts(contexts_of(reader, texts, r"(?<=her )\w+"), reader, background)
    assert label is not None
    assert label.startswith(('after "her"', 'after "behind her"'))


def test_the_topic_is_named_where_nothing_else_is_shared(reader: Reader, background: Background) -> None:
    sea = ["ship", "sailor", "captain", "ocean", "harbour"]
    made = random.Random(3)

    def text(number: int) -> str:
        words = [*made.sample(sea, 2), *made.sample(WORDS, 6)]
        made.shuffle(words)
        return " ".join(words)

    texts = [text(number) for number in range(16)]
    places = iter(range(100))
    fires = contexts_of(reader, texts, lambda text: range(5 + next(places) % 7, 6 + (next(places) - 1) % 7 + 5))
    label = label_contexts(fires, reader, background)
    assert label is not None
    about = {word for clues in read_label(label) or () for clue in clues if clue.kind == "about" for word in clue.words}
    assert len(about & set(sea)) >= 3


def test_the_language_is_named(reader: Reader, background: Background) -> None:
    texts = [
        "le chat est dans la maison avec les enfants",
        "nous avons une belle journée pour les vacances",
        "il ne faut pas que vous soyez en retard",
        "elle est partie dans le jardin avec sa soeur",
        "les gens qui sont ici ont une question",
        "je ne sais pas ce que tu fais dans la vie",
    ]
    cuts = iter((4, 9, 14, 3, 11, 7))

    def fires(text: str) -> range:
        start = next(cuts)
        return range(start, start + 1)

    label = label_contexts(contexts_of(reader, texts, fires), reader, background)
    assert label is not None
    assert "French" in label or "foreign" in label


def test_code_is_named(reader: Reader, background: Background) -> None:
    texts = [
        f"def {a}(self):\n    return {b}.get({c})\n"
        for a, b, c in zip(WORDS[:8], WORDS[8:16], WORDS[16:24], strict=True)
    ]
    starts = iter(range(100))
    label = label_contexts(
        contexts_of(reader, texts, lambda text: range(n := 4 + next(starts) % 3, n + 1)), reader, background
    )
    assert label is not None
    assert any(word in label for word in ("code", '"def"', "self", "return"))


def test_the_beginning_of_an_answer_is_named(reader: Reader, background: Background) -> None:
    made = random.Random(5)
    texts = [f"[user]{_sentence(made, 3)}\n[assistant]{word} {_sentence(made, 3)}" for word in WORDS[:12]]
    label = label_contexts(contexts_of(reader, texts, r"(?<=assistant\])\w"), reader, background)
    assert label is not None
    assert "first words of an answer" in label or "assistant" in label


def test_numbers_and_line_breaks_are_named(reader: Reader, background: Background) -> None:
    made = random.Random(2)
    texts = _around(lambda _: str(made.randint(100, 999)))
    assert "numbers" in (label_contexts(contexts_of(reader, texts, r"\d+"), reader, background) or "")
    texts = [f"{_sentence(made, 4)}\n{_sentence(made, 4)}" for _ in range(12)]
    assert "line" in (label_contexts(contexts_of(reader, texts, "\n"), reader, background) or "")


def test_contexts_with_nothing_in_common_are_said_to_be_various(reader: Reader, background: Background) -> None:
    made, picks = random.Random(9), random.Random(10)
    texts = [_sentence(made, 12) for _ in range(20)]

    def fires(text: str) -> range:
        return range(*picks.choice(list(re.finditer(r"\w+", text))).span())

    label = label_contexts(contexts_of(reader, texts, fires), reader, background)
    assert label is not None
    assert label.startswith("various: ")
    assert read_label(label) is not None


def test_a_dead_feature_has_no_label(reader: Reader, background: Background) -> None:
    empty = Contexts(torch.full((0, 24), NO_TOKEN), torch.zeros(0, 24))
    assert label_contexts(empty, reader, background) is None
    silent = contexts_of(reader, ["nothing fires here"], lambda _: range(0))
    assert label_contexts(silent, reader, background) is None


def test_windows_where_it_fires_are_not_held_against_a_label(reader: Reader) -> None:
    made = random.Random(0)
    texts = tuple(_sentence(made, 4) + (" thou" if number % 2 else "") for number in range(100))
    contexts = contexts_of(reader, _around(lambda _: "thou"), "thou")
    background = Background(texts, reader.tags)
    fires = ["thou" in text for text in texts]
    assert label_contexts(contexts, reader, background, fires) == '"thou"'


def test_labels_are_short_readable_and_the_same_each_time(reader: Reader, background: Background) -> None:
    made = random.Random(4)
    for seed in range(12):
        letters = random.Random(seed)
        texts = [_sentence(made, 10) for _ in range(letters.randint(1, 14))]
        contexts = contexts_of(reader, texts, letters.choice(["[a-e]", r"\w+ \w+$", "the|of|in|a", r"^\w+"]))
        label = label_contexts(contexts, reader, background)
        assert label == label_contexts(contexts, reader, background)
        assert label is not None
        assert 0 < len(label) <= MAX_CHARS
        assert label.isprintable()
        assert read_label(label) is not None


# --- the grammar

_LABELS = [
    ((Clue("words", ("thou", "Thee", "…ing")),),),
    ((Clue("words", ("; ", 'say "no"')), Clue("about", ("sea", "ships"))), (Clue("in", ("French",)),)),
    ((Clue("after", ("in the", "'s")), Clue("in", ("code",))),),
    ((Clue("kind", ("numbers",)), Clue("about", ("money",))), (Clue("kind", ("line breaks",)),)),
    ((Clue("about", ("sea",)),), (Clue("words", ("about x",)),)),
    ((Clue("various", ("of", ",")),),),
    *(((Clue("in", (place,)),),) for place in PLACES),
    *(((Clue("kind", (kind,)), Clue("in", ("first words of an answer",))),) for kind in KINDS),
]


@pytest.mark.parametrize("clues", _LABELS, ids=write_label)
def test_a_label_is_read_as_it_was_written(clues: tuple[tuple[Clue, ...], ...]) -> None:
    assert read_label(write_label(clues)) == clues


@pytest.mark.parametrize(
    "label", ["", "words about ships", '"open', "words; ", "talk of the sea", "in Klingon", '"a" "b"']
)
def test_other_wordings_are_no_labels_of_the_grammar(label: str) -> None:
    assert read_label(label) is None


def test_labels_in_free_words_are_quotes_and_a_topic() -> None:
    assert free_clues('talk of ships, mostly "ahoy"') == (
        (Clue("words", ("ahoy",)),),
        (Clue("about", ("talk", "ships", "mostly")),),
    )
    assert free_clues("of the") == ()


def test_what_cannot_be_quoted_is_known() -> None:
    assert quote('"') == "'\"'"
    assert can_quote('say "x"')
    assert not any(map(can_quote, ("", "a\nb", "\"'")))


@pytest.mark.parametrize(
    ("literal", "text", "found"),
    [
        ("thou", "Thou art, thou thousand", 2),
        ("Thou", "Thou art, thou thousand", 1),
        ("thou…", "Thou art, thou thousand", 1),
        ("…ing", "king ing singing", 2),
        ("…in…", "king in win", 1),
        (",", "a, b,c", 2),
        ("of the", "of the, often of them", 1),
        ("…", "so… on…", 0),
    ],
)
def test_literals_are_whole_words_unless_they_go_on(literal: str, text: str, found: int) -> None:
    lower = folded(text)
    if literal != "…":
        assert len(list(find_literal(text, lower, literal))) == found
    texts = (text, "x", text + " " + text)
    inside = [bool(list(find_literal(each, folded(each), literal))) for each in texts]
    assert Background(texts, ChatTags()).literal(literal) == sum(1 << i for i, there in enumerate(inside) if there)


def test_the_background_says_what_looking_at_each_text_says(reader: Reader, background: Background) -> None:
    searched = [Searched.of(text, reader.tags) for text in background.texts]
    for clue in (
        Clue("words", ("the",)),
        Clue("about", ("windows",)),
        Clue("kind", ("numbers",)),
        Clue("in", ("code",)),
    ):
        slow = sum(1 << index for index, each in enumerate(searched) if each.holds(clue))
        (word,) = clue.words
        fast = {"words": background.literal, "about": lambda each: background.stems.get(stem(each), 0)}.get(
            clue.kind, lambda each: background.tests[each]
        )(word)
        assert fast == slow


def test_forms_of_a_word_share_a_stem() -> None:
    for words in (("ship", "ships", "shipping"), ("carry", "carries", "carried"), ("make", "makes", "making")):
        assert len(set(map(stem, words))) == 1
    assert [word for _, word in topic_words("the Ships of [user]France", ChatTags(question="[user]"))] == [
        "ships",
        "france",
    ]


# --- text, tags, languages


def test_passages_keep_every_character_in_its_place(reader: Reader) -> None:
    for text in ("héllo wörld", "日本 🎉 go", "plain\n\ttext"):
        ids = reader.tokenizer(text, add_special_tokens=False)["input_ids"]
        passage = reader.passage([*ids, NO_TOKEN])
        assert passage.text == text
        assert passage.bounds[-1] == len(text)
        assert "".join(passage.token(index) for index in range(len(ids))) == text
    assert "\ufffd" in reader.passage(reader.tokenizer("é", add_special_tokens=False)["input_ids"][:1]).text


def test_words_are_grown_to_their_ends() -> None:
    assert word_at("a thorough day", 4, 6) == (2, 10)
    assert word_at("one, two", 3, 4) == (3, 4)
    assert folded("İa") == "İa"


def test_the_tags_of_a_template_are_found() -> None:
    assert chat_tags(tiny_tokenizer()) == ChatTags(question="[user]", answer="[assistant]", system="[system]", end="")
    plain = tiny_tokenizer()
    plain.chat_template = None
    assert chat_tags(plain) == ChatTags()
    refusing = tiny_tokenizer()
    refusing.chat_template = "{{ raise_exception('no') }}"
    assert chat_tags(refusing) == ChatTags()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("the cat is in the house with them", "English"),
        ("el gato está en la casa con los niños", "Spanish"),
        ("le chat est dans la maison avec nous", "French"),
        ("die Katze ist in dem Haus und nicht hier", "German"),
        ("il gatto è nella casa con gli altri", "Italian"),
        ("o gato não está em casa com você", "Portuguese"),
        ("кошка сидит в доме", "Russian"),
        ("кішка сидить у домі", "Ukrainian"),
        ("これは日本語です", "Japanese"),
        ("这是中文文本", "Chinese"),
        ("이것은 한국어입니다", "Korean"),
        ("bu bir ev ve çok güzel", "Turkish"),
        ("12 + 7", None),
    ],
)
def test_languages_are_told_apart(text: str, name: str | None) -> None:
    assert language(text) == name
    assert is_foreign(text) == (name not in (None, "English"))
    assert name in (None, "English", *LANGUAGES)


# --- the bundled tokenizer


@pytest.mark.model
def test_real_tokens_and_tags_are_named(bundled: LanguageModel) -> None:
    reader = Reader(bundled.tokenizer)
    assert reader.tags.answer == "<|im_start|>assistant\n"
    assert reader.tags.end == "<|im_end|>"
    made = random.Random(0)
    background = Background(tuple(_sentence(made) for _ in range(200)), reader.tags)
    texts = _around(lambda made: made.choice(["thou", "thy"]))
    assert label_contexts(contexts_of(reader, texts, " thou| thy"), reader, background) in (
        '"thou", "thy"',
        '"thy", "thou"',
    )
    texts = [f"<|im_end|>\n<|im_start|>assistant\n{word.title()} {_sentence(made, 4)}" for word in WORDS[:10]]
    label = label_contexts(contexts_of(reader, texts, r"(?<=assistant\n)\w+"), reader, background)
    assert label is not None
    assert "first words of an answer" in label
    texts = [f"{_sentence(made, 4)}<|im_end|>\n<|im_start|>user\n{_sentence(made, 4)}" for _ in range(10)]
    label = label_contexts(contexts_of(reader, texts, r"<\|im_end\|>"), reader, background)
    assert label is not None
    assert "ends of turns" in label or "<|im_end|>" in label


def test_tensors_of_any_integer_type_are_read(reader: Reader) -> None:
    tokens: Tensor = torch.tensor([[76, 77, NO_TOKEN]], dtype=torch.int64)
    assert reader.texts(tokens) == reader.texts(tokens.to(torch.int32))
