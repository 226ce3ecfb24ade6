"""The nine laws of the carried state, on one page.

    state = fold(observe, observations)

Each law is drawn over every cell, head and option, both transforms, ragged lengths, missing values and horizons beyond
the trained one. Everything that serves, trains or recovers leans on them.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forecaster import Config, Forecaster, StreamState
from forecaster.marginals import level_name
from tests.forecaster.kit import (
    COVERED,
    VARIANTS,
    Float,
    assert_identical_state,
    assert_same_forecast,
    assert_same_state,
    batches,
    cuts_of,
    forecaster_of,
    network_of,
    padded,
    series,
    table_of,
)

CONFIGS = st.sampled_from((*VARIANTS, *COVERED))
CONTINUOUS = st.sampled_from(
    [config for config in (*VARIANTS, *COVERED) if not config.counts]
)  # a count has a unit of its own
HORIZONS = st.sampled_from([1, 6, 7, 24])  # trained: 6
FIRST = 1000


def warmed(forecaster: Forecaster, histories: list[Float]) -> StreamState:
    return forecaster.warm_up(histories, [FIRST + 3 * row for row in range(len(histories))])


# 1 ----------------------------------------------------------------------------------------------------------------


@given(config=CONFIGS, y=series(min_size=1), data=st.data())
def test_chunking_a_series_anywhere_changes_no_output_and_no_state(
    config: Config, y: Float, data: st.DataObject
) -> None:
    network, table = network_of(config), torch.from_numpy(y).unsqueeze(0)
    start = forecaster_of(config).initial_state([FIRST])
    cuts = data.draw(cuts_of(len(y)))

    whole, after_whole = network.observe(start, table)
    state, parts = start, []
    for a, b in itertools.pairwise(cuts):
        encoded, state = network.observe(state, table[:, a:b])
        parts.append(encoded)

    for name in ("hidden", "features", "scaled"):
        found = torch.cat([getattr(part, name) for part in parts], 1)
        torch.testing.assert_close(found, getattr(whole, name), rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert_same_state(state, after_whole)


# 2 ----------------------------------------------------------------------------------------------------------------


@given(config=CONFIGS, y=series(min_size=1, max_size=40))
def test_streaming_equals_one_pass_at_every_step(config: Config, y: Float) -> None:
    network, forecaster = network_of(config), forecaster_of(config)
    start = forecaster.initial_state([FIRST])
    encoded, after = network.observe(start, torch.from_numpy(y).unsqueeze(0))

    state, streamed, corrections = start, [], []
    for value in y:
        state = forecaster.observe(state, torch.tensor([value], dtype=torch.float64))
        streamed.append(forecaster.forecast(state, quantile_levels=config.quantile_levels)[0])
        corrections.append(state.correction[0])
    each_step = encoded.at(0)
    parameters = network.calibrated(each_step, torch.stack(corrections))
    quantiles = network.head.quantiles(parameters, each_step.frame, config.quantile_levels)
    in_one_pass = quantiles.swapaxes(-1, -2).numpy()

    assert_same_state(state, after)
    seen = np.cumsum(~np.isnan(y)) > 0
    assert_same_forecast(np.array(streamed)[seen], in_one_pass[seen], counts=config.counts)
    assert np.isnan(np.array(streamed)[~seen]).all()


@given(config=CONFIGS, histories=batches(), horizon=HORIZONS)
def test_streaming_a_ragged_batch_equals_warming_it_up(config: Config, histories: list[Float], horizon: int) -> None:
    forecaster = forecaster_of(config)
    warm = warmed(forecaster, histories)

    table, lengths = padded(histories)
    state = warmed(forecaster, [y[:0] for y in histories])
    for t in range(table.shape[1]):
        rows = torch.nonzero(lengths > t).squeeze(1)
        state = state.replace_rows(rows, forecaster.observe(state.select(rows), table[rows, t]))

    assert_same_state(state, warm)
    assert_same_forecast(forecaster.forecast(state, horizon), forecaster.forecast(warm, horizon), counts=config.counts)


# 3 ----------------------------------------------------------------------------------------------------------------

NEIGHBOURS: list[Callable[[int], Float]] = [
    lambda n: np.full(n, np.nan),
    lambda n: np.full(n, np.inf),
    lambda n: np.full(n, -1e30),
    lambda n: np.full(n, 7.0),
    lambda n: np.zeros(n),
    lambda n: np.where(np.arange(n) % 2, 1e30, 1e-30),
]


@given(
    config=CONFIGS,
    y=series(min_size=1),
    neighbours=st.lists(st.tuples(st.sampled_from(NEIGHBOURS), st.integers(0, 70)), min_size=1, max_size=4),
    place=st.integers(0, 4),
    horizon=HORIZONS,
    filler=st.sampled_from([np.nan, np.inf, 1e30]),
)
def test_isolation_a_row_never_feels_its_neighbours(
    config: Config,
    y: Float,
    neighbours: list[tuple[Callable[[int], Float], int]],
    place: int,
    horizon: int,
    filler: float,
) -> None:
    forecaster = forecaster_of(config)
    alone = forecaster.warm_up([y], [FIRST])
    histories = [make(size) for make, size in neighbours]
    place = min(place, len(histories))
    histories.insert(place, y)
    table, lengths = padded(histories, filler)

    together = forecaster.fold(forecaster.initial_state([FIRST] * len(histories)), table, lengths)

    assert_same_state(together.select([place]), alone)
    assert_same_forecast(
        forecaster.forecast(together, horizon)[[place]], forecaster.forecast(alone, horizon), counts=config.counts
    )


# 4 ----------------------------------------------------------------------------------------------------------------


@given(config=CONFIGS, histories=batches(min_rows=2), data=st.data())
def test_reset_rows_start_afresh_and_no_other_row_moves(
    config: Config, histories: list[Float], data: st.DataObject
) -> None:
    forecaster = forecaster_of(config)
    state = warmed(forecaster, histories)
    rows = data.draw(st.lists(st.integers(0, len(histories) - 1), unique=True, min_size=1))
    kept = [row for row in range(len(histories)) if row not in rows]
    fresh = forecaster.initial_state([FIRST] * len(rows))

    reset = state.replace_rows(torch.tensor(rows), fresh)

    assert_identical_state(reset.select(rows), fresh)
    if kept:
        assert_identical_state(reset.select(kept), state.select(kept))
    y = torch.arange(5.0 * len(rows), dtype=torch.float64).reshape(len(rows), 5)
    again = torch.full((len(histories), 5), 3.0, dtype=torch.float64)
    again[rows] = y
    assert_same_state(forecaster.fold(reset, again).select(rows), forecaster.fold(fresh, y))


# 5 ----------------------------------------------------------------------------------------------------------------


@given(config=CONFIGS, histories=batches(), horizon=HORIZONS)
def test_purity_a_forecast_or_a_fold_changes_nothing_and_answers_the_same_twice(
    config: Config, histories: list[Float], horizon: int
) -> None:
    forecaster = forecaster_of(config)
    state = warmed(forecaster, histories)
    before = {spec.name: getattr(state, spec.name).clone() for spec in fields(state) if spec.init}
    weights = forecaster.fingerprint()

    first = forecaster.forecast(state, horizon)
    folded = forecaster.fold(state, torch.full((len(state), 3), 5.0, dtype=torch.float64))
    second = forecaster.forecast(state, horizon)

    np.testing.assert_array_equal(first, second)
    assert len(folded) == len(state)
    for name, tensor in before.items():
        assert torch.equal(getattr(state, name).nan_to_num(nan=-1.5), tensor.nan_to_num(nan=-1.5)), name
    assert forecaster.fingerprint() == weights


# 6 ----------------------------------------------------------------------------------------------------------------


@given(config=CONFIGS, histories=batches(min_size=0), horizon=HORIZONS)
def test_round_trip_of_artifact_and_state_changes_no_forecast(
    config: Config, histories: list[Float], horizon: int
) -> None:
    forecaster = forecaster_of(config)
    state = warmed(forecaster, histories)

    with tempfile.TemporaryDirectory() as folder:
        forecaster.save(f"{folder}/artifact")
        loaded = type(forecaster).load(f"{folder}/artifact")
    read = loaded.state_from_bytes(state.to_bytes())

    assert loaded.config == forecaster.config
    assert loaded.fingerprint() == forecaster.fingerprint()
    assert_identical_state(read, state)
    np.testing.assert_array_equal(loaded.forecast(read, horizon), forecaster.forecast(state, horizon))


# 7 ----------------------------------------------------------------------------------------------------------------


@given(
    config=CONFIGS,
    histories=batches(),
    horizon=HORIZONS,
    levels=st.lists(st.floats(0.025, 0.975), min_size=2, max_size=12, unique_by=level_name).map(sorted),
)
def test_quantiles_never_cross(config: Config, histories: list[Float], horizon: int, levels: list[float]) -> None:
    forecaster = forecaster_of(config)
    state = warmed(forecaster, histories)
    observed = ~torch.isnan(state.ring).all(1).numpy()

    trained = forecaster.forecast(state, horizon, config.quantile_levels)[observed]
    between = forecaster.forecast(state, horizon, levels)[observed]

    assert np.isfinite(trained).all()
    assert (np.diff(trained, axis=-1) >= 0).all()
    # Interpolation rounds, so quantiles nearer than rounding may trade places by it.
    assert (np.diff(between, axis=-1) >= -1e-13 * np.abs(between[..., 1:])).all()


@given(config=CONTINUOUS, histories=batches(), horizon=HORIZONS, factor=st.floats(1e-6, 1e6))
def test_multiplying_y_multiplies_the_forecast(
    config: Config, histories: list[Float], horizon: int, factor: float
) -> None:
    forecaster = forecaster_of(config)

    plain = forecaster.forecast(warmed(forecaster, histories), horizon)
    multiplied = forecaster.forecast(warmed(forecaster, [y * factor for y in histories]), horizon)

    assert_same_forecast(multiplied, plain * factor)


@given(config=CONTINUOUS, y=series(min_size=1), zeros=st.integers(1, 90), factor=st.floats(1e-6, 1e6), data=st.data())
def test_multiplying_y_multiplies_the_forecast_after_zeros_that_fill_the_ring(
    config: Config, y: Float, zeros: int, factor: float, data: st.DataObject
) -> None:
    """Older changes are still remembered there, and nothing is left that tells their size."""
    history = np.concatenate([y, np.zeros(zeros), data.draw(series(max_size=3))])
    forecaster = forecaster_of(config)

    plain = forecaster.forecast(warmed(forecaster, [history]))
    multiplied = forecaster.forecast(warmed(forecaster, [history * factor]))

    assert_same_forecast(multiplied, plain * factor)


# 8 ----------------------------------------------------------------------------------------------------------------


@given(config=CONFIGS, y=series(min_size=2), data=st.data())
def test_causality_what_comes_after_the_cutoff_changes_nothing_before_it(
    config: Config, y: Float, data: st.DataObject
) -> None:
    network, forecaster = network_of(config), forecaster_of(config)
    cutoff = data.draw(st.integers(1, len(y) - 1))
    other = y.copy()
    other[cutoff:] = data.draw(st.sampled_from([np.nan, np.inf, -1e30, 0.0, 1e30]))
    start = forecaster.initial_state([FIRST])

    encoded, _ = network.encode(start, torch.from_numpy(y).unsqueeze(0))
    changed, _ = network.encode(start, torch.from_numpy(other).unsqueeze(0))

    before = (slice(None), slice(0, cutoff))
    mine, theirs = encoded.at(before), changed.at(before)
    for name in ("hidden", "features", "scaled"):
        assert torch.equal(getattr(mine, name), getattr(theirs, name)), name
    for name, one, two in zip(mine.frame._fields, mine.frame, theirs.frame, strict=True):
        assert torch.equal(one, two), name
    assert torch.equal(network.decode(mine), network.decode(theirs))


@given(y=series(min_size=2, missing=False), data=st.data())
def test_causality_past_covariates_reach_no_earlier_step_and_known_ones_only_the_forecast(
    y: Float, data: st.DataObject
) -> None:
    config = COVERED[0]
    network, forecaster = network_of(config), forecaster_of(config)
    cutoff = data.draw(st.integers(1, len(y) - 1))
    values = torch.from_numpy(y).unsqueeze(0)
    table = table_of(config, FIRST + torch.arange(len(y))).unsqueeze(0)
    other = table.clone()
    other[:, cutoff:] = data.draw(st.sampled_from([torch.nan, 0.0, 1.0]))
    start = forecaster.initial_state([FIRST])

    encoded, _ = network.encode(start, values, None, table)
    changed, _ = network.encode(start, values, None, other)

    before = (slice(None), slice(0, cutoff))
    for name in ("hidden", "features", "scaled"):
        assert torch.equal(getattr(encoded.at(before), name), getattr(changed.at(before), name)), name
    state = forecaster.warm_up([y], [FIRST])
    horizon, step = config.horizon, data.draw(st.integers(0, config.horizon - 1))
    future = table_of(config, FIRST + len(y) + torch.arange(horizon)).unsqueeze(0)[..., :2]
    amended = future.clone()
    amended[:, step, 0] = 9.0
    one, two = (forecaster.forecast(state, future=known)[0] for known in (future, amended))
    # The local network sees one step; where all quantiles are at a bound, 0 or the most there may be, they stay.
    free = np.ptp([one[step], two[step]]) > 0
    assert np.flatnonzero((one != two).any(1)).tolist() == ([step] if free else [])


# 9 ----------------------------------------------------------------------------------------------------------------


@given(config=CONFIGS, histories=batches(min_rows=2), horizon=HORIZONS, data=st.data())
def test_replay_from_any_snapshot_and_tail_equals_an_undisturbed_run(
    config: Config, histories: list[Float], horizon: int, data: st.DataObject
) -> None:
    forecaster = forecaster_of(config)
    undisturbed = warmed(forecaster, histories)

    snapshots = []
    for row, y in enumerate(histories):
        state = forecaster.initial_state([FIRST + 3 * row])
        for a, b in itertools.pairwise(data.draw(cuts_of(len(y)))):
            state = forecaster.fold(state, torch.from_numpy(y[a:b]).unsqueeze(0))
            (record,) = state.to_bytes()
            state = forecaster.state_from_bytes([bytes(record)])
        snapshots.append(record)
    order = data.draw(st.permutations(range(len(histories))))
    recovered = forecaster.state_from_bytes([snapshots[row] for row in order]).select(np.argsort(order).tolist())

    assert_same_state(recovered, undisturbed)
    assert_same_forecast(
        forecaster.forecast(recovered, horizon), forecaster.forecast(undisturbed, horizon), counts=config.counts
    )


@given(config=CONFIGS, histories=batches(min_rows=2), data=st.data())
def test_replay_in_batches_of_any_order_and_company_equals_an_undisturbed_run(
    config: Config, histories: list[Float], data: st.DataObject
) -> None:
    forecaster = forecaster_of(config)
    undisturbed = warmed(forecaster, histories)

    slab = warmed(forecaster, [y[:0] for y in histories])
    done = [0] * len(histories)
    while any(done[row] < len(y) for row, y in enumerate(histories)):
        waiting = [row for row, y in enumerate(histories) if done[row] < len(y)]
        rows = data.draw(st.permutations(waiting))[: data.draw(st.integers(1, len(waiting)))]
        parts = [histories[row][done[row] :][: data.draw(st.integers(1, 25))] for row in rows]
        slab.assign(rows, forecaster.fold(slab.select(rows), *padded(parts)))
        for row, part in zip(rows, parts, strict=True):
            done[row] += len(part)

    assert_same_state(slab, undisturbed)


@pytest.mark.parametrize("config", [*VARIANTS[:3], COVERED[0]])
def test_swapping_the_model_and_back_restores_the_state(config: Config) -> None:
    """The way back is a snapshot from before the swap, and what was observed since."""
    old, new = forecaster_of(config, seed=0), forecaster_of(config, seed=1)
    y = 10 + np.sin(np.arange(50.0))
    undisturbed = old.warm_up([y], [FIRST])

    kept = old.warm_up([y[:30]], [FIRST]).to_bytes()
    under_new = new.warm_up([y], [FIRST])
    back = old.fold(old.state_from_bytes(kept), torch.from_numpy(y[30:]).unsqueeze(0))

    assert not np.allclose(new.forecast(under_new), old.forecast(undisturbed), rtol=1e-3)
    assert_same_state(back, undisturbed)
