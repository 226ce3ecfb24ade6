"""What the user sees while a command works: notices, tables and progress, all on standard error.

Standard output stays free for results and for the one JSON line. A terminal gets moving bars; anything else (a log
file, a scheduler) gets plain lines, none longer than needed and none twice. Knows nothing of forecasting.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

__all__ = ["Reporter", "StepReporter", "cell_text", "plain_json", "result_reporter"]


class StepReporter(Protocol):
    """Called after each finished part of a long piece of work."""

    def __call__(self, text: str) -> None:
        """Count one part as done and say how it went."""


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
        self._console = console or Console(file=sys.stderr, highlight=False, quiet=quiet, soft_wrap=True)

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
        table = Table(title=title, title_justify="left", title_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(cell_text(cell) for cell in row))
        self._console.print(table, soft_wrap=False)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[StepReporter]:
        """Report `total` parts of work: a bar on a terminal, one plain line per part elsewhere."""
        if not self.is_terminal:
            done = 0

            def line(text: str) -> None:
                nonlocal done
                done += 1
                self.notice(f"{label} {done}/{total} {text}".rstrip())

            yield line
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self._console) as bars:
            task = bars.add_task(label, total=total, note="")
            yield lambda text: bars.update(task, advance=1, note=text)


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


def result_reporter(*, json: bool) -> Reporter:
    """Where result tables go: standard output, unless the last line there has to be JSON for a program."""
    return Reporter() if json else Reporter(Console(highlight=False))
