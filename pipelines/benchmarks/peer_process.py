"""One other library on one task, as a program of its own: ``python peer_process.py PEER FOLDER``.

Runs in an environment that holds those libraries and not this project, so it imports nothing of it. FOLDER holds
`task.json` and `series.parquet`; it is left with `quantiles.npy` [origin, series, step, level] and with `result.json`:
times, settings, versions. Every library keeps its default sizes unless its settings below say otherwise.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import statistics
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Float = npt.NDArray[np.float64]
Task = dict[str, Any]

ONE_BY_ONE = 5
"""Forecasts after one new value that are timed; their median counts."""


class Peer(ABC):
    """A library behind two verbs. `histories` are whole pasts; a library uses as much of them as it wants."""

    packages: tuple[str, ...] = ()
    settings = ""
    batch = 2048
    """Histories given to the library at once."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.horizon: int = task["horizon"]
        self.levels: list[float] = task["levels"]
        self.context: int = task["context"]

    def prepare(self) -> None:
        """Import and compile, which counts as neither fitting nor forecasting."""
        for package in self.packages:
            importlib.import_module(package)

    def fit(self, series: list[Float]) -> None:  # noqa: B027  (what only repeats the past has nothing to learn)
        """Learn from series."""

    @abstractmethod
    def predict(self, histories: list[Float]) -> Float:
        """Quantiles [n, H, levels], or a point forecast [n, H, 1]."""


class PlainNaive(Peer):
    """Seasonal naive in a few lines: checks the way there and back, and needs no library."""

    settings = "none"

    def predict(self, histories: list[Float]) -> Float:
        """Repeat the last season."""
        points = [np.resize(y[-self.task["period"] :], self.horizon) for y in histories]
        return np.repeat(np.stack(points)[..., None], len(self.levels), -1)


class NeuralForecast(Peer):
    """A NeuralForecast model, trained on quantiles."""

    packages = ("neuralforecast", "neuralforecast.models", "torch")
    model = "LSTM"

    def fit(self, series: list[Float]) -> None:
        """Train on windows of all series."""
        from neuralforecast import NeuralForecast as Library
        from neuralforecast import models
        from neuralforecast.losses.pytorch import MQLoss

        model = getattr(models, self.model)(
            h=self.horizon,
            input_size=self.context,
            loss=MQLoss(quantiles=self.levels),
            max_steps=self.task["steps"],
            random_seed=self.task["seed"],
            start_padding_enabled=True,
            **QUIET_TRAINER,
        )
        self.library = Library(models=[model], freq=1)
        self.library.fit(long_frame(series))

    def predict(self, histories: list[Float]) -> Float:
        """One call for all windows, each as a series of its own."""
        found = self.library.predict(df=long_frame([y[-self.context :] for y in histories]))
        values: Float = found.drop(columns=["unique_id", "ds"], errors="ignore").to_numpy()
        return values.reshape(len(histories), self.horizon, len(self.levels))


class NeuralForecastLstm(NeuralForecast):
    """Its LSTM encoder with an MLP decoder."""

    settings = "default sizes (2 x 128), MQLoss"


class NeuralForecastNhits(NeuralForecast):
    """Its N-HiTS."""

    settings = "default sizes (3 stacks, 512 x 2), MQLoss"
    model = "NHITS"


