"""Laws of contrast pairs: bad ones are refused with their place, the tokens read are the answer's, means are what they say."""

from __future__ import annotations

import dataclasses
import json
import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import CONTEXT, D_MODEL, N_LAYERS

from steersman.errors import DataError, ModelError
from steersman.models.blocks import reading
from steersman.models.language_model import LanguageModel, Prompt
from steersman.models.residuals import ModelProfile
from steersman.steering.contrast import Read, Span, locate, read_contrast
from steersman.steering.pairs import Pair, distinct, load_named, load_pairs, named_sets

HELD_OUT = {
    "What is money?",
    "How do airplanes fly?",
    "Does Santa exist?",
    "What is the internet?",
    "How are babies made?",
    "What is a divorce?",
    "Why is the sky blue?",
}
ASK: dict[str, str] = {"role": "user", "content": "How are you?"}
FINE: dict[str, str] = {"role": "assistant", "content": "Fine."}
GREAT: dict[str, str] = {"role": "assistant", "content": "Great, thanks!"}
GOOD = {"positive": "great", "negative": "poor"}
PAIRS = [
    Pair(positive=f"{word}, so good!", negative=f"{word}: how bad it is?") for word in ("tea", "the sea", "a book")
]
ANSWERS = ("Fine.", "1", "0", "01", " ", "user", "[assistant]x\n", "  spaced  ", "ünïcødé ☠", "\n", "<s>")


@pytest.fixture(scope="module")
def profile(tiny: LanguageModel) -> ModelProfile:
    return ModelProfile(tiny.ref.weights_hash, (2.0, 3.0, 5.0, 7.0))


def chat(answer: str) -> Prompt:
    return ({"role": "user", "content": "How?"}, {"role": "assistant", "content": answer})


def with_template(model: LanguageModel, template: str | None) -> LanguageModel:
    tokenizer = deepcopy(model.tokenizer)
    tokenizer.chat_template = template
    return LanguageModel(model.hf, tokenizer, "other-template")


