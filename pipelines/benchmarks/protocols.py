"""Protocols: what each public data set asks, as small declarative values, and the reading of its files.

A protocol says which part may be learnt from, from which origins to forecast, how far, and which metric counts. It
knows nothing of models: baselines, this library and other libraries all answer the same `Task`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from forecaster import Config, CovariatesConfig, InputError, Panel
from forecaster.metrics import naive_error
from pipelines.data import read_frame

__all__ = ["PROTOCOLS", "Protocol", "Target", "Task", "check_files", "choose", "load"]

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Target:
    """A metric with what is asked of it: `must` at least, `goal` at best; both are upper bounds."""

    metric: str
    must: float
    goal: float


@dataclass(frozen=True, slots=True)
class Protocol:
    """How one data set is measured.

    Parameters
    ----------
    name
        Of the protocol; a data set may have several.
    files
        Parquet files, in time order; columns `unique_id`, `ds`, `y`.
    freq, horizon, seasonality
        The model's settings.
    period
        The seasonal lag m of MASE, of Naive2 and of the seasonal naive.
    targets
        What is asked; the first metric is the set's own.
    test
        Steps at the end of every series that are forecast; the first origin lies before them.
    step
        Steps between two origins; the last origin has a whole horizon before it ends.
    validation
        Steps before the test part that may choose among weights, but not change them; 0 leaves the choice to training.
    rows
        Rows of each series that are used; 0 for all.
    scaled_by
        First rows whose mean and standard deviation scale a series (z-score); 0 for unscaled.
    covariates
        Columns beside y that the model is given.
    beside
        Name of a protocol whose result the targets are shares of; empty: they are values.
    """

    name: str
    files: tuple[str, ...]
    freq: str
    horizon: int
    seasonality: tuple[int, ...]
    period: int
    targets: tuple[Target, ...]
    test: int
    step: int = 1
    validation: int = 0
    rows: int = 0
    scaled_by: int = 0
    covariates: CovariatesConfig = field(default_factory=CovariatesConfig)
    beside: str = ""

    @property
    def origins(self) -> range:
        """Steps from each origin to the end of the series, falling."""
        return range(self.test, self.horizon - 1, -self.step)

    @property
    def config(self) -> Config:
        """The default configuration for this set."""
        return Config(self.freq, self.horizon, self.seasonality, covariates=self.covariates)


def etth1(horizon: int, must: float, goal: float) -> Protocol:
    """Long-horizon protocol: 12 months to learn from, 4 to validate, 4 to test, of 30 days each; every test window."""
    return Protocol(
        name=f"etth1-{horizon}",
        files=("ETTh1.parquet",),
        freq="h",
        horizon=horizon,
        seasonality=(24, 168),
        period=24,
        targets=(Target("mse", must, goal),),
        test=2880,
        validation=2880,
        rows=14400,
        scaled_by=8640,
    )


BIKES = Protocol(
    name="bike-sharing",
    files=("bike-sharing-hourly.parquet",),
    freq="h",
    horizon=24,
    seasonality=(24, 168),
    period=24,
    targets=(),
    test=28 * 24,
    step=24,
)

WEATHER = ("weather", "temp", "atemp", "hum", "windspeed")
"""As it came: a perfect weather forecast, which the set's own description allows for."""

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="m4-hourly",
            files=("M4-hourly-train.parquet", "M4-hourly-test.parquet"),
            freq="1",
            horizon=48,
            seasonality=(24, 168),
            period=24,
            targets=(Target("owa", 0.44, 0.40), Target("mase", 0.90, 0.78)),
            test=48,
        ),
        Protocol(
            name="m4-weekly",
            files=("M4-weekly-train.parquet", "M4-weekly-test.parquet"),
            freq="1",
            horizon=13,
            seasonality=(52,),
            period=1,
            targets=(Target("owa", 0.80, 0.74), Target("mase", 2.25, 2.05)),
            test=13,
        ),
        Protocol(
            name="nn5-daily",
            files=("NN5-daily.parquet",),
            freq="D",
            horizon=56,
            seasonality=(7,),
            period=7,
            targets=(Target("mase", 0.82, 0.78),),
            test=56,
        ),
        Protocol(
            name="europe-load",
            files=("europe-load-hourly.parquet",),
            freq="h",
            horizon=24,
            seasonality=(24, 168),
            period=168,
            targets=(Target("mape", 3.0, 2.2),),
            test=8760,
            step=24,
        ),
        etth1(96, 0.40, 0.368),
        etth1(720, 0.48, 0.446),
        Protocol(
            name="exchange-rate",
            files=("exchange_rate.parquet",),
            freq="1",
            horizon=30,
            seasonality=(5,),
            period=5,
            targets=(Target("mase", 1.74, 1.64),),
            test=30,
        ),
        BIKES,
        replace(
            BIKES,
            name="bike-sharing-known",
            targets=(Target("mase", 0.85, 0.70),),
            covariates=CovariatesConfig(known=("holiday", "workingday", *WEATHER)),
            beside="bike-sharing",
        ),
    )
}
"""All protocols by name, in the order of the table."""