class GluonTsDeepAr(Peer):
    """DeepAR of GluonTS on PyTorch; quantiles from its sample paths."""

    packages = ("gluonts.torch", "torch")
    settings = "default sizes (2 x 40), 50 updates per epoch, 100 sample paths"

    def fit(self, series: list[Float]) -> None:
        """Train on random windows."""
        import torch
        from gluonts.torch import DeepAREstimator

        torch.manual_seed(self.task["seed"])
        np.random.seed(self.task["seed"])  # noqa: NPY002  (GluonTS samples from NumPy's global state)
        estimator = DeepAREstimator(
            freq=self.task["calendar"],
            prediction_length=self.horizon,
            context_length=self.context,
            trainer_kwargs=QUIET_TRAINER
            | {"enable_checkpointing": True, "max_epochs": max(1, self.task["steps"] // 50)},  # it keeps its best epoch
        )
        self.predictor = estimator.train(self._data(series))

    def predict(self, histories: list[Float]) -> Float:
        """Sample, then sort."""
        found = [forecast.samples for forecast in self.predictor.predict(self._data(histories))]
        values: Float = np.quantile(np.stack(found), self.levels, axis=1)
        return values.transpose(1, 2, 0)

    def _data(self, series: list[Float]) -> Any:
        from gluonts.dataset.common import ListDataset

        freq = self.task["calendar"]
        # Histories of one task may start anywhere; only the phase of the calendar matters, and it is the same for all.
        start = pd.Period(self.task["start"], freq)
        return ListDataset([{"start": start, "target": y} for y in series], freq=freq)


class DartsRnn(Peer):
    """RNNModel of Darts with LSTM cells; quantiles from its sample paths."""

    packages = ("darts.models", "torch")
    settings = "LSTM 2 x 64, quantile regression, series scaled to 0 to 1, 100 sample paths"
    batch = 256

    def fit(self, series: list[Float]) -> None:
        """Train on windows of context and horizon."""
        from darts.models import RNNModel
        from darts.utils.likelihood_models import QuantileRegression

        length = min(self.context + self.horizon, min(len(y) for y in series) - 1)
        self.context = min(self.context, length - 1)
        self.model = RNNModel(
            input_chunk_length=self.context,
            model="LSTM",
            hidden_dim=64,
            n_rnn_layers=2,
            training_length=length,
            likelihood=QuantileRegression(self.levels),
            random_state=self.task["seed"],
            n_epochs=10_000,  # the budget of steps ends the training
            pl_trainer_kwargs={**QUIET_TRAINER, "max_steps": self.task["steps"]},
        )
        self.model.fit([scaled(y, *bounds(y)) for y in series], max_samples_per_ts=256, verbose=False)

    def predict(self, histories: list[Float]) -> Float:
        """Sample paths, in the units of y again."""
        sizes = [bounds(y) for y in histories]
        found = self.model.predict(
            n=self.horizon,
            series=[scaled(y[-self.context :], *size) for y, size in zip(histories, sizes, strict=True)],
            num_samples=100,
            verbose=False,
        )
        low, width = (np.array(column).reshape(-1, 1, 1) for column in zip(*sizes, strict=True))
        paths = np.stack([one.all_values()[:, 0] for one in found])
        values: Float = np.quantile(paths, self.levels, axis=-1).transpose(1, 2, 0) * width + low
        return values


class StatsForecast(Peer):
    """A statistical model of StatsForecast, fitted anew to every history."""

    packages = ("statsforecast",)
    settings = "fitted anew at every origin, to the last 1,500 steps at most"
    model = "SeasonalNaive"
    longest = 1500

    def prepare(self) -> None:
        """Forecast a short series, which compiles what is compiled."""
        super().prepare()
        length = 2 * max(self.task["seasonality"]) + 20
        self.predict([10 + np.random.default_rng(0).normal(size=length)])

    def predict(self, histories: list[Float]) -> Float:
        """Fit and forecast with central intervals, whose bounds are the quantiles."""
        from statsforecast import StatsForecast as Library
        from statsforecast import models

        period: Any = self.task["period"]
        if self.model == "MSTL":
            period = [season for season in self.task["seasonality"] if season > 1]
        library = Library(models=[getattr(models, self.model)(season_length=period)], freq=1)
        found = library.forecast(
            df=long_frame([y[-self.longest :] for y in histories]),
            h=self.horizon,
            level=sorted(round(100 * (1 - 2 * level)) for level in self.levels if level < 0.5),
        )
        columns = []
        for level in self.levels:
            side = "lo" if level < 0.5 else "hi"
            columns.append(self.model if level == 0.5 else f"{self.model}-{side}-{round(100 * abs(1 - 2 * level))}")
        values: Float = found[columns].to_numpy()
        return values.reshape(len(histories), self.horizon, len(self.levels))


class StatsForecastSeasonalNaive(StatsForecast):
    """Its seasonal naive, with intervals."""


class StatsForecastAutoEts(StatsForecast):
    """Exponential smoothing, chosen by information criterion."""

    model = "AutoETS"


class StatsForecastAutoTheta(StatsForecast):
    """Theta, chosen by error."""

    model = "AutoTheta"


class StatsForecastMstl(StatsForecast):
    """Decomposition into several seasons."""

    model = "MSTL"


PEERS: dict[str, type[Peer]] = {
    "neuralforecast-lstm": NeuralForecastLstm,
    "neuralforecast-nhits": NeuralForecastNhits,
    "gluonts-deepar": GluonTsDeepAr,
    "darts-rnn": DartsRnn,
    "statsforecast-autoets": StatsForecastAutoEts,
    "statsforecast-autotheta": StatsForecastAutoTheta,
    "statsforecast-mstl": StatsForecastMstl,
    "statsforecast-seasonal-naive": StatsForecastSeasonalNaive,
    "plain-naive": PlainNaive,
}

QUIET_TRAINER = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def main(name: str, folder: Path) -> None:
    """Fit, forecast from every origin, time one more forecast, write everything down."""
    task: Task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    frame = pd.read_parquet(folder / "series.parquet")
    series = [part.to_numpy(dtype=np.float64) for _, part in frame.groupby("unique_id", sort=False)["y"]]
    peer = PEERS[name](task)
    peer.prepare()
    fit_seconds, _ = timed(lambda: peer.fit([y[: len(y) - task["test"]] for y in series]))
    histories = [y[: len(y) - left] for left in task["origins"] for y in series]
    predict_seconds, quantiles = timed(lambda: in_batches(peer, histories))
    updates = []
    for number in range(1, min(ONE_BY_ONE, task["test"]) + 1):
        longer = series[0][: len(series[0]) - task["test"] + number]
        updates.append(timed(partial(peer.predict, [longer]))[0])
    shape = (len(task["origins"]), len(series), *quantiles.shape[1:])
    np.save(folder / "quantiles.npy", quantiles.reshape(shape).astype(np.float32), allow_pickle=False)
    result = {
        "fit_seconds": fit_seconds,
        "predict_seconds": predict_seconds,
        "update_seconds": statistics.median(updates),
        "settings": peer.settings,
        "versions": {name: version(name) for name in {package.partition(".")[0] for package in peer.packages}},
    }
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def in_batches(peer: Peer, histories: list[Float]) -> Float:
    """Forecasts of all histories, a batch at a time."""
    parts = [peer.predict(histories[at : at + peer.batch]) for at in range(0, len(histories), peer.batch)]
    return np.concatenate(parts)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of processor time, which do not depend on what else the machine does, and the result."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def long_frame(series: Sequence[Float]) -> pd.DataFrame:
    """Long frame with integer steps; names sort as the series are ordered."""
    names = [f"{number:07d}" for number in range(len(series))]
    lengths = [len(y) for y in series]
    return pd.DataFrame(
        {
            "unique_id": np.repeat(names, lengths),
            "ds": np.concatenate([np.arange(length) for length in lengths]),
            "y": np.concatenate(series),
        }
    )


def bounds(y: Float) -> tuple[float, float]:
    """Lowest value and range, which is never 0."""
    low, high = float(y.min()), float(y.max())
    return low, (high - low) or 1.0


def scaled(y: Float, low: float, width: float) -> Any:
    """A Darts series between 0 and 1."""
    from darts import TimeSeries

    return TimeSeries.from_values(((y - low) / width).astype(np.float32))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    os.environ.setdefault("NIXTLA_ID_AS_COL", "1")
    for logger in ("lightning", "lightning.pytorch", "pytorch_lightning", "lightning.fabric", "darts", "gluonts"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    main(sys.argv[1], Path(sys.argv[2]))
