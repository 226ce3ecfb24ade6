"""Small networks whose every weight is alive, strategies for series, and what "equal" means between two states.

A fresh head corrects nothing (its last layers start at zero), so a test on fresh weights would not notice a lost
hidden state. Networks made here are disturbed by seeded noise. Covariates are a formula of the steps.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import strategies as st

from forecaster import Config, CovariatesConfig, Forecaster, NetworkConfig, StreamState
from forecaster.almanac import country_number
from forecaster.network import Encoded, ForecastNetwork

Float = npt.NDArray[np.float64]

NOISE = 0.15


def config_of(
    transform: str = "log",
    seasonality: tuple[int, ...] = (4,),
    head: str = "quantile",
    calibration: str = "adaptive",
    **network: Any,
) -> Config:
    """Hourly, horizon 6, hidden size 8 unless stated."""
    options: dict[str, Any] = {"hidden_size": 8, "dropout": 0.0, "members": 1} | network
    return Config(
        freq="h",
        horizon=6,
        seasonality=seasonality,
        transform=transform,  # type: ignore[arg-type]
        calibration=calibration,  # type: ignore[arg-type]
        network=NetworkConfig(**options),
        head=head,  # type: ignore[arg-type]
    )


class Untimed:
    """Trials that nothing is left to, without a time box."""

    def train(self, config: Config) -> Forecaster:
        pytest.fail(f"nothing is left to a race: {config}")

    def room(self, config: Config) -> float:
        del config
        return np.inf


TINY = config_of("log")
TINY_LINEAR = config_of("linear")

VARIANTS = (
    TINY,
    TINY_LINEAR,
    config_of("log", (3, 7), proj_size=4, layer_norm=True),
    config_of("linear", (1,), num_layers=1, residual=False),
    config_of("linear", (5,), num_layers=3, residual=False, bias=False, dropout=0.4),
    config_of("log", (4, 12), cell="gru", layer_norm=True),
    config_of("linear", (7,), cell="gru", num_layers=3, residual=False),
    config_of("linear", (2, 6), cell="rnn", num_layers=2),
    config_of("log", (24,), cell="rnn", num_layers=1, residual=False, proj_size=0),
    config_of("log", (4,), members=3),
    config_of("linear", (3,), cell="gru", members=2),
    config_of("log", (4,), head="student_t"),
    config_of("linear", (3,), head="student_t", cell="gru"),
    replace(config_of("log", (3,), head="student_t"), support="nonnegative"),
    replace(config_of("linear", (4,), cell="rnn"), support="nonnegative"),
    config_of("log", (4,), head="negative_binomial", num_layers=1),
    config_of("linear", (5,), head="zero_inflated", cell="gru"),
    config_of("linear", (4,), calibration="static"),
    config_of("log", (4,), calibration="off"),
)
"""Every cell, head and option at least once, with both transforms and rings of several lengths."""


COVARIATES = CovariatesConfig(
    known=("price", "weather"),
    past=("visitors",),
    static=("size", "country"),
    calendar=("day", "week", "year"),
    holidays="country",
    categories=(("weather", "rain", "sun"), ("country", "DE", "FR")),
)

COVERED = (
    replace(TINY, covariates=COVARIATES),
    replace(
        config_of("linear", (3, 7), cell="gru", num_layers=1), covariates=replace(COVARIATES, past=(), calendar=())
    ),
    replace(config_of("log", (4,), residual=False), covariates=CovariatesConfig(calendar=("day",), holidays="DE")),
)
"""Every role of a covariate, or the calendar alone."""


def table_of(config: Config, steps: torch.Tensor) -> torch.Tensor:
    """What the dynamic columns are at these steps [...]: some number or category, sometimes missing; [..., D]."""
    columns = []
    for place, name in enumerate(config.covariates.dynamic, start=2):
        if config.covariates.values_of(name) is None:
            numbers = 5 * torch.sin(0.7 * place * steps.double())
        else:
            numbers = (steps * place // 3 % 3).double()
        columns.append(torch.where(steps % (7 * place) == 0, torch.nan, numbers))
    return torch.stack(columns, -1) if columns else torch.empty((*steps.shape, 0), dtype=torch.float64)


def static_of(config: Config, first_steps: torch.Tensor) -> torch.Tensor:
    """Static numbers of series that begin at these steps."""
    covariates = config.covariates
    columns = [(first_steps + place) % 3 for place, _ in enumerate(covariates.static)]
    if covariates.holidays:
        countries = torch.tensor([country_number("DE"), country_number("FR"), 0])
        columns.append(countries[first_steps % 3])
    return torch.stack(columns, -1).double() if columns else torch.empty(len(first_steps), 0, dtype=torch.float64)


class SuppliedNetwork(ForecastNetwork):
    """A network that is given, wherever a test gives none, the covariates that belong to the steps it folds."""

    def encode(
        self,
        state: StreamState,
        y: torch.Tensor,
        lengths: torch.Tensor | None = None,
        covariates: torch.Tensor | None = None,
    ) -> tuple[Encoded, StreamState]:
        """With the table of the steps."""
        return super().encode(state, y, lengths, self._supplied(state, y, covariates))

    def observe(
        self,
        state: StreamState,
        y: torch.Tensor,
        lengths: torch.Tensor | None = None,
        covariates: torch.Tensor | None = None,
        trail: torch.Tensor | None = None,
    ) -> tuple[Encoded, StreamState]:
        """With the table of the steps."""
        return super().observe(state, y, lengths, self._supplied(state, y, covariates), trail)

    def _supplied(self, state: StreamState, y: torch.Tensor, covariates: torch.Tensor | None) -> torch.Tensor:
        steps = state.last_step.unsqueeze(1) + torch.arange(1, y.shape[1] + 1)
        return table_of(self.config, steps) if covariates is None else covariates

    def decode(self, encoded: Encoded, future: torch.Tensor | None = None, steps: int | None = None) -> torch.Tensor:
        """With the table of the coming steps."""
        if future is None and encoded.step is not None:
            ahead = encoded.step.unsqueeze(-1) + torch.arange(1, (steps or self.config.horizon) + 1)
            future = table_of(self.config, ahead)[..., : len(self.config.covariates.known)]
        return super().decode(encoded, future, steps)


class SuppliedForecaster(Forecaster):
    """A forecaster whose series have the covariates that belong to their steps."""

    def initial_state(self, first_steps: Any, static: torch.Tensor | None = None) -> StreamState:
        """With the static numbers of the series."""
        first_steps = torch.as_tensor(first_steps, dtype=torch.int64)
        return super().initial_state(first_steps, static_of(self.config, first_steps) if static is None else static)

    def change(
        self, state: StreamState, rows: torch.Tensor, y: torch.Tensor, covariates: torch.Tensor | None = None
    ) -> StreamState:
        """With the table of the step."""
        supplied = table_of(self.config, state.last_step[rows] + 1) if covariates is None else covariates
        return super().change(state, rows, y, supplied)

    def forecast(
        self, state: StreamState, horizon: int | None = None, quantile_levels: Any = None, future: Any = None
    ) -> Float:
        """With the known columns of the coming steps."""
        if future is None:
            steps = state.last_step.unsqueeze(1) + torch.arange(1, (horizon or self.config.horizon) + 1)
            future = table_of(self.config, steps)[..., : len(self.config.covariates.known)]
        return super().forecast(state, horizon, quantile_levels, future)


@cache
def network_of(config: Config, seed: int = 0) -> ForecastNetwork:
    """Network in evaluation mode with random weights, all of them disturbed."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = (SuppliedNetwork if config in COVERED else ForecastNetwork)(config)
        for parameter in network.parameters():
            parameter.add_(NOISE * torch.randn(parameter.shape))
        network.blend.add_(NOISE * torch.randn(network.blend.shape))
    return network.eval().requires_grad_(False)


