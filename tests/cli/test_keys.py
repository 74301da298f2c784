"""`steersman keys` makes the keys that a server's store knows, shows each once, and never again."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.cli.conftest import Run

from steersman.errors import AccessRefused
from steersman.store.store import Store


def test_a_key_is_made_shown_once_listed_and_revoked(run: Run, tmp_path: Path) -> None:
    made = run("keys", "create", "my-laptop", "--folder", tmp_path, "--json").facts
    secret = made.pop("key")
    assert made["owner"] == "my-laptop"
    assert made["scopes"] == ["generate", "read", "train"]
    assert (made["state"], made["expires_at"]) == ("valid", None)
    with Store.open(None, tmp_path) as store:
        assert store.keys.verify(secret).id == made["id"]
        listed = run("keys", "list", "--folder", tmp_path, "--json")
        assert listed.facts == {"keys": [made]}
        assert run("keys", "revoke", made["id"], "--folder", tmp_path, "--json").facts["state"] == "revoked"
        with pytest.raises(AccessRefused, match="revoked"):
            store.keys.verify(secret)
    listed = run("keys", "list", "--folder", tmp_path)
    assert "revoked" in listed.out
    assert secret[17:] not in listed.out


def test_for_people_the_key_stands_alone_on_standard_output(run: Run, tmp_path: Path) -> None:
    arguments = ("--owner", "ann@example.org", "--scope", "read", "--scope", "admin", "--days", 30)
    outcome = run("keys", "create", "the phone", *arguments, "--folder", tmp_path)
    assert outcome.code == 0
    assert re.fullmatch(r"ssm_[0-9a-f]{12}_[A-Za-z0-9_-]{43}\n", outcome.out)
    assert "cannot be shown again" in outcome.err
    with Store.open(None, tmp_path) as store:
        record = store.keys.verify(outcome.out.strip())
    assert (record.owner, record.name, record.scopes) == ("ann@example.org", "the phone", {"read", "admin"})
    assert record.expires_at is not None
    assert abs(record.expires_at - datetime.now(UTC) - timedelta(days=30)) < timedelta(minutes=5)


def test_without_a_folder_keys_are_in_the_cache_and_a_database_may_be_named(
    run: Run, cache: Path, tmp_path: Path
) -> None:
    assert "no keys yet" in run("keys", "list").out
    assert (cache / "server" / "steersman.db").is_file()
    url = f"sqlite:///{tmp_path / 'other.db'}"
    run("keys", "create", "k", "--database", url)
    assert len(run("keys", "list", "--database", url, "--json").facts["keys"]) == 1
    assert run("keys", "list", "--json").facts == {"keys": []}


def test_a_folder_may_begin_at_home_as_for_the_server(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("keys", "create", "k", "--folder", "~/kept").code == 0
    assert (tmp_path / "kept" / "steersman.db").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["create", "k", "--scope", "raed"], "did you mean 'read'"),
        (["create", "my laptop"], "owner"),
        (["create", ""], "key name"),
        (["create", "k", "--days", "0"], "--days"),
        (["create", "k", "--days", "1e300"], "--days"),
        (["create", "k", "--days", "nan"], "--days"),
        (["revoke", "nonsense"], "steersman keys list"),
        (["list", "--database", "mysql://u:hunter2@h/d"], "postgresql://"),
        (["list", "--database", "postgresql://u:hunter2@127.0.0.1:1/d"], "does not answer"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(run: Run, tmp_path: Path, arguments: list[str], said: str) -> None:
    outcome = run("keys", *arguments, "--folder", tmp_path)
    assert outcome.code == 1
    assert said in outcome.err
    assert outcome.err.count("\n") == 1
    assert "hunter2" not in outcome.err
    assert outcome.out == ""
