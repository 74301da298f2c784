"""Embed short texts by meaning with a sentence encoder: the bundled all-MiniLM-L6-v2, a hub id or a local folder.

What a sentence-transformers folder says of itself is heeded: how the tokens are pooled, and where texts are cut. Of its modules
the transformer, pooling (mean or first token) and normalising are known; a folder with others is refused, never read wrongly.
Knows nothing of what is embedded, or why.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from steersman.errors import DataError, ModelError, StorageError
from steersman.files import storage_errors
from steersman.models.assets import ASSETS
from steersman.models.fetch import Progress, fetch
from steersman.models.load import DEFAULT, choose_device
from steersman.settings import Settings

NEUTRAL = (
    "a word",
    "a list of things",
    "the beginning of a sentence",
    "text about something",
    "names of people and places",
    "what somebody said",
    "numbers and dates",
    "the end of a paragraph",
    "a question and its answer",
    "common words in English",
    "punctuation marks",
    "how something is done",
    "a description of an object",
    "an opinion",
    "formal writing",
    "a story",
    "a conversation",
    "something technical",
    "words that describe",
    "verbs about doing something",
    "a place",
    "time and duration",
    "an explanation",
    "science",
    "everyday life",
)
"""Texts that ask for nothing in particular."""

_BUNDLED = "all-minilm-l6-v2"
_MAX_TOKENS = 256
_BATCH = 64
_MODULES = {"Transformer", "Pooling", "Normalize"}
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "1_Pooling/config.json")


class TextEncoder(Protocol):
    """Whatever turns texts into unit vectors."""

    @property
    def name(self) -> str:
        """What an index made with it remembers."""

    @property
    def width(self) -> int:
        """Length of an embedding."""

    @property
    def neutral(self) -> Float[Tensor, " width"]:
        """Mean embedding of texts that ask for nothing in particular: likeness to it means little."""

    def encode(self, texts: Sequence[str]) -> Float[Tensor, "texts width"]:
        """One embedding of norm 1 a text, float32 on the CPU."""


@dataclass(frozen=True)
class SentenceEncoder:
    """A loaded sentence encoder. Any number of threads may use it."""

    hf: Any
    """The transformers model (`AutoModel`), in eval mode, float32."""
    tokenizer: Any
    name: str
    """Last part of what it was loaded as, in lower case: the same model from the hub, a folder or the bundle has one name."""
    max_tokens: int = _MAX_TOKENS
    """Longer texts are cut; counted in word pieces, the two that frame a text among them."""
    pooling: Literal["mean", "first"] = "mean"
    """How token vectors become one: their mean, padding left out, or the first token's."""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    """Held while the tokenizer works: its padding and truncation are state."""

    @property
    def width(self) -> int:
        """Length of an embedding."""
        return int(self.hf.config.hidden_size)

    @cached_property
    def neutral(self) -> Float[Tensor, " width"]:
        """Mean embedding of `NEUTRAL`, computed once. Some texts are like every other; this is what they are like."""
        return self.encode(NEUTRAL).mean(0)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch: int = _BATCH) -> Float[Tensor, "texts width"]:
        """Embeddings of norm 1, float32 on the CPU, in the order of the texts; no texts give no rows.

        Texts of similar length are run together. What stands beside a text changes its embedding by rounding only.

        Raises:
            DataError: an empty text, which means nothing, or one that is no valid Unicode.
        """
        for number, text in enumerate(texts):
            _check(text, number)
        made = torch.zeros(len(texts), self.width)
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            made[rows] = self._embed([texts[row] for row in rows]).cpu()
        return made

    def _embed(self, texts: list[str]) -> Float[Tensor, "texts width"]:
        with self.lock:
            inputs = self.tokenizer(
                texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            )
        inputs = {name: tensor.to(self.hf.device) for name, tensor in inputs.items()}
        hidden: Tensor = self.hf(**inputs).last_hidden_state
        if self.pooling == "first":
            return F.normalize(hidden[:, 0], dim=-1)
        # Reimers and Gurevych, arXiv:1908.10084, section 3: the mean over tokens. Its length is lost in normalising, so the
        # sum does.
        return F.normalize((hidden * inputs["attention_mask"].unsqueeze(-1)).sum(1), dim=-1)