@cache
def forecaster_of(config: Config, seed: int = 0) -> Forecaster:
    """Forecaster around `network_of` the same."""
    return (SuppliedForecaster if config in COVERED else Forecaster)(network_of(config, seed))


def values(missing: bool = True) -> st.SearchStrategy[float]:
    """Numbers of a series before its unit: many positive, some zero, negative or missing."""
    numbers = st.integers(-200, 1000).map(lambda k: k / 10)
    return st.one_of(numbers, numbers, numbers, st.just(float("nan"))) if missing else numbers


@st.composite
def series(draw: st.DrawFn, min_size: int = 0, max_size: int = 60, missing: bool = True) -> Float:
    """One history: arbitrary values, or a noisy season, in some unit and around some level, with or without gaps."""
    size = draw(st.integers(min_size, max_size))
    if draw(st.booleans()):
        y = np.array(draw(st.lists(values(missing), min_size=size, max_size=size)), dtype=np.float64)
    else:
        generator = np.random.default_rng(draw(st.integers(0, 2**16)))
        y = 20 + 8 * np.sin(np.arange(size) * np.pi / 2) + generator.normal(size=size)
        if missing:
            y[generator.random(size) < draw(st.sampled_from([0.0, 0.2, 0.9]))] = np.nan
    return y * draw(st.sampled_from([1.0, 1e-3, 1e5])) + draw(st.sampled_from([0.0, 0.0, 100.0, 1e6]))


