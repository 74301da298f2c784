"""The endpoint's client against a real local server: what it sends, what it survives, what it keeps, what it never says."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from tests.models.chat_server import KEY, ChatServer, Say, completion, serving

from steersman.errors import EndpointError, StorageError
from steersman.models.asking import ask_json
from steersman.models.endpoint import ChatSettings, Endpoint, Usage
from steersman.settings import Settings

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it?"}]
HASTY = ChatSettings(pause_s=0.01, timeout_s=2.0)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving() as made:
        yield made


def endpoint(server: ChatServer, cache: Path | None = None, **settings: Any) -> Endpoint:
    chosen = ChatSettings(**{"pause_s": 0.01, "timeout_s": 2.0, **settings})
    return Endpoint(server.url, "some-model", key=KEY, settings=chosen, cache=cache)


def refusal(ask: Endpoint) -> str:
    with pytest.raises(EndpointError) as caught:
        ask(CHAT)
    message = str(caught.value)
    assert "\n" not in message
    assert "sk-very" not in message
    assert message.startswith(ask.url)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return message


# --- what is sent


def test_a_chat_is_sent_in_the_documented_format(server: ChatServer) -> None:
    ask = Endpoint(server.url + "/", "some-model", key=KEY, settings=ChatSettings(max_tokens=50))
    assert ask(CHAT) == "yes"
    ((path, headers, body),) = server.asked
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert headers["Content-Type"] == "application/json"
    assert body == {"model": "some-model", "messages": CHAT, "temperature": 0.0, "max_tokens": 50}
    assert ask.usage == Usage(calls=1, prompt_tokens=7, completion_tokens=3)


def test_without_a_key_none_is_sent_and_settings_of_none_are_left_out(server: ChatServer) -> None:
    assert Endpoint(server.url, "m", settings=ChatSettings(temperature=None, max_tokens=None))(CHAT) == "yes"
    ((_, headers, body),) = server.asked
    assert "Authorization" not in headers
    assert set(body) == {"model", "messages"}


def test_a_local_endpoint_is_never_asked_through_a_proxy(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert endpoint(server)(CHAT) == "yes"


# --- what is survived


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_what_passes_is_asked_again(server: ChatServer, status: int) -> None:
    server.answers(Say(status), Say(status), completion("at last"))
    ask = endpoint(server)
    assert ask(CHAT) == "at last"
    assert (ask.usage.calls, ask.usage.retries, ask.usage.failed) == (1, 2, 0)


def test_retry_after_in_seconds_is_honoured(server: ChatServer) -> None:
    server.answers(Say(429, headers={"Retry-After": "0.4"}), completion("at last"))
    began = time.monotonic()
    assert endpoint(server)(CHAT) == "at last"
    assert time.monotonic() - began >= 0.4


def test_retry_after_as_a_date_is_honoured(server: ChatServer) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    server.answers(Say(503, headers={"Retry-After": date}), completion("at last"))
    began = time.monotonic()
    assert endpoint(server)(CHAT) == "at last"
    assert time.monotonic() - began > 0.5


@pytest.mark.parametrize("value", ["soon", "nan", "-3", "Mon, 99 Foo"])
def test_a_retry_after_that_says_nothing_is_passed_over(server: ChatServer, value: str) -> None:
    server.answers(Say(429, headers={"Retry-After": value}), completion("at last"))
    assert endpoint(server)(CHAT) == "at last"


def test_who_asks_to_wait_an_hour_is_given_up_at_once(server: ChatServer) -> None:
    server.answers(Say(429, headers={"Retry-After": "3600"}))
    message = refusal(endpoint(server))
    assert "asks to wait 3600 s" in message
    assert len(server.asked) == 1


def test_retries_come_to_an_end(server: ChatServer) -> None:
    server.answers(Say(500, b"broken inside"))
    ask = endpoint(server, retries=2)
    assert "answered 500 (broken inside), 3 tries; try again later" in refusal(ask)
    assert (len(server.asked), ask.usage.retries, ask.usage.failed) == (3, 2, 1)


def test_a_slow_endpoint_is_left_after_the_time_allowed(server: ChatServer) -> None:
    server.answers(Say(wait_s=5.0))
    began = time.monotonic()
    message = refusal(endpoint(server, timeout_s=0.2, retries=1))
    assert "did not answer within 0.2 s, 2 tries; give it more time" in message
    assert time.monotonic() - began < 5


def test_an_endpoint_that_trickles_is_left_as_well(server: ChatServer) -> None:
    server.answers(Say(data=b"x" * 1000, pieces_s=0.05))
    began = time.monotonic()
    assert "did not answer within 0.3 s" in refusal(endpoint(server, timeout_s=0.3, retries=0))
    assert time.monotonic() - began < 20


def test_a_slow_first_answer_does_not_spoil_the_second(server: ChatServer) -> None:
    server.answers(Say(wait_s=1.0), completion("quick"))
    assert endpoint(server, timeout_s=0.3)(CHAT) == "quick"


def test_an_answer_that_breaks_off_is_asked_for_again(server: ChatServer) -> None:
    half = completion("whole").data[:30]
    server.answers(Say(data=half, promise=500), completion("whole"))
    assert endpoint(server)(CHAT) == "whole"


def test_an_endpoint_that_is_down_is_named_with_the_reason() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ask = Endpoint(f"http://127.0.0.1:{port}/v1", "m", key=KEY, settings=ChatSettings(retries=1, pause_s=0.01))
    message = refusal(ask)
    assert f"127.0.0.1:{port}" in message
    assert "cannot be reached" in message
    assert "refused" in message
    assert "2 tries" in message
    assert "STEERSMAN_LLM_URL" in message


# --- what is not asked twice


@pytest.mark.parametrize(
    ("status", "fix"), [(400, "LLM_MODEL"), (401, "LLM_KEY"), (403, "LLM_KEY"), (404, "LLM_URL"), (302, "LLM_URL")]
)
def test_refusals_are_told_with_the_fix_and_not_repeated(server: ChatServer, status: int, fix: str) -> None:
    server.answers(Say(status, json.dumps({"error": {"message": f"no: {KEY}\nreally", "type": "x"}}).encode()))
    message = refusal(endpoint(server))
    assert f"answered {status}" in message
    assert f"STEERSMAN_{fix}" in message
    assert ("no: *** really" in message) == (status != 401)
    assert len(server.asked) == 1


def test_a_refused_key_is_not_quoted_in_part(server: ChatServer) -> None:
    server.answers(Say(401, b'{"error": {"message": "Incorrect API key provided: sk-very-*****123"}}'))
    assert "sk-" not in refusal(endpoint(server))


def test_the_key_goes_before_a_refusal_is_cut(server: ChatServer) -> None:
    server.answers(Say(400, b"x" * 190 + KEY.encode() + b"\x1b[31m\n"))
    message = refusal(endpoint(server))
    assert "\x1b" not in message
    assert "sk-" not in message


def test_the_key_is_never_sent_where_an_answer_redirects(server: ChatServer) -> None:
    for status in (301, 302, 303, 307, 308):
        server.answers(Say(status, headers={"Location": server.url + "/elsewhere"}))
        assert f"answered {status}" in refusal(endpoint(server))
    assert {path for path, _, _ in server.asked} == {"/v1/chat/completions"}
    assert len(server.asked) == 5


@pytest.mark.parametrize(
    "data",
    [
        b"not json",
        b'{"choices": []}',
        b"[1]",
        b"null",
        b'{"choices": [{"message": "text"}]}',
        b"[" * 100_000,
        b"\xff\xfe\x00",
        b"",
    ],
)
def test_nonsense_is_called_by_its_name(server: ChatServer, data: bytes) -> None:
    server.answers(Say(data=data))
    assert "format of a chat completion" in refusal(endpoint(server))
    assert len(server.asked) == 1


@pytest.mark.parametrize("content", [None, 3, ["text"]])
def test_an_answer_without_text_is_told(server: ChatServer, content: object) -> None:
    server.answer = lambda _: completion(content)
    assert "without any text; raise max_tokens" in refusal(endpoint(server))


def test_a_huge_answer_is_not_read_to_its_end(server: ChatServer) -> None:
    server.answers(completion("x" * (5 << 20)))
    assert "more than 4 MiB" in refusal(endpoint(server, timeout_s=20.0))


@pytest.mark.parametrize("usage", [None, 3, {"prompt_tokens": "many"}, {"prompt_tokens": True}, {}])
def test_odd_counts_are_no_reason_to_fail(server: ChatServer, usage: object) -> None:
    server.answer = lambda _: completion("fine", usage=usage)
    ask = endpoint(server)
    assert ask(CHAT) == "fine"
    assert ask.usage == Usage(calls=1)


def test_half_a_surrogate_pair_is_no_text(server: ChatServer) -> None:
    server.answer = lambda _: completion("a\ud83d b")
    assert endpoint(server)(CHAT).encode() == b"a? b"


# --- what is kept


def test_the_same_question_is_asked_once_across_clients(server: ChatServer, tmp_path: Path) -> None:
    assert [endpoint(server, tmp_path)(CHAT), endpoint(server, tmp_path)(list(CHAT))] == ["yes", "yes"]
    assert len(server.asked) == 1
    again = endpoint(server, tmp_path)
    again(CHAT)
    assert again.usage == Usage(cached=1)


def test_another_key_finds_the_same_answer_and_no_file_holds_it(server: ChatServer, tmp_path: Path) -> None:
    server.answer = lambda body: completion(f"you said {KEY}")
    assert endpoint(server, tmp_path)(CHAT) == "you said ***"
    other = Endpoint(server.url, "some-model", key="sk-another-secret", cache=tmp_path)
    other(CHAT)
    assert other.usage.cached == 1
    for file in tmp_path.rglob("*"):
        assert "secret" not in file.name
        assert file.is_dir() or b"secret" not in file.read_bytes()


@pytest.mark.parametrize("change", [{"temperature": 1.0}, {"max_tokens": 9}, {"temperature": None}])
def test_other_settings_are_another_question(server: ChatServer, tmp_path: Path, change: dict[str, Any]) -> None:
    endpoint(server, tmp_path)(CHAT)
    endpoint(server, tmp_path, **change)(CHAT)
    Endpoint(server.url, "other-model", cache=tmp_path)(CHAT)
    endpoint(server, tmp_path)(CHAT[1:])
    assert len(server.asked) == 4


def test_failures_are_not_kept(server: ChatServer, tmp_path: Path) -> None:
    server.answers(Say(400), completion("now"))
    ask = endpoint(server, tmp_path)
    refusal(ask)
    assert ask(CHAT) == "now"


def test_replies_that_could_not_be_used_are_not_kept_either(server: ChatServer, tmp_path: Path) -> None:
    server.answers(completion("no JSON"), completion("again none"), completion("{}"))
    with pytest.raises(EndpointError, match="no usable answer in 2 tries"):
        ask_json(endpoint(server, tmp_path), CHAT, lambda value: value, retries=1)
    # The endpoint was mended, or another model answers under that name: asked the same, it is heard.
    assert ask_json(endpoint(server, tmp_path), CHAT, lambda value: value, retries=1) == {}
    server.answers(completion("none"), completion("[]"))
    assert ask_json(endpoint(server, tmp_path), CHAT[1:], lambda value: value) == []
    assert (
        ask_json(endpoint(server, tmp_path), CHAT[1:], lambda value: value) == []
    )  # What was mended on the way is kept.
    assert len(server.asked) == 5


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"reply": 3}', b'{"url": "u", "request": {}, "reply": "x"}', b"\xff"]
)
def test_a_damaged_answer_is_asked_for_again(server: ChatServer, tmp_path: Path, damage: bytes) -> None:
    endpoint(server, tmp_path)(CHAT)
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    whole = file.read_bytes()
    file.write_bytes(damage)
    assert endpoint(server, tmp_path)(CHAT) == "yes"
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_told(server: ChatServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        endpoint(server, tmp_path / "file")(CHAT)


# --- many at once


def _numbered(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": str(number)}]


def test_many_answers_come_in_order_and_not_too_many_at_once(server: ChatServer) -> None:
    def answer(body: dict[str, Any]) -> Say:
        number = int(body["messages"][0]["content"])
        if number == 5:
            return Say(400, b"not this one")
        say = completion(f"answer {number}")
        say.wait_s = 0.05 * (number % 3)
        return say

    server.answer = answer
    found = endpoint(server, concurrency=4).many([_numbered(number) for number in range(12)])
    assert [str(each) for each in found if not isinstance(each, EndpointError)] == [
        f"answer {number}" for number in range(12) if number != 5
    ]
    assert isinstance(found[5], EndpointError)
    assert "not this one" in str(found[5])
    assert 2 <= server.busiest <= 4


def test_none_of_many_is_none(server: ChatServer) -> None:
    assert endpoint(server).many([]) == []
    assert not server.asked


def test_counts_are_right_from_many_threads(server: ChatServer) -> None:
    ask = endpoint(server)
    threads = [threading.Thread(target=ask, args=(CHAT,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ask.usage == Usage(calls=20, prompt_tokens=140, completion_tokens=60)


# --- what is refused before anything is sent


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:80",
        "file:///etc/passwd",
        "http://",
        "https://me:pw@host/v1",
        "http://[x",
        "http://h/v1?k=1",
        "http://h:port/",
        "http://h/a b",
        "http://h/\nx",
        "http://höst/",
        "http://h/#x",
        "ftp://h/",
    ],
)
def test_addresses_that_cannot_be_used_are_refused(url: str) -> None:
    with pytest.raises(EndpointError, match="looks like https://host/v1") as caught:
        Endpoint(url, "m")
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel"])
def test_keys_that_cannot_be_sent_are_refused_unseen(key: str) -> None:
    with pytest.raises(EndpointError, match="API key") as caught:
        Endpoint("http://localhost/v1", "m", key=key)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"timeout_s": 0.0},
        {"timeout_s": float("nan")},
        {"max_tokens": 0},
        {"retries": -1},
        {"concurrency": 0},
        {"temperature": -0.1},
        {"pause_s": -1.0},
        {"longest_pause_s": float("inf")},
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(EndpointError, match=next(iter(settings))):
        ChatSettings(**settings)


def test_a_model_has_a_name() -> None:
    with pytest.raises(EndpointError, match="STEERSMAN_LLM_MODEL"):
        Endpoint("http://localhost/v1", " ")


def test_neither_words_nor_variables_of_an_endpoint_show_the_key() -> None:
    ask = Endpoint("http://localhost/v1", "m", key=KEY)
    assert KEY not in f"{ask!r} {ask} {vars(ask)}"


# --- from the environment


def test_the_environment_names_an_endpoint(server: ChatServer, tmp_path: Path) -> None:
    settings = Settings(cache=tmp_path, llm_url=server.url, llm_model="m", llm_key=KEY, offline=True)
    ask = Endpoint.from_settings(settings, HASTY)
    assert ask(CHAT) == "yes"
    assert server.asked[0][1]["Authorization"] == f"Bearer {KEY}"
    assert [path.name for path in tmp_path.iterdir()] == ["llm"]


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, "STEERSMAN_LLM_URL and STEERSMAN_LLM_MODEL"),
        ({"llm_url": "http://localhost/v1"}, "set STEERSMAN_LLM_MODEL"),
        ({"llm_model": "m"}, "set STEERSMAN_LLM_URL"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, given: dict[str, str], missing: str) -> None:
    with pytest.raises(EndpointError, match=missing):
        Endpoint.from_settings(Settings(cache=tmp_path, **given))


def test_offline_allows_this_machine_alone(tmp_path: Path) -> None:
    for url in ("http://localhost:1/v1", "http://127.0.0.2:1/v1", "http://[::1]:1/v1"):
        Endpoint.from_settings(Settings(cache=tmp_path, offline=True, llm_url=url, llm_model="m"))
    with pytest.raises(EndpointError, match="offline mode"):
        Endpoint.from_settings(Settings(cache=tmp_path, offline=True, llm_url="https://api.host/v1", llm_model="m"))
