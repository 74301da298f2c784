"""`steersman autosteer-compare`: auto-steer with every combination of an experiment, and compare what comes out.

Done runs stay in the folder's log: interrupted or failed, the same command goes on from there. Exit codes beside the usual ones:
1 when a run failed (the others are kept and shown), 130 when interrupted.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steersman.cli import autosteer as one
from steersman.cli.autosteer_view import Watch, clean, watching
from steersman.cli.console import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    load,
    load_encoder,
    out,
    print_json,
    profile,
    read_pairs,
)
from steersman.errors import DataError
from steersman.files import sole_use

if TYPE_CHECKING:
    from steersman.auto.compare import Comparison
    from steersman.auto.compare_report import Ended, Outcome, Row
    from steersman.auto.compare_run import AutosteerRuns
    from steersman.auto.experiment import Experiment, Run
    from steersman.auto.facts import ContrastSet

_FAILED, _INTERRUPTED = 1, 130
_FILES = {"table": "table.md", "plot": "scores.svg", "results": "results.json", "log": "runs.jsonl"}


def autosteer_compare(
    context: typer.Context,
    config: Annotated[
        Path,
        typer.Argument(metavar="CONFIG", help="TOML file: behaviours, optimisers and axes.", show_default=False),
    ],
    to: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder for the table, the plots and the log; done runs in it are kept."),
    ],
    sae: Annotated[str, typer.Option(help="'default' (shipped), a name in the library, or a folder.")] = "default",
    model: ModelOption = "default",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare optimisers, scorers, judges and numbers of features over behaviours and seeds. Resumable."""
    from steersman.auto.compare import compare
    from steersman.auto.experiment import read_experiment

    experiment = read_experiment(config)
    contrasts = {behaviour: _examples(behaviour, name) for behaviour, name in experiment.examples.items()}
    runs = _prepared(experiment, contrasts, sae, (model, device, dtype))
    context.with_resource(sole_use(to))
    done: list[Ended] = []

    def on_run(ended: Ended, number: int, total: int) -> None:
        done.append(ended)
        print(_line(ended, number, total), file=sys.stderr, flush=True)

    try:
        found = compare(experiment, _watched(runs), to, setup=_setup(runs), on_run=on_run)
    except KeyboardInterrupt:
        print(f"{len(done)} runs are done and kept in {to}; the same command goes on from there", file=sys.stderr)
        raise typer.Exit(_INTERRUPTED) from None
    if as_json:
        print_json(_facts(found, to))
    else:
        _print_tables(found.rows)
        for title in ("table", "plot", "log"):
            out().print(f"{title:<6} {to / _FILES[title]}", markup=False, soft_wrap=True)
    if found.failed:
        first = clean(found.failed[0].error)
        print(
            f"error: {len(found.failed)} of {len(found.ended)} runs failed, the first with: {first}; "
            "the same command tries them again",
            file=sys.stderr,
        )
        raise typer.Exit(_FAILED)


def _examples(behaviour: str, name: str) -> ContrastSet:
    """A behaviour's examples, from a file or a shipped set.

    Raises:
        DataError: they cannot be read, or are no answers to prompts.
    """
    try:
        return one.contrast_of(read_pairs(name))
    except DataError as error:
        raise DataError(f"examples of {behaviour!r}: {str(error).removeprefix('--examples, ')}") from error


def _prepared(
    experiment: Experiment,
    contrasts: dict[str, ContrastSet],
    sae: str,
    model_options: tuple[str, str | None, str | None],
) -> AutosteerRuns:
    """All that runs share, loaded; what is wrong is found here, before hours of work.

    Raises:
        EndpointError: a run needs a language model and there is none.
        SaeError: no such SAE, one of another model, or one without an index.
    """
    from steersman.auto.compare_run import AutosteerRuns
    from steersman.auto.experiment import runs_of
    from steersman.auto.writing import SLOTS
    from steersman.engine.engine import Engine, EngineLimits
    from steersman.judges.local import LocalJudge
    from steersman.sae.index.file import load_index
    from steersman.sae.library import find_sae

    asks = experiment.judge_prompts or any("textgrad" in run.method for run in runs_of(experiment))
    endpoint = one.endpoint_of_settings() if asks else None
    entry = find_sae(sae)
    language_model = load(*model_options)
    loaded = entry.load(str(language_model.device))
    loaded.check_fits(language_model.ref)
    load_index(entry.index_folder, loaded.ref(entry.name))
    engine = Engine(language_model, EngineLimits(slots=SLOTS), profile=profile(language_model))
    encoder = load_encoder()
    return AutosteerRuns(
        experiment=experiment,
        engine=engine,
        sae_name=sae,
        sae=loaded,
        encoder=encoder,
        judge=LocalJudge(engine, encoder),
        ask=endpoint,
        contrasts=contrasts,
    )


