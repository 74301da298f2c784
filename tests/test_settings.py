"""Settings: what the environment says, read when asked, refused when it makes no sense."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from steersman.errors import SteersmanError
from steersman.settings import DTYPES, Settings, settle_sums

_LLM = ("STEERSMAN_LLM_URL", "STEERSMAN_LLM_MODEL", "STEERSMAN_LLM_KEY")
_VARIABLES = ("STEERSMAN_CACHE", "STEERSMAN_DEVICE", "STEERSMAN_DTYPE", "STEERSMAN_OFFLINE", *_LLM)


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*_VARIABLES, "HF_HUB_OFFLINE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_bare_environment_leaves_every_choice_open(tmp_path: Path) -> None:
    assert Settings.from_env() == Settings(
        cache=tmp_path / ".cache" / "steersman", device=None, dtype=None, offline=False
    )


def test_cache_is_the_named_folder_else_below_xdg_else_below_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Settings.from_env().cache == tmp_path / "xdg" / "steersman"
    monkeypatch.setenv("STEERSMAN_CACHE", "~/own")
    assert Settings.from_env().cache == tmp_path / "own"


def test_empty_variables_count_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = Settings.from_env()
    for name in (*_VARIABLES, "HF_HUB_OFFLINE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")
    assert Settings.from_env() == bare


def test_nothing_is_made_by_reading(tmp_path: Path) -> None:
    Settings.from_env()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_known_dtypes_pass(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setenv("STEERSMAN_DTYPE", dtype)
    assert Settings.from_env().dtype == dtype


def test_unknown_dtype_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERSMAN_DTYPE", "float8")
    with pytest.raises(SteersmanError) as refused:
        Settings.from_env()
    assert all(dtype in str(refused.value) for dtype in (*DTYPES, "float8"))


@pytest.mark.parametrize("variable", ["STEERSMAN_OFFLINE", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize(
    ("value", "offline"),
    [
        ("1", True),
        ("TRUE", True),
        ("yes", True),
        (" on ", True),
        ("0", False),
        ("False", False),
        ("no", False),
        ("off", False),
    ],
)
def test_either_variable_switches_the_network_off(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, offline: bool
) -> None:
    monkeypatch.setenv(variable, value)
    assert Settings.from_env().offline is offline


def test_one_no_does_not_undo_the_other_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERSMAN_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert Settings.from_env().offline


def test_a_flag_that_is_neither_yes_nor_no_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERSMAN_OFFLINE", "perhaps")
    with pytest.raises(SteersmanError, match=r"STEERSMAN_OFFLINE.*perhaps"):
        Settings.from_env()


def test_a_home_that_does_not_exist_is_a_settings_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERSMAN_CACHE", "~no-such-user-here/cache")
    with pytest.raises(SteersmanError, match="STEERSMAN_CACHE"):
        Settings.from_env()


def test_settings_do_not_change(tmp_path: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings(cache=tmp_path).offline = True  # type: ignore[misc]


def test_the_endpoint_is_read_without_the_space_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(_LLM, ("http://localhost:8080/v1 ", " some-model", "sk-1234567890\n"), strict=True):
        monkeypatch.setenv(name, value)
    settings = Settings.from_env()
    assert (settings.llm_url, settings.llm_model) == ("http://localhost:8080/v1", "some-model")
    assert settings.llm_key == "sk-1234567890"


def test_settings_do_not_show_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERSMAN_LLM_KEY", "sk-1234567890")
    settings = Settings.from_env()
    assert "1234567890" not in f"{settings!r} {settings}"


def test_sums_are_settled_unless_somebody_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    settle_sums()
    assert os.environ["MKL_CBWR"] == "AVX2"
    monkeypatch.delenv("MKL_CBWR")
    settle_sums()
    assert os.environ["MKL_CBWR"] == "AUTO,STRICT"
