"""An evaluation as files: results.json, a CSV row a method, a CSV row an answer, and the report for people beside them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from steersman.evals.facts import MEASURES, Evaluation, MethodResult, Sample
from steersman.evals.report import html
from steersman.files import write_bytes

RESULTS, TABLE, ANSWERS, REPORT = "results.json", "results.csv", "answers.csv", "report.html"
RESULT_FILES = (RESULTS, TABLE, ANSWERS, REPORT)
"""All that is written, and replaced."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_results(found: Evaluation, folder: Path) -> Path:
    """Write all of them; each file whole or not at all.

    Returns:
        Where the report is.

    Raises:
        StorageError: the disk refused.
    """
    write_bytes(folder / RESULTS, (json.dumps(facts_of(found), indent=2, ensure_ascii=True) + "\n").encode())
    write_bytes(folder / TABLE, _csv(rows_of(found)))
    answers = ({name: getattr(each, name) for name in (f.name for f in fields(Sample))} for each in found.samples)
    write_bytes(folder / ANSWERS, _csv(answers))
    write_bytes(folder / REPORT, html(found).encode("utf-8", "replace"))
    return folder / REPORT


def facts_of(found: Evaluation, *, samples: bool = False) -> dict[str, Any]:
    """The evaluation as JSON values; what could not be measured is None. The answers only where they are asked for."""
    made = asdict(found)
    if not samples:
        del made["samples"]
    return dict(_finite(made))


def rows_of(found: Evaluation) -> list[dict[str, Any]]:
    """A row a method: means, intervals, n scored of n, tests."""
    return [_row(result) for result in found.methods]


def _row(result: MethodResult) -> dict[str, Any]:
    row: dict[str, Any] = {"method": result.name, "control": result.control}
    row |= {f"strength_{half}": each for half, each in zip(("first", "second"), result.strengths, strict=True)}
    for measure in MEASURES:
        each = result.scores[measure]
        row |= {measure: each.mean, f"{measure}_low": each.low, f"{measure}_high": each.high}
        row |= {f"{measure}_n": each.n, f"{measure}_total": each.total}
    row["best_product_in_sample"] = result.best_product
    for ref in ("prompt", "plain", "random"):
        paired = result.against.get(ref)
        row[f"minus_{ref}"] = paired.difference.mean if paired else None
        row[f"minus_{ref}_low"] = paired.difference.low if paired else None
        row[f"minus_{ref}_high"] = paired.difference.high if paired else None
        row[f"p_{ref}"], row[f"p_holm_{ref}"] = (paired.p, paired.p_holm) if paired else (None, None)
    row |= {"note": result.note, "error": result.error}
    return row


def _csv(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """UTF-8 with a header; missing numbers are empty cells."""
    there: Sequence[Mapping[str, Any]] = list(rows)
    if not there:
        return b""
    made = io.StringIO(newline="")
    writer = csv.DictWriter(made, list(there[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in there)
    return made.getvalue().encode("utf-8", "replace")


def _cell(value: Any) -> Any:
    """Texts that a spreadsheet would take for a formula get an apostrophe: answers come from a model."""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value


def _finite(value: Any) -> Any:
    """The same with None in place of infinity and NaN, which JSON has not."""
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
