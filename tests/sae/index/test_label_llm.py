"""A language model's labels: asked in the documented format, read strictly, never guessed, the key never shown."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from tests.tiny import tiny_tokenizer

from steersman.errors import RequestError, SaeError
from steersman.sae.index.chat_endpoint import chat_endpoint
from steersman.sae.index.detect import Trial
from steersman.sae.index.facts import NO_TOKEN, Contexts
from steersman.sae.index.label_llm import detect_by_llm, label_by_llm, marked
from steersman.sae.index.passages import Passage, Reader

KEY = "sk-very-secret-123"


@dataclass
class Endpoint:
    """A local server that answers chats as it is told, and keeps what it was asked."""

    answer: Callable[[dict[str, Any]], tuple[int, bytes]]
    asked: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    url: str = ""


def completion(content: object) -> tuple[int, bytes]:
    message = {"role": "assistant", "content": content}
    return 200, json.dumps({"object": "chat.completion", "choices": [{"index": 0, "message": message}]}).encode()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint(lambda _: completion('{"label": "archaic pronouns"}'))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            made.asked.append((self.path, dict(self.headers), body))
            status, data = made.answer(body)
            self.send_response(status)
            for name, value in made.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


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


def test_a_label_comes_over_http_in_the_documented_format(endpoint: Endpoint, reader: Reader) -> None:
    ask = chat_endpoint(endpoint.url + "/", "some-model", key=KEY, max_tokens=50)
    label, missing = label_by_llm(_contexts(reader, "and thou art", "if thou say"), reader, ask)
    assert missing is None
    assert label is not None
    assert (label.text, label.origin, label.score) == ("archaic pronouns", "llm", None)
    ((path, headers, body),) = endpoint.asked
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert headers["Content-Type"] == "application/json"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("some-model", 0, 50)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert "and <<thou>> art" in body["messages"][1]["content"]


def test_without_a_key_none_is_sent(endpoint: Endpoint, reader: Reader) -> None:
    assert label_by_llm(_contexts(reader, "thou"), reader, chat_endpoint(endpoint.url, "m")).label is not None
    assert "Authorization" not in endpoint.asked[0][1]


def test_marks_go_around_what_fires_strongly() -> None:
    passage = Passage("abcdef", tuple(range(7)), (4.0, 3.0, 0.0, 1.0, 0.0, 2.0))
    assert marked(passage) == "<<ab>>cde<<f>>"
    assert marked(Passage("ab", (0, 1, 2), (0.0, 0.0))) == "ab"


@pytest.mark.parametrize(
    "reply",
    [
        "archaic pronouns",
        '```json\n{"label": "x"}\n```',
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


# --- the endpoint


@pytest.mark.parametrize(
    ("status", "data", "told"),
    [
        (401, json.dumps({"error": f"bad key {KEY}"}).encode(), "answered 401"),
        (429, b"slow down", "slow down"),
        (500, b"x" * 190 + KEY.encode() + b"\n", "answered 500"),
        (200, b"not json", "format of a chat completion"),
        (200, b'{"choices": []}', "format of a chat completion"),
        (200, b"[1]", "format of a chat completion"),
        (200, completion(None)[1], "format of a chat completion"),
    ],
)
def test_refusals_are_told_in_one_line_without_the_key(endpoint: Endpoint, status: int, data: bytes, told: str) -> None:
    endpoint.answer = lambda _: (status, data)
    with pytest.raises(RequestError, match=told) as caught:
        chat_endpoint(endpoint.url, "m", key=KEY)([{"role": "user", "content": "x"}])
    message = str(caught.value)
    assert "sk-very" not in message
    assert "\n" not in message
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_key_is_never_sent_where_an_answer_redirects(endpoint: Endpoint) -> None:
    endpoint.answer = lambda _: (302, b"")
    endpoint.headers["Location"] = endpoint.url + "/elsewhere"
    with pytest.raises(RequestError, match="answered 302"):
        chat_endpoint(endpoint.url, "m", key=KEY)([])
    assert len(endpoint.asked) == 1


def test_an_endpoint_that_is_not_there_is_named(reader: Reader) -> None:
    ask = chat_endpoint("http://127.0.0.1:9/v1", "m", key=KEY, timeout_s=2)
    with pytest.raises(RequestError, match=r"127\.0\.0\.1:9.*cannot be reached") as caught:
        ask([])
    assert KEY not in str(caught.value)
    label, missing = label_by_llm(_contexts(reader, "thou"), reader, ask)
    assert label is None
    assert "cannot be reached" in str(missing)


@pytest.mark.parametrize(
    "url", ["", "localhost:80", "file:///etc/passwd", "http://", "https://me:pw@host/v1", "http://[x"]
)
def test_addresses_that_cannot_be_used_are_refused(url: str) -> None:
    with pytest.raises(RequestError, match="looks like https://host/v1"):
        chat_endpoint(url, "m")


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel"])
def test_keys_that_cannot_be_sent_are_refused_unseen(key: str) -> None:
    with pytest.raises(RequestError, match="API key") as caught:
        chat_endpoint("http://localhost/v1", "m", key=key)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("limits", [{"timeout_s": 0.0}, {"timeout_s": float("nan")}, {"max_tokens": 0}])
def test_impossible_limits_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="timeout_s"):
        chat_endpoint("http://localhost/v1", "m", **limits)


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
