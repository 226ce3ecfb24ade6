"""The demo's running table: redrawn in place on a terminal, one plain line per few days elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.live import Live
from rich.table import Table

from pipelines.console import Reporter
from pipelines.demo.scoreboard import CityScore, Scoreboard

__all__ = ["Board", "running_board"]

PLAIN_EVERY = 192
"""Observations between two plain lines: four days of two cities."""


class Board:
    """Shows the score as it moves.

    Parameters
    ----------
    reporter
        Where to.
    scoreboard
        What.
    """

    def __init__(self, reporter: Reporter, scoreboard: Scoreboard, live: Live | None) -> None:
        self._reporter = reporter
        self._scoreboard = scoreboard
        self._live = live
        self._shown = scoreboard.total.observations

    def update(self, ds: str) -> None:
        """Show the score after the observations up to `ds`."""
        if self._live is not None:
            self._live.update(score_table(self._scoreboard, ds))
        elif self._scoreboard.total.observations - self._shown >= PLAIN_EVERY:
            self._shown = self._scoreboard.total.observations
            self._reporter.notice(score_line(self._scoreboard.total, ds))


@contextmanager
def running_board(reporter: Reporter, scoreboard: Scoreboard) -> Iterator[Board]:
    """Show a board for as long as the block lasts."""
    if not reporter.is_terminal:
        yield Board(reporter, scoreboard, None)
        return
    with Live(console=reporter.console, refresh_per_second=8) as live:
        yield Board(reporter, scoreboard, live)


def score_line(score: CityScore, ds: str) -> str:
    """One plain line."""
    return (
        f"{ds}  {score.observations:5d} observations  error {score.mae:5.2f} °F  "
        f"seasonal naive {score.naive_mae:5.2f} °F  in 80 % band {score.coverage:4.0%}  "
        f"latency p50 {score.latency_ms(0.5):.1f} ms, p99 {score.latency_ms(0.99):.1f} ms"
    )


def score_table(scoreboard: Scoreboard, ds: str) -> Table:
    """A row per city and one for all."""
    table = Table(title=f"live until {ds}", title_justify="left")
    for column in ("city", "observations", "error °F", "seasonal naive °F", "in 80 % band", "p50 ms", "p99 ms"):
        table.add_column(column, justify="left" if column == "city" else "right")
    for name, score in [*scoreboard.scores.items(), ("all", scoreboard.total)]:
        table.add_row(
            name,
            str(score.observations),
            f"{score.mae:.2f}",
            f"{score.naive_mae:.2f}",
            f"{score.coverage:.0%}",
            f"{score.latency_ms(0.5):.1f}",
            f"{score.latency_ms(0.99):.1f}",
        )
    return table
