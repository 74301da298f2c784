"""A language model's labels: asked in the documented format, read strictly, never guessed, the key never shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest
import torch
from tests.models.chat_server import KEY, ChatServer, Say, completion, serving
from tests.tiny import tiny_tokenizer

from steersman.errors import SaeError
from steersman.models.endpoint import ChatSettings, Endpoint
from steersman.sae.index.detect import Trial
from steersman.sae.index.facts import NO_TOKEN, Contexts
from steersman.sae.index.label_llm import detect_by_llm, label_by_llm, marked
from steersman.sae.index.passages import Passage, Reader


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving() as made:
        made.answer = lambda _: completion('{"label": "archaic pronouns"}')
        yield made


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(tiny_tokenizer())


def _contexts(reader: Reader, *texts: str, fires: str = "thou") -> Contexts:
    ids = [reader.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    width = max(map(len, ids))
    tokens = torch.tensor([[*row, *[NO_TOKEN] * (width - len(row))] for row in ids])
    activations = torch.zeros(len(texts), width)
    for row, text in enumerate(texts):
        start = text.find(fires)
        activations[row, start : start + len(fires)] = 2.0
    return Contexts(tokens, activations)


def _chat(content: str) -> Callable[[Sequence[Mapping[str, str]]], str]:
    return lambda _: content


# --- labels


def test_a_label_comes_over_http(server: ChatServer, reader: Reader) -> None:
    ask = Endpoint(server.url, "some-model", key=KEY)
    label, missing = label_by_llm(_contexts(reader, "and thou art", "if thou say"), reader, ask)
    assert missing is None
    assert label is not None
    assert (label.text, label.origin, label.score) == ("archaic pronouns", "llm", None)
    ((_, _, body),) = server.asked
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert "and <<thou>> art" in body["messages"][1]["content"]


def test_an_endpoint_that_fails_leaves_a_reason_without_the_key(server: ChatServer, reader: Reader) -> None:
    server.answers(Say(500, f"no {KEY}".encode()))
    ask = Endpoint(server.url, "m", key=KEY, settings=ChatSettings(retries=1, pause_s=0.01))
    label, missing = label_by_llm(_contexts(reader, "thou"), reader, ask)
    assert label is None
    assert "answered 500" in str(missing)
    assert KEY not in str(missing)


def test_marks_go_around_what_fires_strongly() -> None:
    passage = Passage("abcdef", tuple(range(7)), (4.0, 3.0, 0.0, 1.0, 0.0, 2.0))
    assert marked(passage) == "<<ab>>cde<<f>>"
    assert marked(Passage("ab", (0, 1, 2), (0.0, 0.0))) == "ab"


@pytest.mark.parametrize(
    "reply",
    [
        "archaic pronouns",
        'Sure:\n```json\n{"label": "x"}\n```',
        '{"label": ""}',
        '{"label": "  "}',
        '{"label": 3}',
        '{"label": "two\\nlines"}',
        '{"label": "a", "why": "b"}',
        '{"name": "a"}',
        '["a"]',
        '{"label": "' + "x" * 121 + '"}',
        "[" * 100_000,
        "",
    ],
)
def test_malformed_answers_are_asked_again_twice_and_never_guessed(reader: Reader, reply: str) -> None:
    asked: list[object] = []

    def ask(messages: Sequence[Mapping[str, str]]) -> str:
        asked.append(messages)
        return reply

    label, missing = label_by_llm(_contexts(reader, "thou"), reader, ask)
    assert label is None
    assert missing is not None
    assert "no usable answer in 3 tries" in missing
    assert "\n" not in missing
    assert len(missing) < 300
    assert len(asked) == 3


def test_a_good_answer_at_the_third_try_counts(reader: Reader) -> None:
    replies = iter(["no", '{"label": 1}', '{"label": "pronouns"}'])
    label, missing = label_by_llm(_contexts(reader, "thou"), reader, lambda _: next(replies))
    assert label is not None
    assert (label.text, missing) == ("pronouns", None)


def test_a_dead_feature_is_not_asked_about(reader: Reader) -> None:
    def ask(_: object) -> str:
        raise AssertionError

    silent = Contexts(torch.tensor([[70, 71]]), torch.zeros(1, 2))
    assert label_by_llm(silent, reader, ask) == (None, "the feature never fires")


# --- detection

TRIALS = [
    Trial("foxes", ["a fox", "the fox", "fox", "old fox", "fox!"], ["a dog", "cow", "hen", "pig", "goat", "mule"]),
    Trial("dogs", ["a dog", "the dog", "dog", "old dog", "dog!"], ["a fox", "cow", "hen", "pig", "goat", "mule"]),
]


def _knows(messages: Sequence[Mapping[str, str]]) -> str:
    """Answers right: a text fires where it holds the singular of the description."""
    description, *texts = messages[1]["content"].splitlines()
    word = {"foxes": "fox", "dogs": "dog"}[json.loads(description.partition(": ")[2])]
    return json.dumps({"fires": [int(line.split(".")[0]) for line in texts if word in line]})


def test_a_model_that_knows_scores_one_and_its_control_does_not() -> None:
    found = detect_by_llm(TRIALS, _knows, windows_a_question=4)
    assert found.scores == (1.0, 1.0)
    assert found.control is not None
    assert found.control == pytest.approx((0 + 5 / 6) / 2)
    assert detect_by_llm(TRIALS, _knows, control=False).control is None


def test_the_judge_sees_neither_activations_nor_which_side_a_text_is_on() -> None:
    seen: list[str] = []

    def ask(messages: Sequence[Mapping[str, str]]) -> str:
        seen.append(messages[1]["content"])
        return '{"fires": []}'

    found = detect_by_llm(TRIALS[:1], ask, windows_a_question=100)
    assert found.scores == (0.5,)
    shown = [json.loads(line.partition(". ")[2]) for line in seen[0].splitlines()[1:]]
    assert sorted(shown) == sorted([*TRIALS[0].firing, *TRIALS[0].silent])
    assert shown != [*TRIALS[0].firing, *TRIALS[0].silent]


@pytest.mark.parametrize(
    "reply", ["[1]", '{"fires": [0]}', '{"fires": [12]}', '{"fires": ["1"]}', '{"fires": [true]}', '{"fires": 1}', "{}"]
)
def test_a_judge_that_answers_otherwise_leaves_no_score(reply: str) -> None:
    found = detect_by_llm([*TRIALS, Trial(None, [], [])], _chat(reply), windows_a_question=11)
    assert found.scores == (None, None, None)
    assert all("no usable answer in 3 tries" in str(why) for why in found.missing[:2])
    assert found.missing[2] == "the feature has no label"
    assert found.mean is None


def test_a_question_shows_a_window_at_least() -> None:
    with pytest.raises(SaeError, match="at least 1 window"):
        detect_by_llm(TRIALS, _knows, windows_a_question=0)
