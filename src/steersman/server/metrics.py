"""What the server counts, in the words of Prometheus. Each server has its own registry; no label holds what a caller wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from steersman.store.facts import JobState

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
STATES: tuple[JobState, ...] = ("pending", "running", "ready", "failed", "cancelled")


class Metrics:
    """Counters of one server. Safe to share between threads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "steersman_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "steersman_request_seconds",
            "From the request's head to the answer's last byte.",
            ("method", "route"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._first = Histogram(
            "steersman_first_token_seconds",
            "From a request's arrival to the first text of its answer.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._prompted = Counter("steersman_prompt_tokens", "Prompt tokens read.", registry=self.registry)
        self._written = Counter("steersman_written_tokens", "Tokens written.", registry=self.registry)
        self._running = Gauge("steersman_running_requests", "Requests that the engine runs.", registry=self.registry)
        self._waiting = Gauge("steersman_waiting_requests", "Requests that wait for it.", registry=self.registry)
        self._jobs = Gauge("steersman_jobs", "Jobs by state.", ("state",), registry=self.registry)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request; `route` is the template, never the path itself."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def first_token(self, seconds: float) -> None:
        """Note how long a caller waited for the first text."""
        self._first.observe(seconds)

    def tokens(self, prompt_tokens: int, written_tokens: int) -> None:
        """Add an answer's tokens."""
        self._prompted.inc(prompt_tokens)
        self._written.inc(written_tokens)

    def watch(self, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Ask these two whenever somebody looks."""
        self._running.set_function(running)
        self._waiting.set_function(waiting)

    def jobs(self, counts: Mapping[str, int]) -> None:
        """Say how many jobs are in each state; those that are left out have none."""
        for state in STATES:
            self._jobs.labels(state).set(counts.get(state, 0))

    def text(self) -> bytes:
        """Everything, in Prometheus's text format."""
        return generate_latest(self.registry)
