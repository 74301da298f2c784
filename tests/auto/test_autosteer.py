"""What auto-steering refuses before it begins to work."""

from __future__ import annotations

import pytest

from steersman.auto.autosteer import AutoSettings, autosteer
from steersman.errors import DataError
from steersman.models.language_model import LanguageModel


def test_no_sentence_is_refused_before_any_work(tiny: LanguageModel) -> None:
    with pytest.raises(DataError, match="behaviour is empty"):
        autosteer(tiny, "  ")


@pytest.mark.parametrize("fields", [{"train": 1}, {"test": 0}, {"choices": -1}])
def test_settings_of_auto_steering_that_prove_nothing_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(DataError, match=next(iter(fields))):
        AutoSettings(**fields)  # type: ignore[arg-type]
