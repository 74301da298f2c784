"""Write the generated parts of the documentation: command reference, error tree, the recipe's JSON schema, the server's OpenAPI.

python docs/generate.py           write them
python docs/generate.py --check   fail when one of them is stale
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from steersman import errors
from steersman.cli.main import app
from steersman.server.app import create_app
from steersman.server.settings import ServerSettings
from steersman.steering.recipe_file import schema

DOCS = Path(__file__).parent


def main() -> int:
    """Write or check every generated file; returns the exit code."""
    pages = {
        "cli.md": cli_page(),
        "errors.md": errors_page(),
        "recipe.schema.json": json.dumps(schema(), indent=2) + "\n",
        "openapi.json": json.dumps(create_app(ServerSettings(folder=DOCS)).openapi(), indent=2) + "\n",
    }
    if "--check" not in sys.argv[1:]:
        for name, text in pages.items():
            (DOCS / name).write_text(text, encoding="utf-8")
        return 0
    stale = [name for name, text in pages.items() if not _is_fresh(DOCS / name, text)]
    if stale:
        sys.stderr.write(f"stale: {', '.join(stale)}; run `make docs`\n")
    return 1 if stale else 0


def _is_fresh(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def cli_page() -> str:
    """Every command with its options, from the command line itself."""
    parts = ["# Command reference", "", "Written by `make docs` from the command line's own help.", ""]
    for path, command in _commands(typer.main.get_command(app), ("steersman",)):
        parts += [f"## `{' '.join(path)}`", "", (command.help or "").strip(), ""]
        rows = [row for parameter in command.params if (row := _row(parameter)) is not None]
        if rows:
            parts += ["| option | default | meaning |", "|---|---|---|", *rows, ""]
    return "\n".join(parts)


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from _commands(inner, (*path, name))
    else:
        yield path, command


def _row(parameter: Any) -> str | None:
    if parameter.name == "help":
        return None
    names = (
        ", ".join(f"`{name}`" for name in parameter.opts)
        if parameter.opts[0].startswith("-")
        else f"`{(parameter.name or '').upper()}`"
    )
    default = "required" if parameter.required else _default(parameter)
    return f"| {names} | {default} | {getattr(parameter, 'help', None) or ''} |"


def _default(parameter: Any) -> str:
    value = parameter.default
    return "" if value is None or value is False or value == [] or callable(value) else f"`{value}`"


def errors_page() -> str:
    """The error tree with what each error means."""
    parts = [
        "# Errors",
        "",
        "Written by `make docs`. Everything steersman raises on purpose is a `SteersmanError`:",
        "",
    ]

    def walk(kind: type[Exception], depth: int) -> None:
        meaning = " ".join((inspect.getdoc(kind) or "").split())
        parts.append(f"{'  ' * depth}- **`{kind.__name__}`**: {meaning}")
        for child in kind.__subclasses__():
            walk(child, depth + 1)

    walk(errors.SteersmanError, 0)
    parts += [
        "",
        "On the command line an error is one line on standard error, `error: …`, with what is wrong and the next step.",
        "",
        "| exit code | meaning |",
        "|---|---|",
        "| 0 | done |",
        "| 1 | an error of the tree above |",
        "| 2 | wrong usage: an unknown option, a missing or impossible value |",
        "| 3 | auto-steering or a trait found no proof |",
        "| 130 | interrupted with Ctrl-C; nothing half-written is left behind |",
        "",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
