"""Causal scaling against a loop over steps, and its transform as a bijection."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forecaster import StreamState
from forecaster.kernels import LARGEST_SCALED
from forecaster.scaling import Frame, Transform, advance, describe, restore, settle, transform
from forecaster.state import StateLayout
from tests.forecaster.kit import Float, series

KINDS: tuple[Transform, ...] = ("log", "linear")


def empty_state(width: int, first: int = 1000) -> StreamState:
    return StateLayout(layers=1, hidden=1, cell=1, ring=width, statistics=4).initial(torch.tensor([first]))


def frame_at(location: float, scale: float, unit: float) -> Frame:
    return Frame(*(torch.tensor([value], dtype=torch.float64) for value in (location, scale, unit)))


# -- the transform -------------------------------------------------------------------------------------------------


@given(
    kind=st.sampled_from(KINDS),
    location=st.floats(-1e3, 1e6),
    relative_scale=st.floats(1.0, 5.0),
    unit=st.floats(1e-3, 3.0),
    places=st.lists(st.floats(-20, 20), min_size=1, max_size=10),
)
def test_restore_is_the_inverse_of_transform(
    kind: Transform, location: float, relative_scale: float, unit: float, places: list[float]
) -> None:
    scale = max(abs(location), 1e-3) * relative_scale
    frame = frame_at(location, scale, unit)
    y = torch.tensor([places], dtype=torch.float64) * scale + location

    back = restore(transform(y, frame, kind), frame, kind)

    np.testing.assert_allclose(back.numpy(), y.numpy(), rtol=1e-4, atol=1e-4 * scale)


@given(kind=st.sampled_from(KINDS), location=st.floats(0, 1e3), unit=st.floats(1e-2, 2.0), seed=st.integers(0, 2**16))
def test_the_transform_keeps_order_and_puts_the_location_at_zero(
    kind: Transform, location: float, unit: float, seed: int
) -> None:
    frame = frame_at(location, location + 1.0, unit)
    y = np.sort(np.random.default_rng(seed).normal(location, 3 * (location + 1), 20))
    table = torch.from_numpy(np.concatenate([y, [location]])).unsqueeze(0)

    scaled = transform(table, frame, kind)[0]

    assert (torch.diff(scaled[:-1]) >= 0).all()
    assert scaled[-1] == 0
    assert torch.isfinite(scaled).all()


@pytest.mark.parametrize("kind", KINDS)
def test_small_changes_on_a_huge_level_are_not_rounded_away(kind: Transform) -> None:
    frame = frame_at(1e12, 1e12, 1e-9)
    y = torch.tensor([[1e12, 1e12 + 1, 1e12 + 1000]], dtype=torch.float64)

    scaled = transform(y, frame, kind)

    torch.testing.assert_close(scaled[0, 2] / scaled[0, 1], torch.tensor(1000.0), rtol=1e-3, atol=0)
    np.testing.assert_allclose(restore(scaled, frame, kind).numpy(), y.numpy(), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [1e3, 1e6, 1e9])
def test_a_level_far_above_its_changes_is_seen_like_any_other(level: float, kind: Transform) -> None:
    """A meter that reads a million and moves by five: the network sees the moves."""
    y = torch.from_numpy(level + 5 * np.sin(np.arange(48) * 2 * np.pi / 24)).unsqueeze(0)

    history, _ = advance(empty_state(24), y, seasonality=(24,), kind=kind)

    assert float(history.frame.unit[0, -1] * history.frame.scale[0, -1]) == pytest.approx(5 / math.sqrt(2), rel=0.05)
    assert float(history.scaled[0, -1].abs().max()) == pytest.approx(math.sqrt(2), rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_of_nothing_but_zeros_is_finite_both_ways(kind: Transform) -> None:
    frame = frame_at(0.0, 0.0, 0.3)

    assert torch.isfinite(transform(torch.tensor([[0.0, 5.0, -5.0]], dtype=torch.float64), frame, kind)).all()
    assert restore(torch.tensor([[0.0, 7.0]]), frame, kind).tolist() == [[0.0, 0.0]]


def test_the_log_transform_continues_as_its_tangent() -> None:
    frame = frame_at(1.0, 1.0, 1.0)
    edge = 0.05 * (1 + 1 / 30) - 1 / 30  # where (y + c) / (location + c) reaches the floor

    places = torch.tensor([[edge - 1e-3, edge, edge + 1e-3]], dtype=torch.float64)

    below, at, above = transform(places, frame, "log")[0].tolist()

    assert at == pytest.approx(math.log(0.05), abs=1e-5)
    assert above - at == pytest.approx(at - below, rel=0.05)


# -- frames and histories against a loop ---------------------------------------------------------------------------


def expected_of(seen: Float, season: int, silence: int, changes: list[float], width: int, kept: float) -> float:
    """What stands for a missing value after these ones, copies included, the oldest of which may have left the ring."""
    seen = seen[-width:]
    last = seen[-1] if len(seen) else math.nan
    if silence > width / 2:
        return last if math.isnan(kept) else kept
    before = seen[-season] if len(seen) >= season else math.nan
    if math.isnan(before):
        return last
    if len(seen) < silence + season or not changes[1]:
        return before
    now, then = seen[-silence], seen[-silence - season]
    share = 1 - silence * (changes[0] / changes[1]) ** 2
    found = before + share * (now - then) if share > 0 and not math.isnan(then) else before
    return 0.0 if found < 0 <= min(before, now, then, before) else found


def oracle(y: Float, width: int, lag: int, season: int, kind: Transform) -> list[dict[str, object]]:
    """What is known at each step, by following one series with a dictionary of phases."""
    ring: dict[int, float] = {}
    count, total = [0.0, 0.0], [0.0, 0.0]
    decay = 0.5 ** (1 / (8 * width))
    age = silence = 0
    standing: list[float] = []
    out: list[dict[str, object]] = []
    for step, value in enumerate(y):
        age, silence = age + 1, 0 if not np.isnan(value) else silence + 1
        present = value
        if np.isnan(value):
            changes = [t / c if c else 0.0 for t, c in zip(total, count, strict=True)]
            kept = ring.get(step % width, math.nan)
            present = expected_of(np.array(standing), season, silence, changes, width, kept)
        for place, k in enumerate((1, lag)):
            past = standing[step - k] if step >= k else math.nan
            if not np.isnan(value) and not np.isnan(past):
                count[place] = decay * count[place] + 1
                total[place] = decay * total[place] + abs(value - past)
        standing.append(present)
        ring[step % width] = present
        window = [ring.get(s % width, math.nan) for s in range(step - width + 1, step + 1)]
        known = [v for v in window if not math.isnan(v)]
        location = sum(known) / max(len(known), 1)
        scale = sum(map(abs, known)) / max(len(known), 1)
        shift = scale / 30
        breadth = scale if kind == "linear" else max(location + shift, shift)
        raw = []
        for v in window:
            relative = 0.0 if math.isnan(v) else (v - location) / (breadth if breadth > 0 else 1.0)
            if kind == "log":
                ratio = 1 + relative
                relative = math.log(ratio) if ratio >= 0.05 else math.log(0.05) + (ratio - 0.05) / 0.05
            raw.append(relative)
        trust = min(len(known) / 8, 1)
        square = sum(r * r for r in raw) / max(len(known), 1)
        out.append(
            {
                "location": location,
                "scale": scale,
                "square": trust * square + (1 - trust) * 0.09 + 1e-20,
                "raw": raw,
                "filled": len(known) / width,
                "differences": [
                    t / max(c, 1e-9) / scale if scale > 0 else 0.0 for t, c in zip(total, count, strict=True)
                ],
                "age": age,
                "silence": silence,
            }
        )
    return out


@given(
    y=series(min_size=1, max_size=40),
    shape=st.sampled_from([(4, 1, 1), (4, 4, 4), (6, 3, 3), (6, 2, 6), (24, 7, 7), (24, 4, 12)]),
    kind=st.sampled_from(KINDS),
)
def test_every_step_is_described_as_a_plain_loop_describes_it(
    y: Float, shape: tuple[int, int, int], kind: Transform
) -> None:
    width, lag, season = shape

    history, _ = advance(empty_state(width), torch.from_numpy(y).unsqueeze(0), seasonality=(lag, season), kind=kind)

    for t, expected in enumerate(oracle(y, width, lag, season, kind)):
        magnitude = float(expected["scale"])  # type: ignore[arg-type]
        assert float(history.frame.location[0, t]) == pytest.approx(
            expected["location"], rel=1e-9, abs=1e-9 * magnitude
        )
        assert float(history.frame.scale[0, t]) == pytest.approx(expected["scale"], rel=1e-9)
        unit = float(history.frame.unit[0, t])
        near, seasonal = expected["differences"]  # type: ignore[misc]
        scalars = [
            math.log(max(unit, 1e-5)) / 2,
            math.log(near + 1e-4) / 2,
            math.log(seasonal + 1e-4) / 2,
            expected["location"] / magnitude if magnitude > 0 else 0.0,  # type: ignore[operator]
            math.log1p(expected["age"]) / 8,  # type: ignore[arg-type]
            math.log1p(expected["silence"]) / 2,  # type: ignore[arg-type]
            expected["filled"],
        ]
        np.testing.assert_allclose(history.table[0, t, width:].numpy(), scalars, rtol=1e-5, atol=1e-5)
        assert float(history.difference[0, t]) == pytest.approx(seasonal, rel=1e-5, abs=1e-7)
        wanted = np.clip(np.array(expected["raw"]) / unit, -LARGEST_SCALED, LARGEST_SCALED)
        assert unit <= math.sqrt(float(expected["square"])) * (1 + 1e-4)  # type: ignore[arg-type]
        np.testing.assert_allclose(history.scaled[0, t].numpy(), wanted, rtol=1e-4, atol=2e-5 / min(unit, 1.0))


@given(y=series(min_size=9, max_size=40, missing=False), kind=st.sampled_from(KINDS))
def test_a_unit_of_moderate_size_is_the_root_mean_square_of_the_window(y: Float, kind: Transform) -> None:
    history, _ = advance(empty_state(8), torch.from_numpy(y).unsqueeze(0), seasonality=(4,), kind=kind)

    for t, expected in enumerate(oracle(y, 8, 4, 4, kind)):
        wanted = math.sqrt(float(expected["square"]))  # type: ignore[arg-type]
        if wanted < 1:
            assert float(history.frame.unit[0, t]) == pytest.approx(wanted, rel=1e-4)


@given(y=series(min_size=1, max_size=50), width=st.sampled_from([4, 6, 24]), kind=st.sampled_from(KINDS))
def test_what_a_state_says_of_itself_is_the_last_entry_of_its_history(y: Float, width: int, kind: Transform) -> None:
    history, after = advance(empty_state(width), torch.from_numpy(y).unsqueeze(0), seasonality=(4,), kind=kind)

    found = describe(after, kind=kind)

    for one, two in zip(found.frame, history.frame, strict=True):
        assert torch.equal(one[:, 0], two[:, -1])
    assert torch.equal(found.table[:, 0], history.table[:, -1])
    assert torch.equal(found.difference[:, 0], history.difference[:, -1])


@given(y=series(min_size=1, max_size=50), kind=st.sampled_from(KINDS))
def test_a_state_settles_where_it_would_have_advanced_to(y: Float, kind: Transform) -> None:
    _, after = advance(empty_state(6), torch.from_numpy(y).unsqueeze(0), seasonality=(3,), kind=kind)

    settled = settle(empty_state(6), torch.from_numpy(y).unsqueeze(0), seasonality=(3,), kind=kind)

    assert settled.to_bytes() == after.to_bytes()


@given(y=series(min_size=1, max_size=50), first=st.integers(-50, 50))
def test_an_observed_value_stands_in_the_ring_until_its_slot_comes_again(y: Float, first: int) -> None:
    _, after = advance(empty_state(6, first), torch.from_numpy(y).unsqueeze(0), seasonality=(3,), kind="linear")

    for offset in range(max(len(y) - 6, 0), len(y)):
        found = float(after.ring[0, (first + offset) % 6])
        assert found == y[offset] if not np.isnan(y[offset]) else np.isfinite(found) == (~np.isnan(y[:offset])).any()
    assert after.last_step.tolist() == [first + len(y) - 1]


NAN = math.nan


@pytest.mark.parametrize(
    ("y", "width", "season", "expected"),
    [
        pytest.param([5.0, 6.0, 7.0, NAN, NAN], 8, 1, [7.0, 7.0], id="without a season the last value"),
        pytest.param([0.0, 4.0, 9.0, 0.0, 4.0, 9.0, NAN, NAN], 6, 3, [0.0, 4.0], id="that of a season before"),
        pytest.param([0.0, 1, 2, 3, 4, 5, 6, 7, NAN, NAN], 8, 3, [8 - 1 / 3, 9 - 2 / 3], id="moved by what has grown"),
        pytest.param([8.0, 7, 6, 5, 4, 3, 2, 1, 0, NAN], 8, 3, [0.0], id="not below 0 where nothing was"),
        pytest.param([0.0, -1, -2, -3, -4, NAN], 4, 3, [-5 + 1 / 3], id="below 0 where values are"),
        pytest.param([1.0, 2.0, 3.0, 4.0, NAN, NAN, NAN], 4, 1, [4.0, 4.0, 3.0], id="after half a ring what was there"),
        pytest.param([1.0, NAN, NAN], 4, 2, [1.0, 1.0], id="no season was seen: the last value"),
        pytest.param([NAN, NAN, 3.0], 4, 2, [NAN, NAN], id="nothing was seen: nothing"),
    ],
)
def test_what_takes_the_place_of_a_missing_value(
    y: list[float], width: int, season: int, expected: list[float]
) -> None:
    state, found = empty_state(width), []
    for value in y:
        one = torch.tensor([[value]], dtype=torch.float64)
        state = settle(state, one, seasonality=(season,), kind="linear")
        found += [float(state.ring[0, state.last_step % width])] if math.isnan(value) else []

    assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "y",
    [
        [0.0] * 20,
        [7.0] * 20,
        [-7.0] * 20,
        [1e30, -1e30] * 10,
        [1e-300] * 10 + [1e30] * 10,
        [5e-324, 0.0] * 10,
        [1e12, 1e12 + 1] * 10,
        [0.0] * 19 + [1e30],
        [1e-9, 1e9] * 10,
        [math.nan] * 20,
    ],
)
def test_extreme_series_are_described_in_finite_numbers(y: list[float], kind: Transform) -> None:
    history, after = advance(empty_state(6), torch.tensor([y], dtype=torch.float64), seasonality=(3,), kind=kind)

    for part in (*history.frame, history.table, history.difference, after.statistics):
        assert torch.isfinite(part).all()
    assert (history.frame.unit > 0).all()


def test_a_stray_negative_reading_leaves_the_unit_of_a_log_model_reasonable() -> None:
    y = torch.tensor([[0.1, 0.0, 0.0, 0.0, -0.1] + [0.05] * 3], dtype=torch.float64)

    history, _ = advance(empty_state(24), y, seasonality=(4,), kind="log")

    assert history.frame.unit.max() < 20
