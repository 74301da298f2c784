"""The SAEs that running recipes need: found once, checked against the model, kept on its device. Knows nothing of requests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from steersman.errors import SaeError
from steersman.models.language_model import LanguageModel
from steersman.sae.config import SaeRef
from steersman.sae.model import SparseAutoencoder
from steersman.steering.edits import SaeEdit
from steersman.steering.recipe import Recipe

Resolver = Callable[[SaeRef], SparseAutoencoder]
"""Finds the SAE that a recipe names; raises `SaeError` where there is none."""


class SaeCache:
    """SAEs by their `weights_hash`, found when the first recipe asks for them. Safe to share between threads."""

    def __init__(self, model: LanguageModel, resolve: Resolver) -> None:
        self._model = model
        self._resolve = resolve
        self._lock = threading.Lock()
        self._held: dict[str, SparseAutoencoder] = {}

    def needed_by(self, recipe: Recipe | None) -> Mapping[str, SparseAutoencoder]:
        """The SAEs of the recipe's `weight` and `swap` edits, by `weights_hash`; empty where it has none.

        Raises:
            SaeError: one cannot be found, is another than the recipe names, or is of another model or layer.
            RecipeError: an edit does not score each of its latents.
        """
        needed = {}
        for edit in recipe.edits if recipe else ():
            if isinstance(edit, SaeEdit):
                sae = self._get(edit.sae)
                sae.check_fits(self._model.ref, edit.layer)
                if sae.config.d_model != self._model.d_model:
                    raise SaeError(
                        f"the SAE {edit.sae.id!r} reads residuals of {sae.config.d_model} dimensions; {self._model.name} has "
                        f"{self._model.d_model}: choose an SAE of that model"
                    )
                edit.check_fits(sae.config)
                needed[edit.sae.weights_hash] = sae
        return needed

    def clear(self) -> None:
        """Forget them all; requests that run keep theirs."""
        with self._lock:
            self._held.clear()

    def _get(self, ref: SaeRef) -> SparseAutoencoder:
        # Held while an SAE is loaded: two threads that want the same one must not load it twice.
        with self._lock:
            if ref.weights_hash not in self._held:
                sae = self._resolve(ref)
                if sae.weights_hash != ref.weights_hash:
                    raise SaeError(
                        f"the SAE found for {ref.id!r} has weights {sae.weights_hash[:8]}, the recipe was made with "
                        f"{ref.weights_hash[:8]}; hand over that one, or fit the recipe again"
                    )
                self._held[ref.weights_hash] = sae.to(self._model.device)
            return self._held[ref.weights_hash]