def _setup(runs: AutosteerRuns) -> dict[str, Any]:
    """What makes runs of one folder comparable: everything that a run's own line in the log does not say."""
    settings = runs.experiment.settings(seed=0)
    sizes = {name: value for name, value in asdict(settings).items() if type(value) is int and name != "seed"}
    examples = {
        f"examples of {behaviour!r}": (
            hashlib.sha256(repr(runs.contrasts[behaviour]).encode()).hexdigest()[:16]
            if behaviour in runs.contrasts
            else "the model's own answers"
        )
        for behaviour in runs.experiment.behaviours
    }
    judged = "language models" if runs.experiment.judge_prompts else "the local judge"
    model = f"{runs.engine.model.name} {runs.engine.model.ref.weights_hash[:16]}"
    return {"model": model, "SAE": runs.sae.weights_hash[:16], "tuning by": judged, **sizes, **examples}


def _watched(runs: AutosteerRuns) -> Callable[[Run], Outcome]:
    """Each run with its live picture, or with lines where there is no terminal."""

    def run_one(run: Run) -> Outcome:
        with watching(Watch(_title(run))) as report:
            return runs(run, report)

    return run_one


def _title(run: Run) -> str:
    features = f"{run.features} features" if run.features else None
    epochs = f"{run.epochs} epochs" if run.epochs else None
    judge = f"judge: {run.judge_prompt}" if run.judge_prompt else None
    parts = [run.name, run.scorer, judge, features, epochs, f"seed {run.seed}"]
    return f"{clean(run.behaviour)} ({', '.join(part for part in parts if part)})"


def _line(ended: Ended, number: int, total: int) -> str:
    """A run that has ended, for standard error."""
    said = f"run {number} of {total}, {_title(ended.run)}: "
    if ended.outcome is None:
        return f"{said}failed: {clean(ended.error)}"
    if ended.outcome.score is None:
        return f"{said}no score: {clean(ended.outcome.missing)}"
    return f"{said}{ended.outcome.score:.3f} in {ended.outcome.seconds:.0f} s"


def _facts(found: Comparison, folder: Path) -> dict[str, Any]:
    """The JSON answer."""
    failed = [{"run": asdict(each.run), "error": each.error} for each in found.failed]
    return {
        "rows": [asdict(row) for row in found.rows],
        "runs": len(found.ended),
        "repeated": found.repeated,
        "failed": failed,
        "files": {name: str(folder / file) for name, file in _FILES.items()},
    }


def _print_tables(rows: tuple[Row, ...]) -> None:
    """For people, one table a behaviour: columns that no row fills are left out."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = [_cells(row) for row in rows]
    titles = [title for title in cells[0] if any(each[title] for each in cells)]
    for behaviour in dict.fromkeys(row.behaviour for row in rows):
        table = Table(box=box.SIMPLE, title=Text(clean(behaviour)), title_justify="left", title_style="bold")
        for title in titles:
            table.add_column(title, justify="left" if title == "optimiser" else "right")
        for row, each in zip(rows, cells, strict=True):
            if row.behaviour == behaviour:
                table.add_row(*(Text(each[title]) for title in titles))
        out().print(table)


def _cells(row: Row) -> dict[str, str]:
    score = row.score
    spread = "" if score.low is None or score.high is None else f"{score.low:.2f} to {score.high:.2f}"
    return {
        "optimiser": clean(row.name),
        "scorer": row.scorer or "",
        "judge prompt": row.judge_prompt or "",
        "features": _shown(row.features, 0),
        "epochs": _shown(row.epochs, 0),
        "score": _shown(score.mean, 2),
        "95 % interval": spread if score.n > 1 else "",
        "plain": _shown(row.plain, 2),
        "proven": "" if row.proven is None else f"{row.proven} of {score.n}",
        "runs": f"{score.n} of {score.total}",
        "seconds": _shown(row.seconds, 0),
    }


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