@st.composite
def batches(
    draw: st.DrawFn, min_rows: int = 1, max_rows: int = 4, min_size: int = 1, max_size: int = 60
) -> list[Float]:
    """Histories of several series, each of its own length."""
    rows = draw(st.integers(min_rows, max_rows))
    return [draw(series(min_size, max_size)) for _ in range(rows)]


def padded(histories: list[Float], filler: float = np.nan) -> tuple[torch.Tensor, torch.Tensor]:
    """Ragged histories as a table [B, T] and their lengths [B]."""
    lengths = torch.tensor([len(y) for y in histories], dtype=torch.int64)
    table = np.full((len(histories), int(lengths.max())), filler)
    for row, y in enumerate(histories):
        table[row, : len(y)] = y
    return torch.from_numpy(table), lengths


def cuts_of(length: int) -> st.SearchStrategy[list[int]]:
    """Places to cut a series of `length` steps, from 0 to its end."""
    inner = st.lists(st.integers(1, length - 1), unique=True, max_size=6) if length > 1 else st.just([])
    return inner.map(lambda places: [0, *sorted(places), length])


def assert_same_state(found: StreamState, expected: StreamState) -> None:
    """Equal clocks and values, bit for bit; recurrent state, statistics and calibration to rounding."""
    for name in ("ring", "age", "silence", "last_step", "static"):
        torch.testing.assert_close(
            getattr(found, name),
            getattr(expected, name),
            rtol=0,
            atol=0,
            equal_nan=True,
            msg=lambda m, n=name: f"{n}: {m}",
        )
    for name, rtol, atol in (
        ("hidden", 1e-5, 1e-5),
        ("cell", 1e-5, 1e-5),
        ("statistics", 1e-9, 1e-12),
        ("correction", 1e-5, 1e-5),
        ("aboard", 1e-4, 1e-4),
        ("arrived", 0.0, 0.0),
        ("ruler", 1e-9, 0.0),
    ):
        torch.testing.assert_close(
            getattr(found, name),
            getattr(expected, name),
            rtol=rtol,
            atol=atol,
            equal_nan=True,
            msg=lambda m, n=name: f"{n}: {m}",
        )
    for place, (one, two) in enumerate(zip(found.flight.unbind(1), expected.flight.unbind(1), strict=True)):
        # Distances are kept as inverses, which magnify the rounding of small ones: compared as distances.
        flights, atol = ((one, two), 1e-4) if place == 0 else ((1 / one, 1 / two), 1e-5)
        torch.testing.assert_close(*flights, rtol=1e-4, atol=atol, equal_nan=True)
    assert_same_scores(found, expected)


def assert_same_scores(found: StreamState, expected: StreamState) -> None:
    """Forecasts in flight and sums of scores, to rounding of the series' largest value; bounds may be just missed."""
    size = expected.ring.abs().nan_to_num().amax(1).view(-1, 1, 1)
    if expected.issued.numel():
        size = torch.maximum(size, expected.issued.abs().nan_to_num().amax((1, 2), keepdim=True))
    assert torch.equal(torch.isnan(found.issued), torch.isnan(expected.issued))
    assert bool(((found.issued - expected.issued).nan_to_num().abs() <= 1e-4 * size).all())
    count, *sums, covered = (found.quality - expected.quality).abs().unbind(2)
    assert not count.any()
    assert bool((covered <= 2).all())
    truths = expected.quality[:, 0, 0].unsqueeze(1)
    largest = torch.maximum(expected.quality[:, 0, 1:5].amax((1, 2)).view(-1, 1, 1), size) if truths.numel() else size
    for difference in sums:
        assert bool((difference <= 1e-3 * largest + 1e-4 * size * truths).all())


def assert_identical_state(found: StreamState, expected: StreamState) -> None:
    """Equal bit for bit."""
    assert len(found) == len(expected)
    assert found.to_bytes() == expected.to_bytes()


def assert_same_forecast(found: Float, expected: Float, rtol: float = 1e-5, counts: bool = False) -> None:
    """Equal to 1e-5 of each row's largest value; counts to one, or to ten times that.

    A quantile of a widely dispersed count multiplies the rounding of its parameters, and crosses whole numbers.
    """
    assert found.shape == expected.shape
    magnitude = np.nan_to_num(np.abs(expected)).max(axis=tuple(range(1, expected.ndim)), keepdims=True, initial=0.0)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    error = np.nan_to_num(np.abs(found - expected))
    assert np.all(error <= np.maximum((10 if counts else 1) * rtol * magnitude, 1.0 * counts)), (
        f"off by {np.max(error / np.where(magnitude > 0, magnitude, 1.0))}"
    )
