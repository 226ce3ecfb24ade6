"""Stateless forecasts: fold the histories of a request, decode, forget. A pure function of model and request."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from forecaster import InputError
from service.bodies.covariates import ADVICE, read_future, read_static
from service.bodies.histories import History, read_history
from service.bodies.replies import Forecast
from service.bodies.schemas import ForecastsRequest
from service.engine.folding import Glance, dense, fold_ragged, static_values
from service.models.served import ServedModel, Want
from service.sampling import draw_of, draw_paths

__all__ = ["check_reply_size", "forecast_histories"]

_TOTAL = 5  # times the longest single history
_DECODED = 1024  # series decoded between two glances, four seconds of an ensemble's longest horizon
_LARGEST_REPLY = 20_000_000  # quantiles, all series together: 160 MB of numbers


def forecast_histories(
    model: ServedModel, body: ForecastsRequest, max_history_steps: int, glance: Glance, advice: str = ADVICE
) -> list[Forecast]:
    """Forecasts of every series of a request; `advice` is for one that lacks known covariates.

    Raises
    ------
    InputError
        A history cannot be read, a name repeats, all together are too long, or the horizon or levels are not answered.
    GivenUp
        So says `glance`.
    """
    assert body.series is not None
    want = model.want(body.horizon, body.quantile_levels)
    draw = draw_of(body.num_samples, body.seed, want.horizon * len(body.series))
    check_reply_size(len(body.series), want)
    names = [series.unique_id for series in body.series]
    if len(set(names)) < len(names):
        (name, _), *_ = Counter(names).most_common(1)
        raise InputError(f"series {name!r} appears twice; names must be unique within a request")
    histories = []
    for series in body.series:
        glance()
        histories.append(read_history(model, series.unique_id, series, max_history_steps))
    for name, history in zip(names, histories, strict=True):
        try:
            model.dates.check_end(history.steps[-1], want.horizon)
        except InputError as error:
            raise InputError(f"series {name!r}: {error}") from error
    total = sum(history.length for history in histories)
    if total > _TOTAL * max_history_steps:
        raise InputError(f"all histories together have {total} steps, more than {_TOTAL * max_history_steps}")
    forecaster = model.forecaster
    for series in body.series:
        read_static(model, series.unique_id, series.static)
    static = static_values(forecaster, names, [s.static for s in body.series])
    future = _future(model, body, histories, want.horizon, advice)
    with torch.inference_mode():
        states = fold_ragged(
            forecaster,
            forecaster.initial_state(torch.tensor([history.steps[0] for history in histories]), static),
            [
                dense(forecaster, dict(zip(h.steps, h.values, strict=True)), h.steps[0] - 1, h.steps[-1])
                for h in histories
            ],
            glance=glance,
        )
        parts = []
        for start in range(0, len(states), _DECODED):
            glance()
            rows = slice(start, start + _DECODED)
            known = None if future is None else future[rows]
            parts.append(forecaster.forecast(states.select(rows), want.horizon, want.quantile_levels, known))
    quantiles = np.concatenate(parts)
    finite = np.isfinite(quantiles).all(axis=(1, 2))
    if not finite.all():
        raise InputError(f"series {names[int(np.argmin(finite))]!r} has no finite forecast: its values are too extreme")
    paths = None if draw is None else draw_paths(model, names, states, want.horizon, draw, future)
    by_level = np.ascontiguousarray(quantiles.transpose(0, 2, 1))  # [B, Q, H]
    return [
        Forecast(model, name, history.steps[-1], want, by_level[i], None, None if paths is None else paths[i])
        for i, (name, history) in enumerate(zip(names, histories, strict=True))
    ]


def check_reply_size(series: int, want: Want) -> None:
    """Refuse a request whose reply would not fit.

    Raises
    ------
    InputError
        With the bound.
    """
    size = series * want.horizon * len(want.quantile_levels)
    if size > _LARGEST_REPLY:
        raise InputError(f"the forecasts together would have {size:,} quantiles, more than {_LARGEST_REPLY:,}")


def _future(
    model: ServedModel, body: ForecastsRequest, histories: list[History], horizon: int, advice: str
) -> torch.Tensor | None:
    """Known covariates of every series' coming steps, shape [B, horizon, K]; None for models without any."""
    parts = []
    for series, history in zip(body.series or (), histories, strict=True):
        try:
            future = read_future(model, series.future, horizon, model.dates, advice)
            if future is not None:
                future.check(history.steps[-1], horizon, model.dates)
                known = len(model.forecaster.config.covariates.known)
                parts.append(future.ahead(history.steps[-1], horizon, known))
        except InputError as error:
            raise InputError(f"series {series.unique_id!r}: {error}") from error
    return torch.from_numpy(np.stack(parts)) if parts else None
