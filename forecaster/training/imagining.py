"""Imagined series: draws from a broad prior over time series, to be played beside a small panel.

A few hundred values do not tell what series are like in general, and weights that know nothing else learn them by
heart. Series drawn from structural models do: levels that stay, wander or jump, trends, seasons, autoregression and
noise, all of random sizes. Training beside such draws is data augmentation (Bandara et al., 2021) from a prior in the
manner of prior-data fitted networks (Dooley et al., ForecastPFN, 2023).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pandas as pd

from forecaster.chunks import SHORTEST_SEGMENT
from forecaster.config import Config
from forecaster.panel import Panel

__all__ = ["imagine"]

Float = npt.NDArray[np.float64]

LARGEST_EXPONENT = 6.0
"""Logarithms of positive series are within this and its negative, times a size of 1 at most."""

SMALLEST_DEVIATION = 0.1


def imagine(panel: Panel, config: Config, number: int, generator: np.random.Generator) -> Panel:
    """Series with the configuration's seasons and support that end where the panel does.

    They are a horizon longer than the panel's, or short series would be forecast from states of an age that nothing was
    learnt at. Nothing is known of their covariates.

    Parameters
    ----------
    panel
        What may be learnt from.
    config
        With a chosen support.
    number
        Of series.
    generator
        The only source of randomness.
    """
    longest = SHORTEST_SEGMENT * config.training.chunk_length
    lengths = np.minimum(generator.choice(panel.lengths[panel.lengths > 0], number), longest) + config.horizon
    static = np.full((number, panel.static.shape[1]), np.nan)
    if config.covariates.country:
        static[:, -1] = 0  # no country
    return Panel(
        panel.calendar,
        [f"imagined {place}" for place in range(number)],
        panel.last_steps.max() - lengths + 1,
        [_series(config, int(length), generator) for length in lengths],
        panel.covariates,
        [np.full((length, panel.tables[0].shape[1]), np.nan) for length in lengths],
        static,
    )


def _series(config: Config, length: int, generator: np.random.Generator) -> Float:
    """One series."""
    steps = np.arange(length)
    path = _course(length, generator) * _size(0.1, 1.0, generator)
    for period in config.seasonality:
        if period > 1 and generator.random() < 0.7:
            path += _season(period, steps, generator) * _size(0.2, 2.0, generator)
    if generator.random() < 0.4:
        path += generator.choice([-1, 1]) * _size(0.2, 3.0, generator) * steps / length
    if generator.random() < 0.2:
        path += np.where(steps < generator.integers(length), 0.0, 2 * generator.normal())
    if config.support == "real":
        return path + generator.normal() * _size(0.1, 10.0, generator)
    size = _size(0.03, 1.0, generator)
    if generator.random() < 0.5:
        return np.exp(size * path.clip(-LARGEST_EXPONENT, LARGEST_EXPONENT))
    path -= path.mean()
    path *= size / max(float(np.abs(path).max()), 1e-9)
    path += 1
    return path


def _course(length: int, generator: np.random.Generator) -> Float:
    """What is neither season nor steady trend, of standard deviation 1."""
    shocks, noise = generator.normal(size=(2, length))
    kind = generator.random()
    if kind < 0.35:
        path = noise  # around a level
    elif kind < 0.65:
        path = _autoregression(shocks, generator.uniform(0.3, 0.98))
    elif kind < 0.9:  # a level that wanders, seen through noise
        path = np.cumsum(shocks) * generator.uniform(0.1, 1) + noise * generator.uniform(0, 1)
    else:  # a trend that wanders
        path = 0.3 * np.cumsum(_autoregression(shocks, generator.uniform(0.8, 0.98))) + noise
    return _standard(path)


def _autoregression(shocks: Float, coefficient: float) -> Float:
    """Each value is so much of the last one, and a shock: an exponentially weighted mean, in other units."""
    rest = 1 - coefficient
    first = np.concatenate([shocks[:1] * rest, shocks[1:]])
    return pd.Series(first).ewm(alpha=rest, adjust=False).mean().to_numpy() / rest


def _season(period: int, steps: npt.NDArray[np.int64], generator: np.random.Generator) -> Float:
    """A cycle of up to six harmonics, of standard deviation 1."""
    angle = 2 * math.pi * steps / period
    season = np.zeros(len(steps))
    for wave in range(1, min(period // 2, 1 + int(generator.integers(6))) + 1):
        season += generator.normal() / wave * np.cos(wave * angle + generator.uniform(0, 2 * math.pi))
    return _standard(season)


def _standard(path: Float) -> Float:
    """Of standard deviation 1, or less where a path is too short or too flat to have one."""
    scaled: Float = path / max(float(path.std()), SMALLEST_DEVIATION)
    return scaled


def _size(low: float, high: float, generator: np.random.Generator) -> float:
    """Between two sizes, every factor as likely as any other."""
    return math.exp(generator.uniform(math.log(low), math.log(high)))
