"""Pictures of a training run: learning curve, error by step, example forecasts with their 80 % bands.

Pure functions from tables to plotly figures, and one HTML page that carries plotly's script itself, so that it opens
in the MLflow UI, from a file, and without a network. Knows no MLflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from forecaster import Backtest, Config, Panel

__all__ = ["backtest_page", "coverage_by_step", "error_by_step", "example_forecasts", "learning_curve", "page"]

MODEL, BASELINE, TRUTH, BAND = "#1f6feb", "#d97706", "#111827", "rgba(31, 111, 235, 0.18)"
LAYOUT: dict[str, Any] = {
    "template": "plotly_white",
    "font": {"family": "system-ui, sans-serif", "size": 13},
    "margin": {"l": 60, "r": 30, "t": 60, "b": 50},
    "legend": {"orientation": "h", "y": -0.15},
}
MOST_SERIES = 6


def learning_curve(history: Sequence[dict[str, float]]) -> go.Figure:
    """Training and validation loss by epoch, with the gradient norm and the share of clipped updates below."""
    rows = pd.DataFrame(list(history))
    figure = make_subplots(
        rows=2,
        cols=1,
        shared_xaxes=True,
        row_heights=[0.65, 0.35],
        vertical_spacing=0.08,
        specs=[[{}], [{"secondary_y": True}]],
    )
    for column, name, color in (("train_loss", "training loss", BASELINE), ("val_loss", "validation loss", MODEL)):
        if column in rows:
            figure.add_trace(
                go.Scatter(x=rows["epoch"], y=rows[column], name=name, line={"color": color}), row=1, col=1
            )
    if "gradient_norm" in rows:
        figure.add_trace(
            go.Scatter(x=rows["epoch"], y=rows["gradient_norm"], name="gradient norm", line={"color": TRUTH}),
            row=2,
            col=1,
        )
    if "clipped_share" in rows:
        bars = go.Bar(
            x=rows["epoch"],
            y=rows["clipped_share"],
            name="share of clipped updates",
            marker_color="#9ca3af",
            opacity=0.5,
        )
        figure.add_trace(bars, row=2, col=1, secondary_y=True)
        share = {
            "range": [0, 1],
            "tickformat": ".0%",
            "tickvals": [0, 0.5, 1],
            "showgrid": False,
            "title_text": "clipped",
        }
        figure.update_yaxes(**share, row=2, col=1, secondary_y=True)
    figure.update_layout(title="Learning curve", height=480, **LAYOUT)
    figure.update_xaxes(title_text="epoch", row=2, col=1)
    figure.update_yaxes(title_text="loss", row=1, col=1)
    figure.update_yaxes(title_text="gradient norm", row=2, col=1, secondary_y=False)
    return figure


def error_by_step(result: Backtest) -> go.Figure:
    """Mean absolute error of the median at each step, as a share of the mean absolute value of its series."""
    forecasts = result.forecasts
    scale = forecasts.groupby("unique_id")["y"].transform(lambda y: y.abs().mean()).replace(0.0, np.nan)
    figure = go.Figure()
    for column, name, color in (("0.5", "model (median)", MODEL), ("seasonal_naive", "seasonal naive", BASELINE)):
        error = ((forecasts["y"] - forecasts[column]).abs() / scale).groupby(forecasts["step"]).mean()
        figure.add_trace(
            go.Scatter(x=error.index, y=error.to_numpy(), name=name, mode="lines+markers", line={"color": color})
        )
    figure.update_layout(title="Backtest error by step", height=420, **LAYOUT)
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="mean |y − forecast| / mean |y|", rangemode="tozero")
    return figure


def coverage_by_step(result: Backtest) -> go.Figure:
    """Share of truths inside the 80 % interval at each step."""
    figure = go.Figure()
    figure.add_hrect(y0=0.76, y1=0.84, fillcolor=BAND, line_width=0)
    figure.add_trace(
        go.Scatter(
            x=result.by_step["step"],
            y=result.by_step["coverage_80"],
            name="80 % interval",
            mode="lines+markers",
            line={"color": MODEL},
        )
    )
    figure.update_layout(title="Backtest coverage by step", height=320, **LAYOUT)
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="share of truths inside", range=[0, 1], tickformat=".0%")
    return figure


def example_forecasts(result: Backtest, panel: Panel, config: Config) -> go.Figure:
    """The last backtest window of a handful of series: truth, median, 80 % band, seasonal naive."""
    last = result.forecasts[
        result.forecasts["cutoff"] == result.forecasts.groupby("unique_id")["cutoff"].transform("max")
    ]
    names = list(dict.fromkeys(last["unique_id"]))
    shown = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(MOST_SERIES, len(names))).astype(int))]
    figure = make_subplots(
        rows=len(shown), cols=1, subplot_titles=shown, vertical_spacing=min(0.12, 0.4 / max(len(shown), 1))
    )
    for row, name in enumerate(shown, start=1):
        window = last[last["unique_id"] == name]
        first_of_legend = row == 1
        history = _before(panel, name, window["ds"].iloc[0], 2 * config.horizon)
        band = pd.concat([window["ds"], window["ds"][::-1]])
        edges = pd.concat([window["0.9"], window["0.1"][::-1]])
        traces = (
            go.Scatter(
                x=band, y=edges, fill="toself", fillcolor=BAND, line={"width": 0}, hoverinfo="skip", name="80 % band"
            ),
            go.Scatter(
                x=window["ds"],
                y=window["seasonal_naive"],
                name="seasonal naive",
                line={"color": BASELINE, "dash": "dot"},
            ),
            go.Scatter(x=window["ds"], y=window["0.5"], name="median", line={"color": MODEL, "width": 2.5}),
            go.Scatter(x=history["ds"], y=history["y"], name="history", line={"color": "#9ca3af"}),
            go.Scatter(x=window["ds"], y=window["y"], name="truth", line={"color": TRUTH}),
        )
        for trace in traces:
            trace.update(showlegend=first_of_legend, legendgroup=trace.name)
            figure.add_trace(trace, row=row, col=1)
    height = 140 + 240 * len(shown)
    # One below the other, however high the figure is: as shares of the plots they would meet in a low one.
    figure.update_layout(
        height=height,
        **LAYOUT
        | {
            "title": {"text": "Forecasts of the last backtest window", "y": 1 - 20 / height, "yanchor": "top"},
            "legend": {"orientation": "h", "yref": "container", "y": 1 - 50 / height, "yanchor": "top"},
            "margin": LAYOUT["margin"] | {"t": 110},
        },
    )
    return figure


def backtest_page(result: Backtest, panel: Panel, config: Config) -> str:
    """Error and coverage by step, and example forecasts, on one page."""
    return page("Backtest", [error_by_step(result), coverage_by_step(result), example_forecasts(result, panel, config)])


def page(title: str, figures: Sequence[go.Figure]) -> str:
    """One HTML page with the figures below each other; the script is in it once, so it opens without a network.

    Parameters
    ----------
    title
        Title of the page.
    figures
        From top to bottom.
    """
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=number == 0, config={"displaylogo": False, "responsive": True})
        for number, figure in enumerate(figures)
    ]
    body = "\n".join(parts)
    head = f'<head><meta charset="utf-8"><title>{title}</title></head>'
    return f'<!doctype html><html lang="en">{head}<body>\n{body}\n</body></html>'


def _before(panel: Panel, unique_id: str, ds: Any, steps: int) -> pd.DataFrame:
    """The last rows of a series before `ds`."""
    index = panel.index_of(unique_id)
    y = panel.series(index)
    start = int(panel.first_steps[index])
    frame = pd.DataFrame({"ds": panel.calendar.to_index(np.arange(start, start + len(y))), "y": y})
    before: pd.DataFrame = frame[frame["ds"] < ds].tail(steps)
    return before