def load_encoder(
    name: str = DEFAULT,
    *,
    device: str | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> SentenceEncoder:
    """Load a sentence encoder in float32.

    Args:
        name: `default` (the bundled one), a hub id or a local folder with safetensors weights.
        device: a torch device; the CPU by default, which answers a query in some milliseconds and leaves a GPU to the model.
        settings: by default read from the environment.
        progress: called with (bytes done, bytes in all) while the bundled encoder is fetched the first time.

    Raises:
        ModelError: the encoder cannot be found or read, or does more than we know; `AssetError` for the bundled one.
        StorageError: the cache cannot be written.
    """
    settings = settings or Settings.from_env()
    place = choose_device(device or "cpu")
    folder = _folder(name, settings, progress)
    pooling, max_tokens = _pooling(folder, name), _max_tokens(folder)
    from transformers import AutoModel, AutoTokenizer

    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            hf = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(f"cannot read the sentence encoder in {folder}: {first}") from error
    limit = int(getattr(hf.config, "max_position_embeddings", None) or max_tokens)
    known = _BUNDLED if name == DEFAULT else Path(name).name.lower()
    return SentenceEncoder(
        hf=hf.to(place).eval().requires_grad_(False),
        tokenizer=tokenizer,
        name=known,
        max_tokens=min(max_tokens, limit),
        pooling=pooling,
    )


def _folder(name: str, settings: Settings, progress: Progress | None) -> Path:
    """Where the encoder's files are; fetched if need be."""
    if name == DEFAULT:
        return fetch(ASSETS[_BUNDLED], settings, progress)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{name} holds no sentence encoder: there is no config.json in it")
        return path
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelError(f"{name} does not exist; give a folder, a hub id or 'default' as the sentence encoder")
    return _download(name, settings)


def _download(name: str, settings: Settings) -> Path:
    from huggingface_hub import constants, snapshot_download

    try:
        with storage_errors(Path(constants.HF_HUB_CACHE)):
            return Path(snapshot_download(name, allow_patterns=list(_FILES), local_files_only=settings.offline))
    except StorageError:
        raise
    except Exception as error:
        if settings.offline:
            raise ModelError(
                f"{name} is not on this machine and STEERSMAN_OFFLINE or HF_HUB_OFFLINE is set; unset it or use 'default'"
            ) from error
        if type(error).__name__ in {"RepositoryNotFoundError", "GatedRepoError", "HFValidationError"}:
            raise ModelError(
                f"unknown sentence encoder {name!r} on the hub (or it is private: log in with `hf auth login`)"
            ) from error
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"cannot fetch {name}: {first}; is the hub reachable? 'default' needs no network") from error


def _pooling(folder: Path, name: str) -> Literal["mean", "first"]:
    """How the folder says that tokens are pooled; the mean where it says nothing.

    Raises:
        ModelError: in a way that is not known here.
    """
    modules = _json(folder / "modules.json", [])
    kinds = {str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules if isinstance(module, dict)}
    said = _json(folder / "1_Pooling" / "config.json", {})
    modes = {key for key, value in said.items() if key.startswith("pooling_mode_") and value is True}
    strange = sorted(kinds - _MODULES) or sorted(modes - {"pooling_mode_mean_tokens", "pooling_mode_cls_token"})
    if strange or len(modes) > 1:
        raise ModelError(
            f"the sentence encoder {name} uses {', '.join(strange or sorted(modes))}, which steersman does not read; "
            "use one with mean or first-token pooling"
        )
    return "first" if modes == {"pooling_mode_cls_token"} else "mean"


def _max_tokens(folder: Path) -> int:
    said = _json(folder / "sentence_bert_config.json", {}).get("max_seq_length")
    return said if isinstance(said, int) and said >= 2 else _MAX_TOKENS


def _json(path: Path, absent: Any) -> Any:
    """What a JSON file holds; `absent` where it is not there.

    Raises:
        ModelError: it is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return absent
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}; fetch the sentence encoder again") from error
    if type(found) is not type(absent):
        raise ModelError(f"{path} is not what a sentence encoder has there; fetch it again")
    return found


def _check(text: str, number: int) -> None:
    if not text.strip():
        raise DataError(f"text {number} is empty; there is nothing to embed")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"text {number} holds half a character (a lone surrogate) at {error.start}; remove it"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' bar and its report of weights that an encoder does without."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