def write(folder: Path, *lines: object, text: str | None = None) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text(text or "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


# --- what a pair is


@pytest.mark.parametrize(
    ("positive", "negative"),
    [
        ("", "x"),
        ("x", " \n"),
        ("x", "x"),
        ([ASK, FINE], (ASK, FINE)),
        ([ASK, FINE], "x"),
        ([ASK], [ASK, FINE]),
        ([FINE], [ASK, FINE]),
        ([ASK, FINE], []),
        ([ASK, {"role": "assistant", "content": ""}], [ASK, FINE]),
        ([ASK, {"role": "assistant", "content": 3}], [ASK, FINE]),
        ([{"role": "pirate", "content": "Arr"}, ASK, FINE], [ASK, FINE]),
        ("half a smile: \ud83d", "x"),
    ],
)
def test_a_bad_pair_is_refused(positive: Any, negative: Any) -> None:
    with pytest.raises(DataError):
        Pair(positive=positive, negative=negative)


def test_the_same_answer_under_two_system_prompts_is_a_pair() -> None:
    Pair(positive=[{"role": "system", "content": "Be a pirate."}, ASK, FINE], negative=[ASK, FINE])  # type: ignore[list-item]


def test_distinct_keeps_the_first_of_equals_in_order() -> None:
    again = Pair(positive=PAIRS[0].positive, negative=PAIRS[0].negative)
    assert distinct([*PAIRS, again, PAIRS[1]]) == PAIRS


@pytest.mark.parametrize("pairs", [[], PAIRS[:1], PAIRS[:1] * 3])
def test_fewer_than_two_different_pairs_are_refused(pairs: list[Pair]) -> None:
    with pytest.raises(DataError):
        distinct(pairs)


# --- files


def test_all_three_ways_to_write_a_pair(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        GOOD,
        {"positive": [ASK, GREAT], "negative": [ASK, FINE]},
        {"prompt": "How are you?", "positive": "Great, thanks!", "negative": "Fine."},
        {"prompt": "And now?", "positive": "Great!", "negative": "Fine."},
    )
    text, messages, short, _ = load_pairs(path)
    assert text == Pair(**GOOD)
    assert messages == short == Pair.answers("How are you?", "Great, thanks!", "Fine.")


def test_windows_line_ends_byte_order_mark_blank_lines_and_line_separators_are_read(tmp_path: Path) -> None:
    lines = ["\ufeff" + json.dumps(GOOD), "", '{"positive": "one\u2028two", "negative": "x"}', "  "]
    path = tmp_path / "pairs.jsonl"
    path.write_bytes("\r\n".join(lines).encode())
    assert [pair.positive for pair in load_pairs(path)] == ["great", "one\u2028two"]


@pytest.mark.parametrize(
    "bad",
    [
        "{",
        "[]",
        '"text"',
        '{"positive": "x"}',
        '{"positive": "x", "negative": "x"}',
        '{"positive": "x", "negative": "y", "promt": "z"}',
        '{"positive": "x", "negative": 3}',
        '{"positive": "x", "negative": "y", "prompt": 3}',
        '{"positive": ["x"], "negative": ["y"]}',
        '{"positive": [{"role": "user"}], "negative": "y"}',
        '{"positive": "\\ud83d", "negative": "y"}',
        "[" * 100_000,
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: str) -> None:
    path = write(tmp_path, text=json.dumps(GOOD) + "\n\n" + bad + "\n")
    with pytest.raises(DataError, match="line 3") as caught:
        load_pairs(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelt_key_is_guessed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'negative'"):
        load_pairs(write(tmp_path, {"positive": "x", "negativ": "y"}))


@pytest.mark.parametrize("lines", [[], [GOOD], [GOOD, GOOD]])
def test_a_file_without_two_different_pairs_is_refused(tmp_path: Path, lines: list[object]) -> None:
    with pytest.raises(DataError, match=r"pairs\.jsonl"):
        load_pairs(write(tmp_path, *lines))


def test_files_that_are_no_text_or_not_there_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(json.dumps(GOOD).encode("utf-16"))
    for wrong in (path, tmp_path / "absent.jsonl", tmp_path):
        with pytest.raises(DataError):
            load_pairs(wrong)


# --- the shipped sets


def test_unknown_set_is_guessed() -> None:
    with pytest.raises(DataError, match="'pirate'"):
        load_named("pirat")
    with pytest.raises(DataError):
        load_named("../pirate")


@pytest.mark.parametrize("name", ["cheerful", "for-children", "formal", "pirate"])
def test_shipped_sets_are_fit_to_learn_from(name: str) -> None:
    assert name in named_sets()
    pairs = load_named(name)
    assert len(distinct(pairs)) == len(pairs) >= 24
    prompts = [
        side[0]["content"] for pair in pairs for side in (pair.positive, pair.negative) if not isinstance(side, str)
    ]
    assert prompts[::2] == prompts[1::2]
    assert len(set(prompts)) == len(pairs)
    assert not HELD_OUT & set(prompts)  # The demo asks these: an answer must not have been learnt from.


# --- tokens


@pytest.mark.parametrize("answer", ANSWERS)
def test_the_span_of_a_chat_is_its_answer(tiny: LanguageModel, answer: str) -> None:
    side = chat(answer)
    span = locate(tiny, side, "answer")
    assert list(span.ids[: span.start]) == tiny.encode(side[:1])  # type: ignore[arg-type]
    assert list(span.ids[span.start :]) == tiny.tokenizer(answer, add_special_tokens=False)["input_ids"]
    assert span.stop == len(span.ids)


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_a_template_writes_around_an_answer_is_not_read(tiny: LanguageModel, answer: str) -> None:
    body = "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}<think></think>{% endif %}"
    model = with_template(tiny, body + "{{ m['content'] }}<user>\n</{{ m['role'] }}>{% endfor %}the end")
    span = locate(model, chat(answer), "answer")
    assert tiny.tokenizer.decode(span.ids[span.start : span.stop]) == answer


@pytest.mark.parametrize("side", ["some text", chat("some text")])
def test_reads_are_spans_of_the_same_tokens(tiny: LanguageModel, side: Prompt) -> None:
    answer, last, whole = (locate(tiny, side, read) for read in ("answer", "last", "all"))
    assert answer.ids == last.ids == whole.ids
    assert whole.start == 1
    assert answer.start == (1 if isinstance(side, str) else len(tiny.encode(side[:1])))
    assert (last.start, last.stop) == (len(last.ids) - 1, len(last.ids))


@pytest.mark.parametrize("read", ["answer", "last", "all"])
def test_sides_that_cannot_be_read_are_refused(tiny: LanguageModel, read: Read) -> None:
    with pytest.raises(DataError, match="first token"):
        locate(tiny, "x", read)
    with pytest.raises(DataError, match=str(CONTEXT)):
        locate(tiny, "x" * (CONTEXT + 1), read)
    with pytest.raises(DataError, match="chat template"):
        locate(with_template(tiny, None), chat("x"), read)


# --- means


def by_hand(model: LanguageModel, span: Span, layer: int) -> torch.Tensor:
    with torch.no_grad(), reading(model.blocks, [layer]) as outputs:
        model.hf(input_ids=torch.tensor([span.ids]))
    return outputs[layer][0, span.start : span.stop].mean(0)


@pytest.mark.parametrize("read", ["answer", "last", "all"])
def test_means_are_those_of_each_side_read_alone(tiny: LanguageModel, profile: ModelProfile, read: Read) -> None:
    # More pairs than are read at once, of all lengths: neither chunks nor padding show.
    pairs = [Pair.answers("How?", "so " * (n % 7) + f"good {n}", f"bad {n}" * (1 + n % 3)) for n in range(40)]
    contrast = read_contrast(tiny, pairs, profile=profile, layers=range(N_LAYERS), read=read)
    for index in (0, 1, 31, 32, 39):
        for layer in range(N_LAYERS):
            for side, means in ((pairs[index].positive, contrast.positive), (pairs[index].negative, contrast.negative)):
                expected = by_hand(tiny, locate(tiny, side, read), layer)
                torch.testing.assert_close(means[layer][index], expected, rtol=1e-4, atol=1e-4)
    assert contrast.differences(0).shape == (40, D_MODEL)


def test_repeated_pairs_count_once_and_are_reported(
    tiny: LanguageModel, profile: ModelProfile, caplog: pytest.LogCaptureFixture
) -> None:
    once = read_contrast(tiny, PAIRS, profile=profile, layers=[2, 1, 2])
    with caplog.at_level(logging.WARNING, logger="steersman"):
        twice = read_contrast(tiny, [*PAIRS, *PAIRS], profile=profile, layers=[1, 2])
    assert "3" in caplog.text
    assert twice.data == {**once.data, "duplicates_dropped": 3}
    assert once.data["pairs"] == 3
    assert once.data["layers"] == [1, 2]
    torch.testing.assert_close(once.differences(1), twice.differences(1))


def test_the_hash_tells_pairs_apart(tiny: LanguageModel, profile: ModelProfile) -> None:
    def digest(pairs: list[Pair]) -> object:
        return read_contrast(tiny, pairs, profile=profile, layers=[0]).data["pairs_sha256"]

    swapped = [Pair(positive=pair.negative, negative=pair.positive) for pair in PAIRS]
    assert len({digest(PAIRS), digest(PAIRS[:2]), digest(swapped)}) == 3
    assert digest(PAIRS) == digest(list(PAIRS))


def test_bad_requests_are_refused(tiny: LanguageModel, profile: ModelProfile) -> None:
    def read(pairs: list[Pair] = PAIRS, **change: Any) -> None:
        read_contrast(tiny, pairs, **{"profile": profile, "layers": [0], **change})

    with pytest.raises(ModelError):
        read(layers=[N_LAYERS])
    with pytest.raises(DataError):
        read(layers=[])
    with pytest.raises(DataError, match="'first'"):
        read(read="first")
    with pytest.raises(DataError, match="profile"):
        read(profile=dataclasses.replace(profile, weights_hash="0" * 64))
    with pytest.raises(DataError, match="pair 2"):
        read([PAIRS[0], Pair(positive="x", negative="yes")])


@pytest.mark.model
def test_the_bundled_template_and_its_answers(bundled: LanguageModel) -> None:
    for pair in load_named("pirate")[:6]:
        for side in (pair.positive, pair.negative):
            assert not isinstance(side, str)
            span = locate(bundled, side, "answer")
            assert list(span.ids[: span.start]) == bundled.encode(side[:-1])
            assert bundled.decode(span.ids[span.start : span.stop]) == side[-1]["content"]
