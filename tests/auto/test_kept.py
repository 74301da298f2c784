"""A stage that is done is not done again, unless the question changed or its file broke."""

from __future__ import annotations

from pathlib import Path

import pytest

from steersman.auto.facts import Candidate, ContrastItem, ContrastSet, Epoch, Tuned
from steersman.auto.kept import Kept, key_of
from steersman.auto.optimise.gradient import Gradient

_TUNED = Tuned(
    weights={3: 0.5, 11: -0.25},
    history=(Epoch(step=0, score=-1.5, weights={3: 0.1}, note="begun"),),
    method="gradient",
)


def _never() -> Tuned:
    raise AssertionError("done again")


def test_a_stage_comes_back_as_it_was(tmp_path: Path) -> None:
    assert Kept(tmp_path / "state", "q").stage("weights", Tuned, lambda: _TUNED) == _TUNED
    assert Kept(tmp_path / "state", "q").stage("weights", Tuned, _never) == _TUNED


def test_every_kind_of_stage_survives_the_way_to_disk(tmp_path: Path) -> None:
    item = ContrastItem(prompt="Hi", positive="Ahoy ☠", negative="Hello")
    results: list[tuple[str, object, object]] = [
        ("contrast", ContrastSet, ContrastSet(train=(item,), validation=(), dropped={"empty": 1}, source="x")),
        ("candidates", list[Candidate], [Candidate(id=1, label=None, sources=("gradient",), score=-0.5)]),
        ("strength", tuple[float, dict[float, float]], (0.25, {0.0: 0.1, 0.25: 0.5})),
    ]
    for name, kind, value in results:
        Kept(tmp_path, 1).stage(name, kind, lambda value=value: value)
        assert Kept(tmp_path, 1).stage(name, kind, _never) == value


def test_another_question_is_answered_anew(tmp_path: Path) -> None:
    Kept(tmp_path, ["pirate", Gradient()]).stage("weights", Tuned, lambda: _TUNED)
    with pytest.raises(AssertionError, match="done again"):
        Kept(tmp_path, ["pirate", Gradient(steps=9)]).stage("weights", Tuned, _never)


@pytest.mark.parametrize("broken", [b"", b"{}", b'{"key": 1', b"[1]", b'{"key": "KEY", "value": {"weights": 3}}'])
def test_a_broken_file_is_made_anew(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "weights.json").write_bytes(broken.replace(b"KEY", key_of("q").encode()))
    assert Kept(tmp_path, "q").stage("weights", Tuned, lambda: _TUNED) == _TUNED
    assert Kept(tmp_path, "q").stage("weights", Tuned, _never) == _TUNED


def test_without_a_folder_nothing_is_kept() -> None:
    made = []
    for _ in range(2):
        Kept(None, "q").stage("weights", Tuned, lambda: made.append(1) or _TUNED)  # type: ignore[func-returns-value]
    assert len(made) == 2
