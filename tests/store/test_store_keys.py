"""API keys: the one that was shown works until it expires or is revoked, and no other does."""

from __future__ import annotations

import hmac
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.store.rooms import Clock, Room

from steersman.errors import AccessRefused, DataError, NotFound
from steersman.store import keys
from steersman.store.facts import SCOPES
from steersman.store.store import Store

_few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_a_key_works_after_a_restart_and_is_kept_nowhere(room: Room, store: Store) -> None:
    record, secret = store.keys.create("laptop", "ann@example.org", ["generate", "read", "read"])
    assert record.scopes == {"read", "generate"}
    assert secret.startswith(f"ssm_{record.id}_")
    assert len(secret) == 4 + 12 + 1 + 43
    assert store.keys.verify(secret) == record
    with room.open() as again:
        assert again.keys.verify(secret) == record
        assert again.keys.list() == [record]
    if room.kind == "sqlite":
        random_part = secret[17:].encode()
        assert not any(random_part in path.read_bytes() for path in room.folder.iterdir() if path.is_file())


def test_every_key_is_another(store: Store) -> None:
    assert len({store.keys.create("k", "ann", SCOPES)[1] for _ in range(20)}) == 20
    assert len(store.keys.list()) == 20


@_few
@given(data=st.data())
def test_a_key_that_is_a_little_wrong_is_unknown(store: Store, data: st.DataObject) -> None:
    _, secret = store.keys.create("k", "ann", ["read"])
    kind = data.draw(st.sampled_from(["cut", "grown", "changed", "other id", "text"]))
    place = data.draw(st.integers(0, len(secret) - 1))
    wrong = {
        "cut": secret[:place],
        "grown": secret + data.draw(st.text(st.characters(), min_size=1, max_size=3)),
        "changed": secret[:place] + ("A" if secret[place] != "A" else "B") + secret[place + 1 :],
        "other id": "ssm_000000000000_" + secret[17:],
        "text": data.draw(st.text(st.characters(), max_size=80)),
    }[kind]
    with pytest.raises(AccessRefused, match="not known") as caught:
        store.keys.verify(wrong)
    assert not caught.value.is_known
    assert secret[17:] not in str(caught.value)
    assert not wrong or wrong not in str(caught.value) or len(wrong) < 4


@pytest.mark.parametrize("wrong", ["\0", "ssm_\0", "\ud800", "ssm_' OR 1=1 --_" + "a" * 43, "x" * 1_000_000])
def test_a_key_that_is_none_is_unknown(store: Store, wrong: str) -> None:
    store.keys.create("k", "ann", ["read"])
    with pytest.raises(AccessRefused, match="not known"):
        store.keys.verify(wrong)


def test_a_key_expires_at_its_time(store: Store, clock: Clock) -> None:
    east = timezone(timedelta(hours=9))
    record, secret = store.keys.create("k", "ann", ["read"], (clock.now + timedelta(seconds=10)).astimezone(east))
    assert record.expires_at == clock.now + timedelta(seconds=10)
    clock.move(9.999)
    assert store.keys.verify(secret).expires_at == record.expires_at
    assert store.keys.any_valid()
    clock.move(0.001)
    with pytest.raises(AccessRefused, match="expired"):
        store.keys.verify(secret)
    assert not store.keys.any_valid()
    # Who does not have the key does not learn that it was one.
    with pytest.raises(AccessRefused, match="not known"):
        store.keys.verify(secret[:-1] + ("A" if secret[-1] != "A" else "B"))


def test_a_revoked_key_stops_at_once_and_others_do_not(store: Store, clock: Clock) -> None:
    assert not store.keys.any_valid()
    one, first = store.keys.create("one", "ann", ["read"])
    _, second = store.keys.create("two", "ann", ["admin"])
    revoked = store.keys.revoke(one.id)
    assert revoked.revoked_at == clock.now
    clock.move(5)
    assert store.keys.revoke(one.id) == revoked
    with pytest.raises(AccessRefused, match="revoked"):
        store.keys.verify(first)
    assert store.keys.verify(second).scopes == {"admin"}
    assert store.keys.any_valid()
    for unknown in ("", "0" * 12, "\0", "\ud800", "' OR 1=1 --", first):
        with pytest.raises(NotFound):
            store.keys.revoke(unknown)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "a\0"},
        {"name": "\ud800"},
        {"name": "x" * 101},
        {"owner": ""},
        {"owner": "a b"},
        {"owner": "'; DROP TABLE api_keys"},
        {"scopes": []},
        {"scopes": ["raed"]},
        {"scopes": ["\0"]},
        {"expires_at": datetime(2040, 1, 1)},
        {"expires_at": datetime(2001, 1, 1, tzinfo=timezone.utc)},  # noqa: UP017
    ],
)
def test_a_key_that_will_not_do_is_refused(store: Store, wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        store.keys.create(**{"name": "k", "owner": "ann", "scopes": ["read"], **wrong})
    assert store.keys.list() == []


def test_a_misspelt_scope_is_guessed(store: Store) -> None:
    wrong: Any = ["genrate"]
    with pytest.raises(DataError, match="did you mean 'generate'"):
        store.keys.create("k", "ann", wrong)


@_few
@given(name=st.text(st.characters(), max_size=110))
def test_a_key_may_have_any_printable_name(store: Store, name: str) -> None:
    try:
        record, secret = store.keys.create(name, "ann", ["read"])
    except DataError:
        assert not name.strip() or not name.replace("\u3000", " ").isprintable() or len(name) > 100
        return
    assert store.keys.verify(secret).name == record.name == name


def test_every_verification_compares_once_in_constant_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _, secret = store.keys.create("k", "ann", ["read"])
    compared: list[tuple[str, str]] = []
    real = hmac.compare_digest

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    store.keys.verify(secret)
    for wrong in (secret[:-1], secret[:17] + "A" * 43, "ssm_000000000000_" + "A" * 43, "nonsense", ""):
        with pytest.raises(AccessRefused):
            store.keys.verify(wrong)
    assert len(compared) == 6
    # Hashes are compared, not keys: how long a wrong one is does not show either.
    assert {len(text) for pair in compared for text in pair} == {64}
