"""The `steersman` command: register the commands, and turn every error into one line and an exit code.

Exit codes: 0 done, 1 an error that is explained in one line, 2 wrong usage, 130 interrupted. Commands import what they
need when they run, so that `steersman --help` answers at once.
"""

from __future__ import annotations

import os
import sys

import typer

from steersman.cli import export, fit, generate, models
from steersman.errors import SteersmanError
from steersman.version import __version__

app = typer.Typer(
    name="steersman",
    help="Steer language models: one sentence in, a steered model out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("generate")(generate.generate)
app.add_typer(fit.app, name="fit")
app.command("export")(export.export)
app.add_typer(models.app, name="models")


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
    try:
        app()
    except SteersmanError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has gone; nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
