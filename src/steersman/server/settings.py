"""What a server is told when it starts: where it listens, what it loads, where it keeps things, how much it allows.

Knows nothing of how any of it is done. The command line makes it from its options.
"""

from __future__ import annotations

import ipaddress
import math
from dataclasses import field
from pathlib import Path
from urllib.parse import urlsplit

from steersman.errors import SteersmanError
from steersman.facts import fact

_MOST_DAYS = 36_500


@fact
class ServerSettings:
    """One server."""

    folder: Path
    """Database (where none is named), tensors and the work of jobs."""
    host: str = "127.0.0.1"
    port: int = 8765
    """0 takes any free port."""
    model: str = "default"
    """`default` (the bundled model), a hub id, a local folder or a .gguf file."""
    device: str | None = None
    dtype: str | None = None
    database: str | None = field(default=None, repr=False)
    """SQLAlchemy URL; None is an SQLite file in `folder`. May hold a password, so it is never shown."""
    require_keys: bool | None = None
    """None: where the store has a valid key when the server starts. Off the loopback interface keys are always required."""
    allowed_origins: tuple[str, ...] = ()
    """Web pages of these origins (`https://example.org`) may call from a browser; by default none."""
    max_body_bytes: int = 1 << 20
    """Largest body of a request."""
    max_upload_bytes: int = 64 << 20
    """Largest body of a request that brings a recipe."""
    max_tokens: int = 1024
    """Most tokens that one answer may have."""
    slots: int = 16
    """Requests that the engine runs at once."""
    max_queue: int = 64
    """Requests that may wait for a slot; more are refused with 503."""
    request_timeout_s: float = 300.0
    """Longest a request may take until its answer begins, and longest that a reader may keep a stream waiting."""
    rate_per_minute: float = 600.0
    """Requests a minute and key, in the long run."""
    rate_burst: int = 60
    """Requests a key may send at once after a pause."""
    job_workers: int = 1
    """Jobs that run at once."""
    keep_jobs_days: float = 30.0
    """How long jobs are kept that have ended, with their events; 0 is for ever. What they made stays."""
    max_watchers: int = 128
    """Streams of job events that may be open at once; more are refused with 503."""
    max_watchers_per_key: int = 32
    """Of these, those that one key may have open; without keys only the number in all counts."""
    steering: Path | None = None
    """Recipe that steers every answer, unless a request says otherwise."""
    routes: Path | None = None
    """Table of conditions and recipes that chooses the steering by the prompt."""
    log_prompts: bool = False
    """Write what was sent into the log."""
    grace_s: float = 30.0
    """How long running answers may go on once the server is told to end."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise SteersmanError(f"port must lie between 0 and 65535, not {self.port}")
        whole = ("max_body_bytes", "max_upload_bytes", "max_tokens", "slots", "max_queue", "rate_burst")
        for name in (*whole, "max_watchers", "max_watchers_per_key"):
            if getattr(self, name) < 1:
                raise SteersmanError(f"{name} must be 1 or more, not {getattr(self, name)}")
        for name in ("request_timeout_s", "rate_per_minute"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise SteersmanError(f"{name} must be a finite number above 0, not {getattr(self, name)}")
        for origin in self.allowed_origins:
            parts = urlsplit(origin)
            if origin != "*" and (not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}"):
                raise SteersmanError(f"an origin is a scheme and a host, such as https://example.org, not {origin!r}")
        if not (math.isfinite(self.grace_s) and self.grace_s >= 0):
            raise SteersmanError(f"grace_s must be 0 or a finite number above it, not {self.grace_s}")
        if self.job_workers < 0:
            raise SteersmanError(f"job_workers must be 0 (jobs wait) or more, not {self.job_workers}")
        if not 0 <= self.keep_jobs_days <= _MOST_DAYS:
            raise SteersmanError(f"keep_jobs_days must be 0 (for ever) to {_MOST_DAYS}, not {self.keep_jobs_days}")
        if self.require_keys is False and not self.is_loopback:
            raise SteersmanError(
                f"{self.host} can be reached from other machines, so keys are required there: leave out --no-require-keys, "
                "or listen on 127.0.0.1"
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)

    @property
    def kept_in(self) -> str:
        """Where the database is, for people: without its user and password."""
        if self.database is None:
            return str(self.folder / "steersman.db")
        parts = urlsplit(self.database)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def address(self) -> str:
        """Base address of the server, for this machine where it listens everywhere."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether a host name or address (without port or brackets) always means this machine."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
