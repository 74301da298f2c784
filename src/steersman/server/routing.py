"""Which recipe steers a request, by what its prompt says: routes whose conditions are examples or features. Off without a table.

A prompt is compared with examples by sentence embeddings, or read by the model for an SAE's features. Encoder and SAE are loaded
once, when they are first needed. Any number of threads may ask. Knows prompts and names; nothing of HTTP, of requests, or of what
a recipe does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from steersman.auto.prompts import general_prompts, normalised
from steersman.errors import DataError, RequestError, SaeError
from steersman.models.language_model import LanguageModel, chat
from steersman.models.residuals import read_residuals
from steersman.models.sentence_encoder import TextEncoder, load_encoder
from steersman.models.spans import in_common
from steersman.sae.library import find_sae
from steersman.sae.model import SparseAutoencoder
from steersman.server.route import Route
from steersman.server.route_table import Choose, Rule, read_table
from steersman.steering.methods.thresholds import Cut, best_cut

MOST_TOKENS, _MOST_CHARACTERS = 512, 16_384
"""How far into a prompt features are read, so that a decision stays cheap. The sentence encoder has a bound of its own."""

_GOOD_F1, _USELESS_F1 = 0.7, 0.5
"""On the examples: below the first a log line warns, below the second no server starts (docs/routing.md has the measure)."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Ready:
    """What is read once: embeddings of the examples, thresholds, the encoder and the SAE."""

    thresholds: Mapping[str, float]
    """By route."""
    cuts: Mapping[str, Cut]
    """Where they were chosen."""
    embedded: Mapping[str, Float[Tensor, "examples width"]]
    encoder: TextEncoder | None
    sae: SparseAutoencoder | None


class Router:
    """A table of routes, ready to be asked."""

    def __init__(
        self,
        rules: Sequence[Rule],
        *,
        choose: Choose = "first",
        model: LanguageModel | None = None,
        encoder: Callable[[], TextEncoder] = load_encoder,
        sae: Callable[[], SparseAutoencoder] | None = None,
    ) -> None:
        """Make a router; nothing is read yet.

        Args:
            rules: of the table, in order.
            choose: between several that match.
            model: reads prompts for the routes by feature.
            encoder: loads the sentence encoder, when it is first needed.
            sae: loads the SAE; by default the shipped one.

        Raises:
            DataError: no rules, two of one name, or one by feature without a model.
        """
        names = [rule.name for rule in rules]
        if not rules:
            raise DataError("the table has no routes; write a [[route]], or leave routing off")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"two routes are called {twice!r}; give each its own 'name'")
        if choose not in ("first", "best"):
            raise DataError(f"'choose' must be 'first' or 'best', not {choose!r}")
        self._features = sorted({rule.feature for rule in rules if rule.feature is not None})
        if self._features and model is None:
            raise DataError("routes by 'feature' need the model that reads the prompts; hand it over, or use examples")
        self.rules, self.choose, self._model = tuple(rules), choose, model
        self._load_encoder, self._load_sae = encoder, sae or (lambda: find_sae().load())
        self._lock = threading.Lock()
        self._made: _Ready | None = None

    @classmethod
    def from_file(
        cls,
        path: Path,
        *,
        model: LanguageModel | None = None,
        encoder: Callable[[str], TextEncoder] = load_encoder,
        sae: Callable[[str], SparseAutoencoder] | None = None,
    ) -> Router:
        """Read a table; the loaders get the names that stand in it, by default `default`.

        Raises:
            DataError: unreadable, no TOML, an unknown key, or a route that makes no sense; the message names it.
        """
        table = read_table(path)
        load_sae = sae or (lambda name: find_sae(name).load(str(model.device) if model is not None else "cpu"))
        try:
            return cls(
                table.rules,
                choose=table.choose,
                model=model,
                encoder=lambda: encoder(table.encoder),
                sae=lambda: load_sae(table.sae),
            )
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    def warm(self) -> Mapping[str, Cut]:
        """Read what is needed now rather than at the first request; the thresholds that were chosen, and how well they part.

        Raises:
            ModelError: no such encoder.
            SaeError: no such SAE or feature, or one of another model.
            DataError: a threshold cannot be chosen.
        """
        return self._ready().cuts

    def route(self, prompt: str) -> Route | None:
        """The route for what a user says; None where no condition holds, and for a prompt without a word.

        Raises:
            RequestError: the prompt is no valid Unicode.
            ModelError: as `warm`, the first time.
        """
        if not prompt.strip():
            return None
        ready, began = self._ready(), time.perf_counter()
        scores, places = self._scores(ready, prompt)
        matching = [rule for rule in self.rules if scores[rule.name] > ready.thresholds[rule.name]]
        if not matching:
            return None
        chosen = matching[0]
        if self.choose == "best":
            chosen = max(matching, key=lambda rule: _margin(rule, scores[rule.name], ready.thresholds[rule.name]))
        score, threshold = scores[chosen.name], ready.thresholds[chosen.name]
        return Route(
            name=chosen.name,
            recipe=chosen.recipe,
            strength=chosen.strength,
            score=score,
            threshold=threshold,
            why=_why(chosen, places.get(chosen.name), score, threshold),
            ms=(time.perf_counter() - began) * 1e3,
        )

    def scores(self, prompt: str) -> dict[str, tuple[float, float]]:
        """Score and threshold of every route, by name: for whoever writes a table."""
        ready = self._ready()
        found = self._scores(ready, prompt)[0] if prompt.strip() else dict.fromkeys(ready.thresholds, 0.0)
        return {name: (score, ready.thresholds[name]) for name, score in found.items()}

    def refuse_useless(self) -> None:
        """Prepare all, as `warm` does, and refuse routes that would steer what they should not.

        Raises:
            DataError: a route's examples are told from general prompts with an F1 below 0.5, and no threshold was given.
        """
        for name, cut in self.warm().items():
            if cut.f1 < _USELESS_F1:
                raise DataError(
                    f"route {name!r}: its examples can hardly be told from general prompts (F1 {cut.f1:.2f}); give ten or more "
                    "that are alike, leave the route out, or set a threshold to have it all the same"
                )

    def _ready(self) -> _Ready:
        with self._lock:
            if self._made is None:
                self._made = self._prepared()
            return self._made

    def _prepared(self) -> _Ready:
        by_example = [rule for rule in self.rules if rule.examples]
        encoder = self._load_encoder() if by_example else None
        sae = self._load_sae() if self._features else None
        if sae is not None:
            assert self._model is not None
            sae.check_fits(self._model.ref)
            if self._features[-1] >= sae.config.d_sae:
                raise SaeError(f"feature {self._features[-1]} does not exist; the SAE has {sae.config.d_sae} of them")
        thresholds, cuts, embedded = dict[str, float](), dict[str, Cut](), dict[str, Tensor]()
        shipped, neutral = general_prompts(), None
        for rule in self.rules:
            if encoder is None or not rule.examples:
                thresholds[rule.name] = rule.above or 0.0
                continue
            different = list({normalised(example): example for example in rule.examples}.values())
            embedded[rule.name] = encoder.encode(different)
            if rule.threshold is None:
                neutral = encoder.encode(shipped) if neutral is None else neutral
                known = {normalised(example) for example in different}
                apart = torch.tensor([normalised(text) not in known for text in shipped])
                cut = cuts[rule.name] = _chosen(rule, embedded[rule.name], neutral[apart])
                if cut.f1 < _GOOD_F1:
                    _log.warning("route %r: F1 %.2f on its examples; give more, or leave it out", rule.name, cut.f1)
            thresholds[rule.name] = cuts[rule.name].threshold if rule.threshold is None else rule.threshold
        return _Ready(thresholds, cuts, embedded, encoder, sae)

    def _scores(self, ready: _Ready, prompt: str) -> tuple[dict[str, float], dict[str, int]]:
        """Of every route, and which example was nearest; one pass of the encoder, and of the model where features are read."""
        prompt = prompt[:_MOST_CHARACTERS]
        scores, places = dict[str, float](), dict[str, int]()
        try:
            text = ready.encoder.encode([prompt])[0] if ready.encoder is not None else None
        except DataError as error:
            raise RequestError(f"the prompt cannot be routed: {error}") from error
        peaks = self._peaks(ready.sae, prompt) if ready.sae is not None else {}
        for rule in self.rules:
            if rule.feature is not None:
                scores[rule.name] = peaks[rule.feature]
                continue
            assert text is not None
            cosines = ready.embedded[rule.name] @ text
            places[rule.name] = int(cosines.argmax())
            mean = F.normalize(ready.embedded[rule.name].sum(0), dim=0)
            scores[rule.name] = float(cosines.max() if rule.match == "nearest" else mean @ text)
        return scores, places

    @torch.no_grad()
    def _peaks(self, sae: SparseAutoencoder, prompt: str) -> dict[int, float]:
        """Largest activation of each feature on the user's words, as they stand in a chat where the model knows chats."""
        assert self._model is not None
        ids, start, stop = users_words(self._model, prompt)
        # From the beginning on, as it is read in earnest, but never without end.
        stop = min(stop, start + MOST_TOKENS, self._model.context_tokens)
        if start >= stop:
            return dict.fromkeys(self._features, 0.0)
        layer = sae.config.layer
        hidden = read_residuals(self._model, [ids[:stop]], [layer])[0][layer]
        # The first token is not among the residuals.
        acts = sae.encode_features(hidden[start - 1 :].to(sae.device), self._features).amax(0)
        return dict(zip(self._features, acts.tolist(), strict=True))


