"""Anomalies: what surprise is worth as an alarm, on recordings in which it is known when something went wrong.

A model per frequency learns from the rows that the benchmark does not judge, the first of each recording, and then
follows all of it as a stream. Each row's surprise is known before the next row is read; nothing is learnt from then on
but what the state carries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from forecaster import Config, Forecaster, InputError, Panel
from forecaster.marginals import surprise
from pipelines.benchmarks.detection import Recording, detect, loudest
from pipelines.benchmarks.report import Table, number
from pipelines.console import Reporter
from pipelines.data import read_frame
from pipelines.train import train_model

__all__ = ["AnomalyRequest", "anomalies_table", "changes", "learnable", "read_recordings", "run_anomalies", "surprises"]

VALUES, LABELS = "NAB-cloud-known.parquet", "NAB-cloud-known-labels.json"

HORIZON = 24
"""Steps that the models learn to forecast, of which the first is what values are held against."""

BEYOND = (1, 2, 3)
"""Of values in no window, one in 10, 100 and 1,000 should be more surprising."""

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AnomalyRequest:
    """What to measure.

    Parameters
    ----------
    folder
        With the recordings and the windows.
    seeds
        A model per frequency each.
    minutes
        Time box of a training.
    overrides
        Changes to the default configuration, dotted keys.
    """

    folder: str
    seeds: Sequence[int] = (0,)
    minutes: float = 2.0
    overrides: dict[str, Any] = field(default_factory=dict)


def read_recordings(folder: str) -> dict[str, list[Recording]]:
    """All recordings by frequency, as pandas writes it: the most common step of each.

    Raises
    ------
    InputError
        A file is missing, or is not what it should be.
    """
    labels = Path(folder, LABELS)
    if not labels.is_file():
        raise InputError(f"{folder} holds no {LABELS}")
    windows = json.loads(labels.read_text(encoding="utf-8"))["windows"]
    found: dict[str, list[Recording]] = {}
    frame = read_frame(str(Path(folder, VALUES))).sort_values(["unique_id", "row"])
    for unique_id, rows in frame.groupby("unique_id", sort=True):
        moments = pd.DatetimeIndex(rows["ds"])
        if unique_id not in windows:
            raise InputError(f"{LABELS} says nothing of {unique_id}")
        step = pd.Timedelta(np.median(np.diff(moments)))
        freq = pd.tseries.frequencies.to_offset(step).freqstr
        at = [[int(np.flatnonzero(moments == pd.Timestamp(end))[0]) for end in pair] for pair in windows[unique_id]]
        begin, y = moments[0].floor(freq), rows["y"].to_numpy(np.float64, copy=True)
        found.setdefault(freq, []).append(Recording(str(unique_id), begin, y, tuple((a, b) for a, b in at)))
    return found


def learnable(recordings: Sequence[Recording], freq: str) -> Panel:
    """What the models may learn from. A row is a step, as in the benchmark: pauses are not counted."""
    return Panel.from_frame(
        pd.DataFrame(
            {
                "unique_id": np.repeat([r.unique_id for r in recordings], [r.probation for r in recordings]),
                "ds": np.concatenate([pd.date_range(r.begin, periods=r.probation, freq=freq) for r in recordings]),
                "y": np.concatenate([r.y[: r.probation] for r in recordings]),
            }
        ),
        freq,
    )


def surprises(forecaster: Forecaster, panel: Panel, recordings: Sequence[Recording]) -> list[Float]:
    """How surprising each row of each recording was; NaN for the first.

    Parameters
    ----------
    forecaster, panel
        Trained on the panel, which is `learnable` of the recordings.
    """
    by_name = {recording.unique_id: recording.y for recording in recordings}
    lengths = torch.tensor([len(by_name[name]) for name in panel.unique_ids])
    y = torch.full((len(lengths), int(lengths.max())), torch.nan, dtype=torch.float64)
    for row, name in enumerate(panel.unique_ids):
        y[row, : lengths[row]] = torch.from_numpy(by_name[name])
    state = forecaster.initial_state(panel.first_steps.tolist())
    places = forecaster.fold_and_place(state, y, lengths)[1]
    rows = {name: surprise(places[row, : lengths[row]]) for row, name in enumerate(panel.unique_ids)}
    return [rows[recording.unique_id] for recording in recordings]


def changes(recording: Recording) -> Float:
    """What needs no model: by how many times its mean so far a value's distance from the one before exceeds it."""
    steps = np.abs(np.diff(recording.y))
    means = np.cumsum(steps) / np.arange(1, len(steps) + 1)
    found = np.full(len(recording.y), np.nan)
    found[2:] = steps[1:] / np.maximum(means[:-1], np.finfo(float).tiny)
    return found


def run_anomalies(request: AnomalyRequest, reporter: Reporter | None = None) -> Iterator[dict[str, Any]]:
    """Every row's surprise under models that know the first rows of each recording.

    Yields
    ------
    dict
        `method`, `seed` (None without a model), what `detect` finds, and of surprise `beyond_1` and so on: shares of
        the judged values outside of windows.

    Raises
    ------
    InputError
        As in `read_recordings`, or an override is impossible.
    """
    by_freq = read_recordings(request.folder)
    recordings = [recording for found in by_freq.values() for recording in found]
    yield {"method": "change", "seed": None} | asdict(detect(recordings, [changes(r) for r in recordings]))
    for seed in request.seeds:
        scores: list[Float] = []
        alarms: list[Float] = []
        for freq, found in by_freq.items():
            panel = learnable(found, freq)
            config = Config(freq, HORIZON).with_overrides({**request.overrides, "training.seed": seed})
            forecaster = train_model(panel, config, max_minutes=request.minutes, reporter=reporter).forecaster
            scores += surprises(forecaster, panel, found)
            alarms += [loudest(s, min(forecaster.config.seasonality)) for s in scores[len(alarms) :]]
        normal = np.concatenate([s[r.normal] for r, s in zip(recordings, scores, strict=True)])
        beyond = {f"beyond_{level}": float(np.nanmean(normal > level)) for level in BEYOND}
        yield {"method": "surprise", "seed": seed} | asdict(detect(recordings, scores)) | beyond
        yield {"method": "surprise, loudest of a season", "seed": seed} | asdict(detect(recordings, alarms))


def anomalies_table(rows: Sequence[dict[str, Any]]) -> Table:
    """One line per method and seed."""
    columns = ["score", "seed", "NAB", "windows found", "alarms elsewhere", "threshold", "values beyond 1, 2, 3"]
    lines = []
    for row in rows:
        beyond = [number(row[f"beyond_{level}"], 2) for level in BEYOND if f"beyond_{level}" in row]
        lines.append(
            [
                row["method"],
                "-" if row["seed"] is None else str(row["seed"]),
                number(row["score"], 3),
                f"{row['found']} of {row['windows']}",
                str(row["false_alarms"]),
                number(row["threshold"], 3),
                ", ".join(beyond) or "-",
            ]
        )
    return columns, lines
