"""What the user sees while a command works: notices, tables and progress, all on standard error.

Standard output stays free for results and for the one JSON line. A terminal gets moving bars; anything else (a log
file, a scheduler) gets plain lines, none longer than needed and none twice. Knows nothing of forecasting.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

__all__ = ["Reporter", "ShareReporter", "cell_text", "emit", "plain_json", "result_reporter"]


PLAIN_WIDTH = 160
PLAIN_SECONDS = 5.0
"""Least time between two plain lines of progress, so that a log of short epochs stays readable."""


class ShareReporter(Protocol):
    """Called whenever a part of a long piece of work is done."""

    def __call__(self, share: float, text: str) -> None:
        """Say how much is done, 0 to 1, and how it goes."""


class Reporter:
    """Writes for people: notices, tables, progress.

    Parameters
    ----------
    console
        Where to write; by default standard error.
    quiet
        Write nothing at all (for callers that report in another way).
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self._console = console or _console(sys.stderr, quiet=quiet)

    @property
    def is_terminal(self) -> bool:
        """Whether a person is watching a terminal."""
        return self._console.is_terminal

    @property
    def console(self) -> Console:
        """The console behind, for live displays."""
        return self._console

    def notice(self, text: str) -> None:
        """Write one line."""
        self._console.print(text, markup=False)

    def heading(self, text: str) -> None:
        """Write one line that starts a part."""
        self._console.print(f"\n{text}" if self.is_terminal else text, markup=False, style="bold")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Write a table; numbers are shortened to what a person reads."""
        table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(cell_text(cell) for cell in row))
        self._console.print(table, soft_wrap=False)

    @contextmanager
    def progress(self, label: str) -> Iterator[ShareReporter]:
        """Report how much of a long piece of work is done: a bar on a terminal, a line every few seconds elsewhere."""
        if self.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
            )
            with Progress(*columns, console=self._console) as bars:
                task = bars.add_task(label, total=1.0, note="")
                yield lambda share, text: bars.update(task, completed=share, note=text)
                bars.update(task, completed=1.0)
            return
        said, unsaid = time.monotonic() - PLAIN_SECONDS, ""

        def line(share: float, text: str) -> None:
            nonlocal said, unsaid
            unsaid = f"{label} {share:4.0%}  {text}"
            if time.monotonic() - said >= PLAIN_SECONDS:
                self.notice(unsaid)
                said, unsaid = time.monotonic(), ""

        line(0.0, "started")
        yield line
        if unsaid:
            self.notice(unsaid)


def cell_text(value: object) -> str:
    """Text of one table cell.

    Examples
    --------
    >>> cell_text(0.123456), cell_text(1234567.0), cell_text(None), cell_text(7)
    ('0.1235', '1.235e+06', '-', '7')
    """
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def plain_json(value: Mapping[str, Any]) -> str:
    """One line of strict JSON; numbers that JSON does not know become null.

    Examples
    --------
    >>> plain_json({"mase": float("nan"), "windows": [1, 2]})
    '{"mase": null, "windows": [1, 2]}'
    """
    return json.dumps(_finite(value), allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return float(value) if isinstance(value, float) else value


def emit(wanted: bool, value: Mapping[str, Any]) -> None:
    """Print the one JSON line on standard output, if it was asked for."""
    if wanted:
        sys.stdout.write(plain_json(value) + "\n")
        sys.stdout.flush()


def result_reporter(*, json: bool) -> Reporter:
    """Where result tables go: standard output, unless the last line there has to be JSON for a program."""
    return Reporter() if json else Reporter(_console(sys.stdout))


def _console(file: TextIO, *, quiet: bool = False) -> Console:
    console = Console(file=file, highlight=False, quiet=quiet, soft_wrap=True)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH  # a log file has no edge that tables would have to fit into
    return console
