"""The only reader, and writer, of the environment: where files live, which device and number format to use, which LLM to ask.

| variable | meaning | default |
|---|---|---|
| `STEERSMAN_CACHE` | unpacked assets, model profiles | `$XDG_CACHE_HOME/steersman` or `~/.cache/steersman` |
| `STEERSMAN_DEVICE` | `cpu`, `cuda`, `cuda:1`, `mps` | CUDA where there is one, else the CPU |
| `STEERSMAN_DTYPE` | `bfloat16`, `float16`, `float32` | bfloat16 where the device computes in it, else float32 |
| `STEERSMAN_OFFLINE` | `1`: never open a connection | unset; `HF_HUB_OFFLINE=1` counts too |
| `STEERSMAN_LLM_URL` | an OpenAI-compatible endpoint, such as `http://localhost:8080/v1` | unset: no LLM is asked |
| `STEERSMAN_LLM_MODEL` | the name that the endpoint knows its model by | unset |
| `STEERSMAN_LLM_KEY` | sent to that endpoint alone; appears in no error, log or file | unset: none is sent |

`MKL_CBWR` is set where it is not (`settle_sums`). Nothing is read at import; every caller asks `Settings.from_env()`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from steersman.errors import SteersmanError

DTYPES = ("bfloat16", "float16", "float32")
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"", "0", "false", "no", "off"}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says, checked."""

    cache: Path
    """Folder of unpacked assets and measured profiles; made when first written to."""
    device: str | None = None
    """A torch device, or None to choose."""
    dtype: str | None = None
    """One of `DTYPES`, or None to choose."""
    offline: bool = False
    """Never open a connection to another machine."""
    llm_url: str | None = None
    """Base address of an OpenAI-compatible endpoint; checked where it is used."""
    llm_model: str | None = None
    """What the endpoint calls its model."""
    llm_key: str | None = field(default=None, repr=False)
    """Bearer token of the endpoint."""

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise SteersmanError(f"STEERSMAN_DTYPE={self.dtype!r} is unknown; use one of {', '.join(DTYPES)}")

    @classmethod
    def from_env(cls) -> Self:
        """Read the variables above.

        Raises:
            SteersmanError: a variable holds a value that is not understood.
        """
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        cache = os.environ.get("STEERSMAN_CACHE") or str(Path(home) / "steersman")
        try:
            folder = Path(cache).expanduser()
        except RuntimeError as error:
            raise SteersmanError(f"STEERSMAN_CACHE={cache!r} has no such home folder; give a full path") from error
        return cls(
            cache=folder,
            device=os.environ.get("STEERSMAN_DEVICE") or None,
            dtype=os.environ.get("STEERSMAN_DTYPE") or None,
            offline=_flag("STEERSMAN_OFFLINE") or _flag("HF_HUB_OFFLINE"),
            llm_url=_text("STEERSMAN_LLM_URL"),
            llm_model=_text("STEERSMAN_LLM_MODEL"),
            llm_key=_text("STEERSMAN_LLM_KEY"),
        )


def _text(name: str) -> str | None:
    """A variable without the spaces and line breaks that copying leaves around it."""
    return os.environ.get(name, "").strip() or None


def _flag(name: str) -> bool:
    value = os.environ.get(name, "").strip().lower()
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise SteersmanError(f"{name}={value!r} is neither yes nor no; set it to 1 or leave it out")


def settle_sums() -> None:
    """Ask MKL, which multiplies the small matrices of torch's attention on x86 CPUs, for one order of adding up.

    Unasked, the order follows the operands' alignment, and an answer's last bits follow the thread that computed its row. Takes
    effect before the process's first such product; a choice that is made already (the variable `MKL_CBWR`) stands. It costs
    nothing that could be measured (docs/log.md).
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
