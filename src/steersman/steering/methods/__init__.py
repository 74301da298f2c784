"""Methods fit recipes from examples; one file each. A new one is a file, a line in `METHODS` and a test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from steersman.models.language_model import LanguageModel
from steersman.models.residuals import ModelProfile
from steersman.steering.contrast import Read
from steersman.steering.methods import caa, lat
from steersman.steering.pairs import Pair
from steersman.steering.recipe import Recipe

__all__ = ["METHODS", "Method"]


class Method(Protocol):
    """Fits a recipe from contrast pairs; see `caa.fit` for what the arguments mean."""

    def __call__(
        self,
        model: LanguageModel,
        pairs: Sequence[Pair],
        *,
        profile: ModelProfile,
        layers: Sequence[int],
        name: str,
        read: Read = "answer",
    ) -> Recipe:
        """The fitted recipe.

        Raises:
            DataError: pairs that cannot be used.
            ModelError: a layer that the model does not have.
        """


METHODS: dict[str, Method] = {"caa": caa.fit, "lat": lat.fit}
