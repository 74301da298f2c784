"""A request while it runs: its tokens, text, randomness, guard and steering state. Knows nothing of the batch it runs in."""

from __future__ import annotations

import dataclasses
import math
import random
import secrets
import threading
from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from steersman.engine import guard
from steersman.engine.cache import KVCache
from steersman.engine.guard import GuardEvent
from steersman.engine.request import Chunk, FinishReason, Request, Result, TokenLogprob
from steersman.engine.sampling import choose, logprob_of
from steersman.engine.text import TextStream
from steersman.errors import RequestError, SteersmanError
from steersman.models.language_model import LanguageModel
from steersman.sae.model import SparseAutoencoder
from steersman.steering.plan import Latches
from steersman.steering.recipe import Recipe


class RunningSequence:
    """The mutable side of one request. Only the engine touches it, one thread at a time."""

    def __init__(self, model: LanguageModel, request: Request, *, stream: bool) -> None:
        """Check the request against the model and make it ready to run.

        Raises:
            RequestError: the prompt is empty or does not fit into the context.
            RecipeMismatch: the recipe was made for another model.
        """
        if request.recipe is not None:
            request.recipe.check_fits(model)
        self.request = request
        self.prompt_ids = model.encode(request.prompt)
        room = model.context_tokens - len(self.prompt_ids)
        if room < 1:
            raise RequestError(
                f"the prompt has {len(self.prompt_ids)} tokens; {model.name} reads at most {model.context_tokens - 1} of its "
                f"{model.context_tokens}, as the answer needs one: shorten the prompt"
            )
        self.max_tokens = min(request.sampling.max_tokens, room)
        self.written: list[int] = []
        self.seed = request.sampling.seed if request.sampling.seed is not None else secrets.randbits(53)
        self.strength = request.strength
        self.goes_ahead = False
        """Whether it waits before all that do not."""
        self.saes: Mapping[str, SparseAutoencoder] = {}
        """Those its recipe runs through, by `weights_hash`."""
        self.latches: Latches = {}
        self.events: list[GuardEvent] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: FinishReason | None = None
        self.error: BaseException | None = None
        self.shadow: KVCache | None = None
        """The unsteered model's view of the answer, for the guard; made when it first looks."""
        self.shadow_tokens = 0
        # Text is taken by the caller's thread while another one may be driving.
        self._lock = threading.RLock()
        self._random = random.Random(self.seed)
        self._eos = frozenset() if request.sampling.ignore_eos else model.eos_ids
        self._streams = stream
        self._text = TextStream(model.decode, self.prompt_ids, request.sampling.stop)
        self._decoded = 0
        self._taken = 0
        self._told = 0
        """Tokens whose log-probabilities were taken."""
        self._good_tokens = 0
        self._good_latches: Latches = {}
        """What `since` conditions had seen by then."""

    @property
    def is_done(self) -> bool:
        """Whether nothing more will come."""
        return self.finish_reason is not None or self.error is not None

    @property
    def has_news(self) -> bool:
        """Whether tokens were settled since the last `take`."""
        return self._settled > self._taken

    @property
    def is_steered(self) -> bool:
        """Whether its residual stream is written to: not without edits, nor once the strength is zero."""
        recipe = self.request.recipe
        return recipe is not None and self.strength != 0.0 and any(edit.strength for edit in recipe.edits)

    @property
    def _may_rewind(self) -> bool:
        return self.request.guard.mode == "soften" and self.is_steered

    @property
    def _settled(self) -> int:
        """Tokens that will not be written again."""
        return self._good_tokens if self._may_rewind and not self.is_done else len(self.written)

    @property
    def recipe(self) -> Recipe | None:
        """What steers it now: nothing, once the strength is zero."""
        return self.request.recipe if self.strength != 0.0 else self._unsteered_abort

    @property
    def _unsteered_abort(self) -> Recipe | None:
        recipe = self.request.recipe
        return recipe if recipe is not None and recipe.abort is not None else None

    @property
    def reserved_tokens(self) -> int:
        """Longest the sequence can become."""
        return len(self.prompt_ids) + self.max_tokens

    @property
    def length(self) -> int:
        """Tokens whose keys and values are in the cache: all but the last, which is read next."""
        return len(self.prompt_ids) + len(self.written) - 1

    @property
    def last_token(self) -> int:
        """What is read next: the token written last, or the prompt's last when the answer begins anew."""
        return self.written[-1] if self.written else self.prompt_ids[-1]

    def accept(self, logits: Float[Tensor, " vocab"]) -> None:
        """Choose the next token from the model's logits, and finish when it is the last."""
        with self._lock:
            if not math.isfinite(logits.max()):
                self.fail(
                    RequestError(
                        f"after {len(self.written)} tokens the model's output is not a number any more; lower the strength "
                        f"(it is {self.strength:g})"
                    )
                )
            if not self.is_done:
                self._accept(logits)

    def _accept(self, logits: Float[Tensor, " vocab"]) -> None:
        sampling = self.request.sampling
        if not self.written:
            # What the prompt met stays met, even if the answer is written again from its beginning.
            self._good_latches = dict(self.latches)
        token = choose(logits, sampling, [*self.prompt_ids, *self.written], self._random.random())
        if self.request.logprobs is not None:
            self.logprobs.append(logprob_of(logits, token, self.request.logprobs))
        self.written.append(token)
        if token in self._eos:
            self.finish_reason = "stop"
        elif len(self.written) >= self.max_tokens:
            self.finish_reason = "length"
        self._look_for_stop()

    def watch(self, mean_logprob: float | None) -> None:
        """Let the guard look, and do what it says."""
        event = guard.judge(self.request.guard, self.written, mean_logprob, self.strength)
        with self._lock:
            if self.is_done:
                return
            nothing_to_lower = self.request.guard.mode == "soften" and not self.is_steered
            if event is None or nothing_to_lower:
                self._good_tokens, self._good_latches = len(self.written), dict(self.latches)
                self._look_for_stop()
                return
            if abs(event.strength) < 0.1 * abs(self.request.strength):
                event = dataclasses.replace(event, strength=0.0)
            if self._may_rewind:
                event = dataclasses.replace(event, rewound_to=self._good_tokens)
                self._rewind()
            self.events.append(event)
            self.strength = event.strength
            if self.request.guard.mode == "stop":
                self.finish_reason = "guard"

    def _rewind(self) -> None:
        """Forget what was written since the text was last good. Its keys and values are simply written over."""
        del self.written[self._good_tokens :]
        del self.logprobs[self._good_tokens :]
        self.latches.clear()
        self.latches.update(self._good_latches)
        self.shadow_tokens = min(self.shadow_tokens, len(self.prompt_ids) + self._good_tokens)

    def cancel(self) -> None:
        """End where it stands; does nothing when it is done."""
        with self._lock:
            if not self.is_done:
                self.finish_reason = "cancelled"

    def fail(self, error: BaseException) -> None:
        """End with an error: ours as it is, any other wrapped in `SteersmanError` with its cause attached."""
        self.error = error if isinstance(error, SteersmanError) else SteersmanError(f"generation failed: {error!r}")
        if self.error is not error:
            self.error.__cause__ = error

    def take(self) -> Chunk:
        """Text that was not taken before; with the result once it is done."""
        with self._lock:
            self._taken = self._settled
            result = None if self.finish_reason is None else self.result()
            text = self._text.take(last=result is not None)
            if self.request.logprobs is None or not (text or result is not None):
                return Chunk(text, result)
            # With the text that they belong to: none for half a character, or what may be a stop string.
            fresh, self._told = tuple(self.logprobs[self._told : self._settled]), self._settled
            return Chunk(text, result, fresh)

    def result(self) -> Result:
        """The finished answer."""
        assert self.finish_reason is not None, "a result is asked for when the sequence is done"
        with self._lock:
            self._decode(last=True)
        return Result(
            text=self._text.text,
            token_ids=tuple(self.written),
            finish_reason=self.finish_reason,
            prompt_tokens=len(self.prompt_ids),
            seed=self.seed,
            strength=self.strength,
            guard_events=tuple(self.events),
            logprobs=tuple(self.logprobs),
        )

    def _look_for_stop(self) -> None:
        """Decode what is settled, where somebody reads it or a stop string may be in it."""
        stop = self.request.sampling.stop
        if self._streams or stop:
            self._decode()
            # A stop string in text that is not settled yet ends the answer all the same, as an end token would.
            ahead = self.written[self._decoded :] if stop else []
            if self._text.is_stopped or (ahead and self._text.would_stop(ahead)):
                self.finish_reason = "stop"

    def _decode(self, *, last: bool = False) -> None:
        fresh: Sequence[int] = self.written[self._decoded : self._settled]
        if fresh or last:
            self._text.push(fresh, last=last)
            self._decoded = max(self._decoded, self._settled)
