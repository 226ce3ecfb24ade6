"""The almanac against dates worked out one by one with the standard library."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forecaster import Calendar, Config, ConfigError
from forecaster.almanac import Almanac, country_number, default_cycles

BERLIN = Calendar("h", "Europe/Berlin")


@given(steps=st.lists(st.integers(-400_000, 800_000), min_size=1, max_size=5))
def test_places_are_those_of_the_wall_clock(steps: list[int]):
    places = Almanac(BERLIN, ("day", "week", "year")).places(torch.tensor(steps)).numpy()

    for found, stamp in zip(places, BERLIN.to_index(steps), strict=True):
        year = datetime(stamp.year + 1, 1, 1) - datetime(stamp.year, 1, 1)
        day, week = stamp.hour / 24, stamp.weekday() / 7
        turns = [day, 2 * day, 3 * day, week, 2 * week, 3 * week, (stamp.day_of_year - 1) / year.days]
        expected = np.array([f(2 * np.pi * turn) for turn in turns for f in (np.sin, np.cos)])
        np.testing.assert_allclose(found, expected, atol=1e-6)


@given(steps=st.lists(st.integers(-1_000_000, 2_000_000), min_size=1, max_size=5))
def test_minutes_have_places_in_the_hour_and_whole_days_in_the_month(steps: list[int]):
    calendar = Calendar("15min")
    places = Almanac(calendar, ("hour", "month")).places(torch.tensor(steps)).numpy()

    for found, stamp in zip(places, calendar.to_index(steps), strict=True):
        turns = [stamp.minute / 60, (stamp.day - 1) / stamp.days_in_month]
        expected = np.array([f(2 * np.pi * turn) for turn in turns for f in (np.sin, np.cos)])
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_hour_of_a_day_follows_the_clocks_when_they_change():
    steps = BERLIN.to_steps(
        pd.Series(pd.to_datetime(["2024-03-30 12:00", "2024-03-31 12:00"]).tz_localize(BERLIN.time_zone))
    )

    before, after = Almanac(BERLIN, ("day",)).places(torch.from_numpy(steps))

    assert steps[1] - steps[0] == 23
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("freq", "longest", "cycles"),
    [
        ("15min", 4 * 24 * 10, ("hour", "day")),
        ("h", 2 * 365 * 24, ("day", "week", "month", "year")),
        ("D", 400, ("week", "month")),
        ("W", 200, ("month", "year")),
        ("MS", 36, ("year",)),
        ("YS", 50, ()),
        ("1", 10_000, ()),
    ],
)
def test_usual_cycles_are_longer_than_a_step_and_fit_twice(freq: str, longest: int, cycles: tuple[str, ...]):
    assert default_cycles(Calendar(freq), longest) == cycles


def test_holidays_fall_on_whole_days_of_their_country():
    calendar = Calendar("h")
    first = int(calendar.parse(["2024-12-24T00:00"])[0])
    steps = torch.arange(first, first + 4 * 24).expand(3, -1)

    found = Almanac(calendar, ()).holidays(steps, torch.tensor([country_number(c) for c in ("DE", "TR", "nowhere")]))

    days = found.reshape(3, 4, 24)
    assert (days == days[..., :1]).all()
    assert days[..., 0].tolist() == [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_a_business_day_has_none_of_the_holidays_of_the_weekend_after_it():
    """New Year 2022 was a Saturday."""
    calendar = Calendar("B")
    steps = torch.from_numpy(calendar.parse(["2021-12-30", "2021-12-31", "2022-01-03", "2022-04-15"]))

    found = Almanac(calendar, ()).holidays(steps.unsqueeze(0), torch.tensor([country_number("DE")]))

    assert found.tolist() == [[0, 0, 0, 1]]


def test_longer_steps_count_the_holidays_that_fall_on_them():
    calendar = Calendar("MS")
    steps = torch.from_numpy(calendar.parse(["2024-11-01", "2024-12-01", "2025-01-01"]))

    assert Almanac(calendar, ()).holidays(steps.unsqueeze(0), torch.tensor([country_number("DE")])).tolist() == [
        [0, 2, 1]
    ]


@given(order=st.permutations([(0, 10), (-9000, 3), (4_000_000, 5), (100_000, 1)]))
def test_what_was_looked_up_before_changes_nothing(order: list[tuple[int, int]]):
    calendar = Calendar("h")
    used = Almanac(calendar, ("week",))

    for first, count in order:
        steps = torch.arange(first, first + count)
        assert torch.equal(used.places(steps), Almanac(calendar, ("week",)).places(steps))
    far_apart = torch.tensor([[0, 4_000_000]])
    assert torch.equal(used.places(far_apart)[0, 0], used.places(torch.tensor([0]))[0])


def test_steps_beyond_the_years_that_can_be_told_are_no_error():
    almanac = Almanac(Calendar("D"), ("year",))

    assert torch.isfinite(almanac.places(torch.tensor([10**9, -(10**9)]))).all()


def test_daily_holidays_equal_the_library_day_by_day():
    import holidays

    calendar = Calendar("D")
    days = [date(2023, 1, 1) + timedelta(days=k) for k in range(366)]
    steps = torch.from_numpy(calendar.parse([day.isoformat() for day in days]))

    found = Almanac(calendar, ()).holidays(steps.unsqueeze(0), torch.tensor([country_number("PL")]))[0]

    poland = holidays.country_holidays("PL")
    assert found.tolist() == [float(day in poland) for day in days]


def test_integer_steps_have_no_calendar():
    with pytest.raises(ConfigError, match="bare steps have no calendar"):
        Config.from_dict({"freq": "1", "horizon": 3, "covariates": {"calendar": ["day"]}})
