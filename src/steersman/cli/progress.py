"""Progress of long work that counts tokens: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

Report = Callable[[str, int, int, str], None]
"""What is being done, how much of it, of how much, and a note (loss, speed)."""

_LINE_SECONDS = 30.0


@contextlib.contextmanager
def counting() -> Iterator[Report]:
    """Report long work on standard error; each new title gets its own bar."""
    with _bars() if sys.stderr.isatty() else contextlib.nullcontext(_lines()) as report:
        yield report


def _lines() -> Report:
    last = dict[str, float]()

    def report(title: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if done < total and now - last.get(title, -_LINE_SECONDS) < _LINE_SECONDS:
            return
        last[title] = now
        print(f"{title}: {done:,} of {total:,} {note}".rstrip(), file=sys.stderr, flush=True)

    return report


@contextlib.contextmanager
def _bars() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks = {}

        def report(title: str, done: int, total: int, note: str = "") -> None:
            if title not in tasks:
                tasks[title] = bars.add_task(title, total=total, note=note)
            bars.update(tasks[title], completed=min(done, total), total=total, note=note)

        yield report
