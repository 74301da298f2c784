"""The whole of auto-steering on the bundled model: a sentence in, a recipe with its evidence out, and on again after a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from steersman.auto.autosteer import AutoSettings, autosteer
from steersman.auto.optimise.gradient import Gradient
from steersman.auto.retrieve import RetrievalSettings
from steersman.auto.writing import SLOTS
from steersman.engine.engine import Engine, EngineLimits
from steersman.models.language_model import LanguageModel
from steersman.steering.recipe_file import load_recipe, save_recipe

_FEW = AutoSettings(
    train=8, validation=3, test=4, choices=8, retrieval=RetrievalSettings(gradient=24, contrast=8, search=4)
)


class _Stop(KeyboardInterrupt):
    pass


@pytest.mark.model
def test_a_sentence_becomes_a_recipe_with_evidence(bundled: LanguageModel, tmp_path: Path) -> None:
    engine = Engine(bundled, EngineLimits(slots=SLOTS))

    def steer(report: Any) -> Any:
        return autosteer(
            engine,
            "Explain things in a way that children can understand.",
            optimiser=Gradient(features=4, steps=6),
            settings=_FEW,
            report=report,
            folder=tmp_path / "progress",
        )

    stopped: list[str] = []

    def stopping(event: str, facts: dict[str, Any]) -> None:
        stopped.append(event)
        if event == "stage" and facts["name"] == "strength":
            raise _Stop

    with pytest.raises(_Stop):
        steer(stopping)
    assert "step" in stopped
    gone_on: list[str] = []
    result = steer(lambda event, _: gone_on.append(event))
    assert "step" not in gone_on  # The weights were there already.
    assert "contrast" not in gone_on

    assert 1 <= len(result.features) <= 4
    assert set(result.evidence.scores) == {"plain", "steered", "prompted", "random"}
    assert all(each.product.n == each.product.total == 4 for each in result.evidence.scores.values())
    assert result.evidence.judges == ("likelihood", "embedding")
    assert result.evidence.choice_accuracy.n == 8
    assert result.evidence.examples[0].steered != result.evidence.examples[0].plain
    proven_on = {example.prompt for example in result.evidence.examples}
    assert not proven_on & {item.prompt for item in (*result.contrast.train, *result.contrast.validation)}
    save_recipe(result.recipe, tmp_path / "recipe.json")
    assert load_recipe(tmp_path / "recipe.json").evidence == result.recipe.evidence