@dataclass(frozen=True)
class Task:
    """A protocol with its data: what any forecasting method is given, and what it is judged by.

    Attributes
    ----------
    protocol
        The rules.
    panel
        All N series, scaled if the protocol says so, test part included.
    """

    protocol: Protocol
    panel: Panel

    @property
    def learnable(self) -> Panel:
        """Everything before the first origin: what to learn from, and at its end what to validate on."""
        return self.panel.drop_last(self.protocol.test)

    @cached_property
    def histories(self) -> list[Float]:
        """Values before the first origin, per series."""
        return [y[: len(y) - self.protocol.test] for y in self.panel.values]

    @cached_property
    def naive_errors(self) -> Float:
        """Denominators of MASE, from the values before the first origin, shape [N]."""
        return np.array([naive_error(y, self.protocol.period) for y in self.histories])

    def truth(self, lefts: Sequence[int]) -> Float:
        """What came after origins that lie so many steps before the end, shape [W, N, H]."""
        horizon = self.protocol.horizon
        return np.stack([[y[len(y) - left : len(y) - left + horizon] for y in self.panel.values] for left in lefts])

    def between(self, left: int, right: int) -> Float:
        """Values that arrive from one origin to the next, shape [N, left - right]."""
        return np.stack([y[len(y) - left : len(y) - right] for y in self.panel.values])


def choose(names: Iterable[str]) -> list[Protocol]:
    """Protocols of these names; all of them if there are none.

    Raises
    ------
    InputError
        A name is unknown.
    """
    wanted = list(names) or list(PROTOCOLS)
    for name in wanted:
        if name not in PROTOCOLS:
            raise InputError(f"set {name!r} is unknown, expected some of {', '.join(PROTOCOLS)}")
    return [PROTOCOLS[name] for name in wanted]


def check_files(protocols: Sequence[Protocol], folder: str | Path) -> None:
    """Refuse before the work starts, with everything that is missing named.

    Raises
    ------
    InputError
        A file is not in the folder.
    """
    if not Path(folder).is_dir():
        raise InputError(f"there is no folder {folder} with the data sets")
    missing = sorted({name for p in protocols for name in p.files if not (Path(folder) / name).is_file()})
    if missing:
        raise InputError(f"folder {folder} lacks {', '.join(missing)}; choose other sets or add them")


def load(protocol: Protocol, folder: str | Path) -> Task:
    """Read a data set.

    Raises
    ------
    InputError
        A file is missing or not as the protocol says.
    """
    check_files([protocol], folder)
    columns = ["unique_id", "ds", "y", *protocol.covariates.columns]
    frames = [read_frame(Path(folder) / name, columns)[columns] for name in protocol.files]
    return task_of(protocol, pd.concat(frames, ignore_index=True))


def task_of(protocol: Protocol, frame: pd.DataFrame) -> Task:
    """Cut and scale a long frame as the protocol says.

    Raises
    ------
    InputError
        A series has nothing before the test part.
    """
    panel = Panel.from_frame(frame, protocol.freq, protocol.covariates)
    values = [y[: protocol.rows or None] for y in panel.values]
    if protocol.scaled_by:
        values = [(y - np.nanmean(y[: protocol.scaled_by])) / np.nanstd(y[: protocol.scaled_by]) for y in values]
    for name, y in zip(panel.unique_ids, values, strict=True):
        if len(y) <= protocol.test + protocol.validation:
            raise InputError(
                f"{protocol.name}: series {name!r} has {len(y)} steps, expected more than "
                f"{protocol.test + protocol.validation}"
            )
    return Task(protocol, replace(panel, values=values))
