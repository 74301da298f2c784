"""Run an experiment: every combination once, a line of JSON for each as it ends, then a table and a plot.

    FOLDER/runs.jsonl      a line a run: what it was, what came out
    FOLDER/results.json    rows of the table      table.md   the same to read
    FOLDER/scores.svg      score against epoch    scores.png
    FOLDER/setup.json      what all runs share: model, SAE, examples, sizes

Interrupted, it goes on where it stopped: runs that the log holds are not repeated. A run that fails is logged with its
reason, and run again the next time. Knows nothing of how one combination is run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from pydantic import JsonValue, TypeAdapter, ValidationError

from steersman.auto.compare_report import Ended, Outcome, Row, drawn, rows_of, table_of
from steersman.auto.experiment import Experiment, Run, runs_of
from steersman.errors import DataError, SteersmanError
from steersman.facts import fact
from steersman.files import replacing, storage_errors, write_bytes

LOG_FILE, SETUP_FILE = "runs.jsonl", "setup.json"


@fact
class Comparison:
    """What an experiment came to."""

    rows: tuple[Row, ...]
    ended: tuple[Ended, ...]
    """Every run, in the experiment's order."""
    repeated: int
    """Runs that were taken from the log."""

    @property
    def failed(self) -> tuple[Ended, ...]:
        """Runs without an outcome."""
        return tuple(each for each in self.ended if each.outcome is None)


def compare(
    experiment: Experiment,
    run_one: Callable[[Run], Outcome],
    folder: Path,
    *,
    setup: Mapping[str, JsonValue] | None = None,
    on_run: Callable[[Ended, int, int], None] | None = None,
) -> Comparison:
    """Run all combinations that the folder's log does not hold yet.

    Args:
        experiment: what to compare.
        run_one: does one combination; an error of steersman's own fails that run alone.
        folder: of the log and the results; made where it is not there.
        setup: what all runs share beside the experiment, by name; runs of another setup are never taken from a folder.
        on_run: called after each run with its end, how many are done, and how many there are.

    Raises:
        DataError: a log that cannot be read, or of another setup.
        StorageError: the disk refused.
    """
    runs, log = runs_of(experiment), folder / LOG_FILE
    with storage_errors(folder):  # Before the first run, not after it.
        folder.mkdir(parents=True, exist_ok=True)
    known = _logged(log)
    if setup is not None:
        _keep_setup(folder / SETUP_FILE, setup)
    ended: list[Ended] = []
    repeated = 0
    try:
        for run in runs:
            before = known.get(run.key)
            if before is not None:
                repeated += 1
                ended.append(Ended(run=run, outcome=before))
            else:
                ended.append(_done(run, run_one))
                _append(log, ended[-1])
            if on_run is not None:
                on_run(ended[-1], len(ended), len(runs))
    finally:
        if ended:
            _write(folder, ended)
    return Comparison(rows=rows_of(ended), ended=tuple(ended), repeated=repeated)


def _done(run: Run, run_one: Callable[[Run], Outcome]) -> Ended:
    try:
        return Ended(run=run, outcome=run_one(run))
    except SteersmanError as error:
        return Ended(run=run, outcome=None, error=str(error))


def _logged(log: Path) -> Mapping[str, Outcome]:
    """Outcomes by the keys of their runs."""
    try:
        lines = log.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"cannot read {log}: {error.strerror}") from error
    found: dict[str, Outcome] = {}
    reader = TypeAdapter(Ended)
    for number, line in enumerate(lines, 1):
        try:
            facts = json.loads(line)
        except ValueError:
            continue  # Cut off by whatever ended the program in the middle of it: that run is not done.
        try:
            each = reader.validate_python(facts)
        except ValidationError as error:
            raise DataError(f"line {number} of {log} is not of this version; choose another folder") from error
        if each.outcome is not None:
            found[each.run.key] = each.outcome
    return found


def _keep_setup(path: Path, setup: Mapping[str, JsonValue]) -> None:
    """Write down what the runs of a folder share.

    Raises:
        DataError: the folder's runs share something else.
    """
    before: dict[str, JsonValue] = {}
    try:
        before = TypeAdapter(dict[str, JsonValue]).validate_json(path.read_bytes())
    except FileNotFoundError:
        pass
    except ValidationError as error:
        raise DataError(f"{path} is damaged; choose another folder") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    for name in setup:
        if name in before and before[name] != setup[name]:
            raise DataError(
                f"the runs in {path.parent} had another {name} ({json.dumps(before[name])}, not {json.dumps(setup[name])}); "
                "choose another folder"
            )
    write_bytes(path, json.dumps({**before, **setup}, indent=2).encode())


def _append(log: Path, ended: Ended) -> None:
    """One more line, on the disk before the next run begins.

    Raises:
        StorageError: the disk refused.
    """
    with storage_errors(log), log.open("ab+") as file:
        cut_off = False
        if file.tell():
            file.seek(-1, os.SEEK_END)
            cut_off = file.read(1) != b"\n"
        file.write(b"\n" * cut_off + json.dumps(asdict(ended)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _write(folder: Path, ended: list[Ended]) -> None:
    rows = rows_of(ended)
    results = [asdict(row) for row in rows]
    write_bytes(folder / "results.json", json.dumps({"rows": results}, indent=2).encode())
    write_bytes(folder / "table.md", table_of(rows).encode())
    for kind in ("svg", "png"):
        with replacing(folder / f"scores.{kind}") as aside:
            drawn(ended, aside, kind)
