"""Keep a feature index: `index.json` for the facts and labels, `index.safetensors` for everything else, in one folder.

The JSON names the hash of the tensors, so that two files that do not belong together, or a damaged one, are noticed. How
tensors are narrowed and what is refused stands in `packing`. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save

from steersman.errors import SaeError, did_you_mean
from steersman.facts import fact
from steersman.files import replacing, sha256_file
from steersman.sae.config import SaeRef
from steersman.sae.file import read_weights
from steersman.sae.index.facts import FORMAT, FeatureIndex, IndexFacts, Label
from steersman.sae.index.packing import packed, unpacked

FACTS_FILE = "index.json"
TENSORS_FILE = "index.safetensors"


@fact
class _Stored:
    """`index.json`."""

    facts: IndexFacts
    tensors_sha256: str
    labels: tuple[Label | None, ...]


def save_index(index: FeatureIndex, folder: Path) -> None:
    """Write the index into `folder` (made if need be); what was there before stays whole until the new one is.

    Raises:
        SaeError: the index holds NaN, ids that do not exist, or tensors that do not fit each other.
        StorageError: the disk refused.
    """
    tensors_to_write = packed(index)
    tensors, facts = folder / TENSORS_FILE, folder / FACTS_FILE
    # Both are written before either is renamed.
    with replacing(tensors) as new_tensors, replacing(facts) as new_facts:
        new_tensors.write_bytes(save(tensors_to_write, metadata={"format": "pt"}))
        stored = _Stored(facts=index.facts, tensors_sha256=sha256_file(new_tensors), labels=index.labels)
        raw = _adapter().dump_python(stored, mode="json") | {
            "labels": _label_adapter().dump_python(index.labels, exclude_defaults=True)
        }
        new_facts.write_text(json.dumps(raw, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def load_index(folder: Path, sae: SaeRef | None = None, *, n_vocab: int | None = None) -> FeatureIndex:
    """Read an index written by `save_index`; 8,192 features take some hundredths of a second.

    Args:
        folder: of the two files.
        sae: the SAE that it must be of; None takes any.
        n_vocab: how many tokens its model has; None does not check that they exist.

    Raises:
        SaeError: no index, a damaged one, one of another format or another SAE, or values that cannot be.
    """
    path = folder / TENSORS_FILE
    stored = _stored(folder / FACTS_FILE)
    if sae is not None and stored.facts.sae.weights_hash != sae.weights_hash:
        raise SaeError(
            f"{folder} is the index of another SAE ({stored.facts.sae.id}) than {sae.id}; "
            "make one of this SAE: steersman sae index"
        )
    if path.is_file() and sha256_file(path) != stored.tensors_sha256:
        raise SaeError(f"{path} is damaged, or of another index than the {FACTS_FILE} beside it; restore both files")
    return unpacked(read_weights(path), stored.facts, stored.labels, where=str(path), n_vocab=n_vocab)


# --- facts and labels


@cache
def _adapter() -> TypeAdapter[_Stored]:
    return TypeAdapter(_Stored)


@cache
def _label_adapter() -> TypeAdapter[tuple[Label | None, ...]]:
    return TypeAdapter(tuple[Label | None, ...])


def _stored(path: Path) -> _Stored:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SaeError(
            f"there is no feature index ({path}: {error.strerror}); make one: steersman sae index"
        ) from error
    try:
        stored = _adapter().validate_json(data)
    except (ValidationError, SaeError) as error:
        raise SaeError(f"{path} {_explain(data, error)}") from error
    if stored.facts.format != FORMAT:
        raise SaeError(f"{path} {_other_format(stored.facts.format)}")
    return stored


def _explain(data: bytes, error: ValidationError | SaeError) -> str:
    """Why `index.json` could not be read. A file of another format has other fields: that comes first."""
    try:
        raw = json.loads(data)
    except ValueError as problem:  # Not UTF-8 is one too.
        return f"is no valid JSON ({problem}); restore both files"
    facts = raw.get("facts") if isinstance(raw, dict) else None
    if isinstance(facts, dict) and facts.get("format", FORMAT) != FORMAT:
        return _other_format(facts["format"])
    if isinstance(error, SaeError):
        return f"is damaged: {error}"
    first = error.errors()[0]
    where, name = ".".join(map(str, first["loc"])) or "the file", str(first["loc"][-1]) if first["loc"] else ""
    if first["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        known = {*_Stored.__dataclass_fields__, *IndexFacts.__dataclass_fields__, *Label.__dataclass_fields__}
        return f"has an unknown field '{where}'{did_you_mean(name, known)}"
    if first["type"].startswith("missing"):
        return f"has no '{where}'; restore both files"
    return f"is damaged: {where}: {first['msg']}"


def _other_format(found: Any) -> str:
    return f"is not of index format {FORMAT} (it says {found!r}); is steersman up to date?"
