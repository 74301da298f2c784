"""The `steersman` command: register the commands, and turn every error into one line and an exit code.

Exit codes: 0 done, 1 an error that is explained in one line, 2 wrong usage, 3 auto-steering found no proof, 130 interrupted.
Commands import what they need when they run, so that `steersman --help` answers at once.
"""

from __future__ import annotations

import io
import os
import sys

import typer

from steersman.cli import (
    autosteer,
    autosteer_compare,
    curves,
    effects,
    evaluate,
    export,
    features,
    fit,
    fit_condition,
    fit_direction,
    fit_optimised,
    fit_sae_ts,
    fit_topic,
    generate,
    keys,
    models,
    sae,
    score,
    serve,
    traits,
)
from steersman.errors import SteersmanError
from steersman.version import __version__

_INTERRUPTED = 130

app = typer.Typer(
    name="steersman",
    help="Steer language models: one sentence in, a steered model out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("autosteer")(autosteer.autosteer)
app.command("autosteer-compare")(autosteer_compare.autosteer_compare)
app.command("evaluate")(evaluate.evaluate)
app.command("curves")(curves.curves)
app.command("score")(score.score)
app.command("generate")(generate.generate)
app.add_typer(fit.app, name="fit")
fit.app.command("sae-ts")(fit_sae_ts.sae_ts)
fit.app.command("topic")(fit_topic.topic)
fit.app.command("optimised")(fit_optimised.optimised)
fit.app.command("direction")(fit_direction.direction)
fit.app.command("condition")(fit_condition.condition)
app.add_typer(effects.app, name="effects")
app.command("export")(export.export)
app.add_typer(keys.app, name="keys")
app.add_typer(models.app, name="models")
app.add_typer(sae.app, name="sae")
app.add_typer(features.app, name="features")
app.add_typer(traits.app, name="traits")
app.command("serve")(serve.serve)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"steersman {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", help="Print the version and stop.", callback=_version, is_eager=True
    ),
) -> None:
    """Steer language models: one sentence in, a steered model out."""


def main() -> None:
    """Run the command line; the console script's entry point."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # A terminal that knows few characters still gets its answer.
    try:
        app()
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # Typer has caught Ctrl-C, and says nothing.
            print("interrupted", file=sys.stderr)
        raise
    except SteersmanError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        # The reader (head, less) has gone; nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
