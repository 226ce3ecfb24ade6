"""What a run and its version say of themselves on MLflow's pages, as Markdown. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.backtesting import Rival
from pipelines.console import cell_text
from pipelines.plan import Plan, TrainRequest
from pipelines.promotion import Decision
from pipelines.tables import metrics_table

__all__ = ["note_of"]


def note_of(
    request: TrainRequest,
    plan: Plan,
    metrics: Mapping[str, float],
    rival: Rival | None,
    decision: Decision,
    choices: Sequence[str],
) -> str:
    """The gate's decision, the data, what it rests on, and what the data chose.

    Parameters
    ----------
    request, plan
        Of the training.
    metrics
        Of the backtest; empty if there was none.
    rival
        The champion as measured.
    decision
        The gate's.
    choices
        One sentence each.
    """
    panel, windows = plan.panel, plan.windows
    (latest,) = panel.calendar.format([int(panel.last_steps.max())])
    parts = [
        f"{'Let in' if decision.promoted else 'Refused'} by the gate: {decision.reason}.",  # lists show but a few words
        f"{len(panel):,} series of `{Path(request.data).name}`, {panel.observed:,} values up to {latest}; "
        f"freq {plan.config.freq}, horizon {plan.config.horizon}.",
    ]
    if metrics:
        # What the champion could not be measured by has no column.
        beside = (rival.metrics, rival.version) if rival is not None and rival.metrics else (None, None)
        _, columns, rows = metrics_table(metrics, *beside)
        lines = [columns, ["---"] * len(columns), *([cell_text(cell) for cell in row] for row in rows)]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        parts.append(f"Backtest windows: {windows.n_windows}, of {windows.horizon} steps, {windows.step_size} apart.")
    if choices:
        parts.append("\n".join(f"- {choice}" for choice in choices))
    return "\n\n".join(parts)
