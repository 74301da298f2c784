"""Continuous batching: requests join and leave one running batch, each steered by its own recipe.

A step is: admit waiting requests, prefill a bounded piece of their prompts, decode one token for every running row. Nobody
owns a thread: whoever waits for an answer drives the steps, and all running requests move together. At any time one
thread drives; the others sleep until their answer is there. A server starts many requests and calls `step` itself.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from steersman.engine.batch import DecodeBatch, PrefillBatch
from steersman.engine.request import Chunk, Request, Result
from steersman.engine.runner import Runner
from steersman.engine.saes import Resolver, SaeCache
from steersman.engine.sequence import RunningSequence
from steersman.engine.shadow import mean_logprob
from steersman.engine.ticket import Ticket
from steersman.errors import RequestError
from steersman.facts import fact
from steersman.models.language_model import LanguageModel
from steersman.models.residuals import ModelProfile, load_profile
from steersman.sae.library import resolve
from steersman.sae.model import SparseAutoencoder
from steersman.settings import Settings
from steersman.steering.recipe import Recipe


@fact
class EngineLimits:
    """How much runs at once."""

    slots: int = 16
    """Requests in the running batch."""
    kv_tokens: int = 32_768
    """Tokens of keys and values, rows times longest row; what does not fit waits. A single request is never refused for it."""
    prefill_tokens: int = 512
    """Prompt tokens between two decode steps, so that a long prompt does not stall running answers."""
    idle_prefill_tokens: int = 2048
    """The same while nothing is being decoded."""

    def __post_init__(self) -> None:
        for name in ("slots", "kv_tokens", "prefill_tokens", "idle_prefill_tokens"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} must be 1 or more, not {getattr(self, name)}")


class Engine:
    """Generates for many callers at once. Safe to share between threads."""

    def __init__(
        self,
        model: LanguageModel,
        limits: EngineLimits | None = None,
        *,
        profile: ModelProfile | None = None,
        cache: Path | None = None,
        saes: Resolver | None = None,
    ) -> None:
        """Make an engine; it holds no thread and no hook, and its memory grows with what runs.

        Args:
            model: what generates; several engines may share it.
            limits: how much runs at once.
            profile: mean residual norms; by default from the cache, measured the first time.
            cache: folder of profiles and SAEs; by default the settings'.
            saes: finds the SAE that a recipe's `weight` or `swap` edit names; by default in the library in `cache`.

        Raises:
            UnsupportedModel: the architecture keeps no ordinary keys and values.
        """
        self.model = model
        self.limits = limits or EngineLimits()
        self.profile = profile or load_profile(model, cache or Settings.from_env().cache)
        self._runner = Runner(model)
        self._saes = SaeCache(model, saes or (lambda ref: resolve(ref, cache or Settings.from_env().cache)))
        self._waiting: deque[RunningSequence] = deque()
        self._admitted: list[RunningSequence] = []
        self._prefill: PrefillBatch | None = None
        self._decode = DecodeBatch(self._runner, self.profile.mean_norms)
        self._read = 0  # Prompt tokens since the last decode step.
        self._turn = threading.Condition()
        self._driving = False
        self._steps = 0

    def generate(
        self, requests: Sequence[Request], *, on_done: Callable[[int, Result], None] | None = None
    ) -> list[Result]:
        """Answer all requests, in order; they run together with those of other threads.

        Args:
            requests: what to answer.
            on_done: called with (index, result) as each one ends, in the order they end.

        Raises:
            RequestError: a request is wrong; none of them is run.
            RecipeMismatch: a recipe is for another model; none of them is run.
            SaeError: the SAE of a recipe is not there, or of another model or layer; none of them is run.
        """
        tickets = [self.prepare(request) for request in requests]
        try:
            for ticket in tickets:
                self.start(ticket)
            told: set[int] = set()
            while len(told) < len(tickets):
                ended = [index for index, ticket in enumerate(tickets) if ticket.is_done and index not in told]
                for index in ended:
                    told.add(index)
                    if on_done is not None:
                        on_done(index, tickets[index].result())
                if not ended:
                    self._drive(lambda: any(t.is_done for i, t in enumerate(tickets) if i not in told))
            return [ticket.result() for ticket in tickets]
        finally:
            for ticket in tickets:
                ticket.cancel()

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Answer one request piece by piece; the last chunk carries the result. Leaving the loop early cancels it.

        Raises:
            RequestError, RecipeMismatch, SaeError: before the first chunk.
        """
        return self._pieces(self.prepare(request, stream=True))

    def submit(self, request: Request) -> Ticket:
        """Put a request into the queue and return at once; `Ticket.result` waits for the answer.

        Raises:
            RequestError, RecipeMismatch, SaeError: the request is wrong.
        """
        ticket = self.prepare(request)
        self.start(ticket)
        return ticket

    def prepare(self, request: Request, *, stream: bool = False) -> Ticket:
        """Check a request and get all that it needs; `start` it then. With `stream`, its text may be taken as it comes.

        Raises:
            RequestError, RecipeMismatch, SaeError: the request is wrong.
        """
        sequence = RunningSequence(self.model, request, stream=stream)
        sequence.saes = self.saes_for(request.recipe)
        return Ticket(sequence, self._drive)

    def start(self, ticket: Ticket, *, ahead: bool = False) -> None:
        """Put a prepared request into the queue, once; with `ahead`, before all that were put there without."""
        sequence = ticket.sequence
        sequence.goes_ahead = ahead
        with self._turn:
            before = sum(other.goes_ahead for other in self._waiting) if ahead else len(self._waiting)
            self._waiting.insert(before, sequence)

    def step(self) -> None:
        """Run one step, or wait for the one that runs. Its error ends who took part; it is raised where nobody did."""
        before = self._steps
        self._drive(lambda: self._steps != before)

    def saes_for(self, recipe: Recipe | None) -> Mapping[str, SparseAutoencoder]:
        """The SAEs of a recipe's `weight` and `swap` edits, by `weights_hash`, found once and kept; empty where it has none.

        Raises:
            SaeError, RecipeError: as for a request with that recipe.
        """
        return self._saes.needed_by(recipe)

    def close(self) -> None:
        """Cancel what runs and give the memory back; the engine can be used again."""
        with self._turn:
            # First, so that whoever drives comes to an end; and again, for what was on its way from one list to another.
            self._cancel_all()
            self._turn.wait_for(lambda: not self._driving)
            self._cancel_all()
            self._waiting.clear()
            self._saes.clear()
            self._reset()
            self._turn.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pieces(self, ticket: Ticket) -> Iterator[Chunk]:
        self.start(ticket)
        try:
            while True:
                self._drive(lambda: ticket.has_news)
                chunk = ticket.take()
                if chunk.text or chunk.result is not None:
                    yield chunk
                if chunk.result is not None:
                    return
        finally:
            ticket.cancel()

    def _drive(self, is_enough: Callable[[], bool]) -> None:
        """Run steps, or sleep while another thread runs them, until `is_enough`."""
        while True:
            with self._turn:
                self._turn.wait_for(lambda: is_enough() or not self._driving)
                if is_enough():
                    return
                self._driving = True
            try:
                self._step()
            except BaseException as error:
                # A half-done step leaves the batch in an unknown state: end all that took part, with the reason.
                part = [sequence for sequence in self._started() if not sequence.is_done]
                for sequence in part:
                    sequence.fail(error)
                self._reset()
                # Whoever asked for a failed answer raises its error; who drives may have asked for another one.
                if not part or not isinstance(error, Exception):
                    raise
            finally:
                with self._turn:
                    self._driving = False
                    self._steps += 1
                    self._turn.notify_all()

    def _step(self) -> None:
        """Read prompts, or write a token in every running row: what either brought is told before the other begins.

        New prompts go first, so that who asks waits for one pass at most; after `prefill_tokens` of them the rows have a turn.
        """
        self._decode.drop_finished()
        self._admit()
        is_due = self._read < self.limits.prefill_tokens or not self._decode.sequences
        if self._prefill is not None and is_due:
            self._read += self._prefill.next_tokens
            self._watch(self._prefill.advance())
            if self._prefill.is_complete:
                self._decode.drop_finished()  # Again: a row that was cancelled meanwhile has been given away already.
                self._decode.join(self._prefill)
                self._prefill = None
        else:
            self._read = 0
            if self._decode.sequences:
                self._watch(self._decode.advance())

    def _watch(self, sequences: Sequence[RunningSequence]) -> None:
        """Let the guards of those that just wrote a token look, where it is time."""
        for sequence in sequences:
            if sequence.request.guard.is_due(len(sequence.written)) and not sequence.is_done:
                sequence.watch(mean_logprob(self._runner, sequence))

    def _admit(self) -> None:
        """Start prefilling as many waiting requests as slots, memory and the prefill budget allow."""
        if self._prefill is not None:
            return
        busy = [sequence for sequence in self._decode.sequences if not sequence.is_done]
        budget = self.limits.prefill_tokens - self._read if busy else self.limits.idle_prefill_tokens
        chosen = self._admitted = []
        with self._turn:
            while self._waiting:
                if self._waiting[0].is_done:  # Cancelled while it waited.
                    self._waiting.popleft()
                    continue
                rows = [*busy, *chosen, self._waiting[0]]
                width = max(len(sequence.prompt_ids) for sequence in [*chosen, self._waiting[0]])
                memory = len(rows) * max(sequence.reserved_tokens for sequence in rows)
                full = len(rows) > self.limits.slots or (len(rows) > 1 and memory > self.limits.kv_tokens)
                if full or ((chosen or self._read) and width * (len(chosen) + 1) > budget):
                    break
                chosen.append(self._waiting[0])
                self._waiting.popleft()
        if chosen:
            chunk = max(1, budget // len(chosen))
            self._prefill = PrefillBatch(self._runner, self.profile.mean_norms, chosen, chunk)
        self._admitted = []

    def _cancel_all(self) -> None:
        for sequence in [*self._waiting, *self._started()]:
            sequence.cancel()

    def _started(self) -> list[RunningSequence]:
        staged = self._prefill.sequences if self._prefill is not None else []
        return [*self._admitted, *staged, *self._decode.sequences]

    def _reset(self) -> None:
        self._prefill, self._admitted, self._read = None, [], 0
        self._decode = DecodeBatch(self._runner, self.profile.mean_norms)
