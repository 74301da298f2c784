"""`steersman serve`: what stops it is said in one line, before the model is loaded; what starts says where it answers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from steersman.cli.main import app
from steersman.cli.serve import _example
from steersman.errors import AccessRefused, DataError, ModelError, SteersmanError, StorageError
from steersman.server.run import check_keys, listen
from steersman.server.settings import ServerSettings, is_loopback
from steersman.store.store import Store


def _refused(*options: str) -> SteersmanError:
    """The error that a start ends with."""
    result = CliRunner().invoke(app, ["serve", *options])
    assert isinstance(result.exception, SteersmanError), result.output
    assert "\n" not in str(result.exception)
    return result.exception


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "server")


def test_a_port_that_is_taken(folder: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = _refused("--folder", folder, "--port", str(port), "--model", "no/such")
    assert f"port {port} is in use" in str(error)
    assert "--port" in str(error)
    assert not Path(folder).exists()


@pytest.mark.parametrize("host", ["no-such-name.invalid", "203.0.113.7"])
def test_an_address_that_is_not_this_machines(folder: str, host: str) -> None:
    assert "--host 127.0.0.1" in str(_refused("--folder", folder, "--host", host, "--port", "0"))


def test_other_machines_are_not_let_in_without_a_key(folder: str) -> None:
    error = _refused("--folder", folder, "--host", "0.0.0.0", "--port", "0", "--model", "no/such")
    assert isinstance(error, AccessRefused)
    assert "steersman keys create" in str(error)
    assert "--no-require-keys" in str(_refused("--folder", folder, "--host", "0.0.0.0", "--no-require-keys"))
    assert isinstance(_refused("--folder", folder, "--require-keys", "--port", "0"), AccessRefused)


@pytest.mark.parametrize("origin", ["nonsense", "example.org", "https://", "https://example.org/", "https://a.org/b"])
def test_an_origin_is_a_scheme_and_a_host(folder: str, origin: str) -> None:
    assert "https://example.org" in str(_refused("--folder", folder, "--allow-origin", origin))


def test_with_a_key_they_are(tmp_path: Path) -> None:
    with Store.open(None, tmp_path) as store:
        everywhere = ServerSettings(folder=tmp_path, host="0.0.0.0", port=0)
        with pytest.raises(AccessRefused):
            check_keys(everywhere, store)
        record, _ = store.keys.create("one", "ada", ["read"])
        check_keys(everywhere, store)
        store.keys.revoke(record.id)
        with pytest.raises(AccessRefused):
            check_keys(everywhere, store)
        check_keys(ServerSettings(folder=tmp_path), store)


def test_a_database_out_of_reach(folder: str) -> None:
    error = _refused("--folder", folder, "--port", "0", "--database", "postgresql://me:hush@127.0.0.1:1/none")
    assert isinstance(error, StorageError)
    assert "hush" not in str(error)
    assert isinstance(_refused("--folder", folder, "--port", "0", "--database", "nonsense"), DataError)
    assert isinstance(_refused("--folder", "/dev/null/x", "--port", "0"), StorageError)


def test_a_model_that_is_not_there(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERSMAN_OFFLINE", "1")
    error = _refused("--folder", folder, "--port", "0", "--model", f"{folder}/no-model")
    assert isinstance(error, ModelError)


@pytest.mark.parametrize("options", ["--port 70000", "--max-tokens 0", "--grace -1", "--portt 1", "--rate nan"])
def test_options_that_make_no_sense(folder: str, options: str) -> None:
    result = CliRunner().invoke(app, ["serve", "--folder", folder, *options.split()])
    assert result.exit_code != 0
    assert not Path(folder).exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"port": -1},
        {"max_tokens": 0},
        {"rate_per_minute": float("nan")},
        {"grace_s": float("inf")},
        {"job_workers": -1},
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(SteersmanError, match=next(iter(changes))):
        ServerSettings(**{"folder": tmp_path, **changes})


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True), ("127.1.2.3", True), ("localhost", True), ("LocalHost.", True), ("::1", True),
        ("0.0.0.0", False), ("::", False), ("", False), ("192.168.0.1", False), ("example.org", False),
        ("127.0.0.1.nip.io", False),
    ],
)  # fmt: skip
def test_which_addresses_only_this_machine_reaches(host: str, is_local: bool) -> None:
    assert is_loopback(host) == is_local


def test_a_password_is_never_shown(tmp_path: Path) -> None:
    settings = ServerSettings(folder=tmp_path, database="postgresql://me:hush@db.example/name?password=hush")
    assert "hush" not in repr(settings)
    assert settings.kept_in == "postgresql://db.example/name"


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:7"),
        ("0.0.0.0", "http://127.0.0.1:7"),
        ("::", "http://[::1]:7"),
        ("::1", "http://[::1]:7"),
    ],
)
def test_the_address_is_one_that_can_be_opened(tmp_path: Path, host: str, address: str) -> None:
    settings = ServerSettings(folder=tmp_path, host=host, port=7)
    assert settings.address == address
    assert f"curl {address}/v1/chat/completions" in _example(settings)


def test_a_port_of_ones_own_choice_or_any(tmp_path: Path) -> None:
    with (
        listen(ServerSettings(folder=tmp_path, port=0)) as one,
        listen(ServerSettings(folder=tmp_path, port=0)) as other,
    ):
        assert one.getsockname()[1] != other.getsockname()[1]


@pytest.mark.model
def test_it_starts_with_no_configuration_answers_and_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "steersman", "serve", "--port", "0", "--folder", str(tmp_path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stderr is not None
            ready = json.loads(process.stderr.readline())
            assert ready["message"] == "ready"
            assert Path(ready["kept_in"]).parent == tmp_path
            with httpx2.Client(base_url=ready["address"], timeout=60) as client:
                assert client.get("/readyz").json() == {"status": "ok"}
                body = {"model": "default", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}
                assert client.post("/v1/chat/completions", json=body).json()["usage"]["completion_tokens"] == 4
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, err
    assert "Traceback" not in err


@pytest.mark.model
def test_a_job_that_still_computes_is_given_back_and_does_not_spoil_the_end(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "steersman", "serve", "--port", "0", "--folder", str(tmp_path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--grace", "0.1"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    ) as process:
        try:
            assert process.stderr is not None
            address = json.loads(process.stderr.readline())["address"]
            words = {"positive_examples": ["cheerful", "sunny"], "negative_examples": ["gloomy", "bitter"]}
            with httpx2.Client(base_url=address, timeout=60) as client:
                client.post("/steerable-model", json={"model_label": "t", "control_dimensions": {"mood": words}})
                while client.get("/steerable-model").json()["data"][0]["status"] == "pending":
                    time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, err
    assert "terminate" not in err
    with Store.open(None, tmp_path) as store:
        [job], _ = store.jobs.list("local")
        assert (job.state, job.attempts) == ("pending", 0)
