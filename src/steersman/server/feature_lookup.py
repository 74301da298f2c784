"""The features of a server's model: its SAE, the index of it and the sentence encoder, each loaded once, when first needed.

Work runs in a few threads of its own, so that neither the event loop nor the threads of other routes wait for it; more than
some may not wait. Whatever runs the model holds its lock for one pass at a time. Knows nothing of HTTP.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import anyio.to_thread

from steersman.errors import Busy, Conflict, NotFound
from steersman.models.language_model import LanguageModel, Prompt
from steersman.models.sentence_encoder import TextEncoder, load_encoder
from steersman.sae.config import SaeRef
from steersman.sae.index.contrast import Contrast, contrast
from steersman.sae.index.facts import FeatureIndex
from steersman.sae.index.file import load_index
from steersman.sae.index.inspect import Inspection, Read, inspect
from steersman.sae.index.passages import Reader
from steersman.sae.index.search import Hit, Neighbour, neighbours, search
from steersman.sae.library import SaeEntry, list_saes
from steersman.sae.model import SparseAutoencoder
from steersman.steering.edits import Add
from steersman.steering.features import add_features

T = TypeVar("T")

_AT_ONCE = 2
_MOST_WAITING = 16


@dataclass(frozen=True, slots=True)
class Shelf:
    """An SAE of the model and what is known of its features."""

    name: str
    """In the library."""
    sae: SparseAutoencoder
    index: FeatureIndex
    reader: Reader
    """Turns the tokens of contexts into text."""

    @property
    def ref(self) -> SaeRef:
        """What recipes call the SAE."""
        return self.sae.ref(self.name)

    def label(self, feature: int) -> str | None:
        """What a feature is called; None where it has no label."""
        label = self.index.labels[feature]
        return None if label is None else label.text

    def check(self, feature: int) -> None:
        """Refuse a feature that is not there.

        Raises:
            NotFound: with the numbers that are.
        """
        if not 0 <= feature < len(self.index):
            raise NotFound(f"feature {feature} does not exist; the SAE '{self.name}' has 0 to {len(self.index) - 1}")

    def near(self, feature: int) -> list[Neighbour]:
        """Features that write nearly the same."""
        return neighbours(self.index, feature)


class FeatureLookup:
    """Finds, shows and compares features. Safe to share between threads."""

    def __init__(
        self,
        model: LanguageModel,
        *,
        cache: Path | None = None,
        encoder: Callable[[], TextEncoder] = load_encoder,
        at_once: int = _AT_ONCE,
        most_waiting: int = _MOST_WAITING,
    ) -> None:
        """Load nothing yet.

        Args:
            model: the server's.
            cache: whose SAE library; by default the one that the settings name.
            encoder: makes the sentence encoder of searches.
            at_once: threads that work at the same time.
            most_waiting: requests that may wait for one of them.
        """
        self.model = model
        self._cache, self._load_encoder = cache, encoder
        self._limiter = anyio.CapacityLimiter(at_once)
        self._most_waiting, self._waiting = most_waiting, 0
        self._lock = threading.Lock()
        self._shelf: Shelf | None = None
        self._encoder: TextEncoder | None = None

    async def run(self, work: Callable[[], T]) -> T:
        """Do blocking work in one of the threads.

        Raises:
            Busy: too much waits already.
        """
        if self._waiting >= self._most_waiting + self._limiter.total_tokens:
            raise Busy("too many requests look at features at the same time; try again in a moment")
        self._waiting += 1
        try:
            # A caller that is gone, or out of time, does not wait for the thread; the thread keeps its place until it ends.
            return await anyio.to_thread.run_sync(work, limiter=self._limiter, abandon_on_cancel=True)
        finally:
            self._waiting -= 1

    @property
    def shelf(self) -> Shelf:
        """The SAE of the model and its index; the shipped one where that fits, else the first of the library that does.

        Raises:
            Conflict: the model has none.
            SaeError: its files are damaged.
        """
        with self._lock:
            if self._shelf is None:
                self._shelf = self._opened(self._entry())
            return self._shelf

    def search(self, query: str, n: int, max_density: float | None) -> list[Hit]:
        """Features nearest in meaning; see `steersman.sae.index.search.search`.

        Raises:
            Conflict, SaeError: as `shelf`; an index without embeddings.
            RequestError, DataError: an empty query.
            ModelError: the sentence encoder cannot be read.
        """
        shelf = self.shelf
        return search(shelf.index, query, self._sentences(), n=n, max_density=max_density)

    def contrast(self, positives: Sequence[Prompt], negatives: Sequence[Prompt], n: int, read: Read) -> Contrast:
        """Features that tell two lists of texts apart; see `steersman.sae.index.contrast.contrast`.

        Raises:
            Conflict, SaeError: as `shelf`.
            DataError, RequestError: texts that cannot be compared.
        """
        shelf = self.shelf
        return contrast(self.model, shelf.sae, positives, negatives, n=n, read=read, index=shelf.index)

    def inspect(self, content: Prompt, n: int, read: Read) -> Inspection:
        """What fires on which token; see `steersman.sae.index.inspect.inspect`.

        Raises:
            Conflict, SaeError: as `shelf`.
            DataError, RequestError: a text that cannot be read.
        """
        shelf = self.shelf
        return inspect(self.model, shelf.sae, content, n_per_token=n, read=read, index=shelf.index)

    def edit(self, weights: Mapping[int, float], strength: float) -> Add:
        """An edit that adds features, named by their labels.

        Raises:
            Conflict, SaeError: as `shelf`; a feature that does not exist.
            RecipeError: a dead feature, or weights that add up to nothing.
        """
        shelf = self.shelf
        there = [feature for feature in weights if 0 <= feature < len(shelf.index)]
        labels = {feature: label for feature in there if (label := shelf.label(feature)) is not None}
        return add_features(shelf.sae, weights, strength=strength, labels=labels)

    def _entry(self) -> SaeEntry:
        for entry in list_saes(self._cache):
            model = entry.config.model
            if model is not None and model.matches(self.model.ref) and entry.index_folder.is_dir():
                return entry
        raise Conflict(
            f"there is no SAE with a feature index for the server's model '{self.model.name}'; make one with: "
            "steersman sae train, then: steersman sae index"
        )

    def _opened(self, entry: SaeEntry) -> Shelf:
        sae = entry.load(str(self.model.device))
        sae.check_fits(self.model.ref)
        index = load_index(entry.index_folder, sae.ref(entry.name), n_vocab=self.model.n_vocab)
        return Shelf(entry.name, sae, index, Reader(self.model.tokenizer))

    def _sentences(self) -> TextEncoder:
        with self._lock:
            if self._encoder is None:
                self._encoder = self._load_encoder()
            return self._encoder