def users_words(model: LanguageModel, prompt: str) -> tuple[list[int], int, int]:
    """Tokens of a prompt, and which of them are the user's: without what the chat template writes, and never the first."""
    if not model.is_chat:
        ids = model.encode(prompt)
        return ids, 1, len(ids)
    ids, one, other = (model.encode(chat(text)) for text in (prompt, "0", "1"))
    before, behind = in_common(one, other), in_common(one[::-1], other[::-1])
    return ids, max(before, 1), len(ids) - behind


def _chosen(rule: Rule, embedded: Float[Tensor, "n width"], neutral: Float[Tensor, "m width"]) -> Cut:
    """The threshold that best tells the examples, each scored by the others alone, from prompts on many things."""
    if rule.match == "nearest":
        own = (embedded @ embedded.T).fill_diagonal_(-1.0).amax(1)
        others = (neutral @ embedded.T).amax(1)
    else:
        rest = F.normalize(embedded.sum(0) - embedded, dim=1)
        own = (rest * embedded).sum(1)
        others = neutral @ F.normalize(embedded.sum(0), dim=0)
    return best_cut([*own.tolist(), *others.tolist()], [True] * len(own) + [False] * len(others))


def _margin(rule: Rule, score: float, threshold: float) -> float:
    """How far above its threshold a score lies, from 0 to 1, so that cosines and activations can be compared."""
    return (score - threshold) / max(1 - threshold if rule.feature is None else score, 1e-6)


def _why(rule: Rule, place: int | None, score: float, threshold: float) -> str:
    if rule.feature is not None:
        return f"feature {rule.feature} peaks at {score:.2f}, above {threshold:.2f}"
    like = f"example {(place or 0) + 1}" if rule.match == "nearest" else "the mean of its examples"
    return f"cosine {score:.2f} with {like}, above {threshold:.2f}"
