"""The calendar: timestamps and step numbers are one and the same thing, or the timestamp is refused."""

from __future__ import annotations

import json
import re
from datetime import datetime
from functools import partial
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecaster import Calendar, ConfigError, InputError

FREQS = (
    "s", "15min", "30min", "h", "2h", "6h", "D", "2D", "B", "W", "W-MON", "W-WED", "2W", "MS", "ME", "2MS", "QS", "QE",
    "QS-FEB", "QE-NOV", "YS", "YE", "YS-APR", "YE-JUN", "100ms",
)  # fmt: skip
ZONES = (None, "UTC", "Europe/Berlin", "America/New_York", "America/St_Johns", "Asia/Kolkata", "Australia/Lord_Howe")


def anchor(calendar: Calendar, year: int) -> int:
    """Step number of some grid point in `year`, found by asking pandas for one."""
    start = pd.date_range(f"{year}-01-01", periods=400, freq="D", tz=None)
    for day in start:
        text = day.isoformat()
        if calendar.time_zone is not None:
            text = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(calendar.time_zone)).isoformat()
        try:
            return int(calendar.parse([text])[0])
        except InputError:
            continue
    raise AssertionError(f"no midnight of {year} lies on the grid of {calendar}")


@given(freq=st.sampled_from(FREQS), zone=st.sampled_from(ZONES), year=st.integers(1988, 2060), data=st.data())
def test_steps_and_timestamps_are_a_bijection(freq: str, zone: str | None, year: int, data: st.DataObject) -> None:
    calendar = Calendar(freq, zone)
    reach = 60 if freq[-1] == "W" or freq[:1] in "WMQY" or freq == "2MS" else 3000
    offsets = data.draw(st.lists(st.integers(-reach, reach), min_size=1, max_size=20, unique=True))
    steps = anchor(calendar, year) + np.array(offsets)

    text = calendar.format(steps)
    index = calendar.to_index(steps)

    np.testing.assert_array_equal(calendar.parse(text), steps)
    np.testing.assert_array_equal(calendar.to_steps(pd.Series(index)), steps)
    assert len(set(text)) == len(set(steps.tolist()))
    assert json.loads(json.dumps(text)) == text
    assert [pd.Timestamp(t) for t in text] == list(index)


EDGES = [
    f"{day}T{time}"
    for day in ("1677-12-31", "1678-01-01", "2261-12-31", "2262-01-01")
    for time in ("00:00", "12:00", "23:45")
]


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("freq", [*FREQS, "10YS", "40000D"])
def test_what_is_taken_has_a_timestamp_to_the_very_ends_of_the_calendar(freq: str, zone: str | None) -> None:
    calendar = Calendar(freq, zone)
    offsets = ("",) if zone is None else ("Z", "+14:00", "-14:00", "-10:29:20")
    texts = [edge + offset for edge in EDGES for offset in offsets]
    taken = []
    for text in texts:
        try:
            taken.append(int(calendar.parse([text])[0]))
        except InputError:
            continue
    last = calendar.last_step
    assert last is not None

    for step in (*taken, last):
        assert calendar.parse(calendar.format([step])).tolist() == [step]
        assert calendar.to_steps(pd.Series(calendar.to_index([step]))).tolist() == [step]
    with pytest.raises(InputError, match="outside the years"):
        calendar.format([last + 1])
    column = pd.Series(pd.to_datetime(texts, utc=zone is not None).as_unit("us"))
    fits = calendar.fits(column if zone is None else column.dt.tz_convert(zone))
    assert np.count_nonzero(fits) == len(taken)


@pytest.mark.parametrize(("year", "zone"), [(1969, None), *((2024, zone) for zone in ZONES)])
@pytest.mark.parametrize("freq", FREQS)
def test_consecutive_steps_are_the_dates_pandas_counts(freq: str, year: int, zone: str | None) -> None:
    calendar = Calendar(freq, zone)
    start = anchor(calendar, year)
    count = 30 if freq[0] in "MQYW2" else 400
    steps = np.arange(start, start + count)

    index = calendar.to_index(steps)

    expected = pd.date_range(index[0], periods=count, freq=freq)
    assert list(index) == list(expected)


@given(
    steps=st.lists(st.integers(-(2**53) + 1, 2**53 - 1), max_size=20),
)
def test_integer_steps_are_their_own_timestamps(steps: list[int]) -> None:
    calendar = Calendar("1")

    assert calendar.parse(steps).tolist() == steps
    assert calendar.format(np.array(steps, dtype=np.int64)) == steps
    assert calendar.to_steps(pd.Series(steps, dtype="int64")).tolist() == steps
    assert calendar.to_index(steps).tolist() == steps


def test_a_day_has_as_many_hours_as_the_clock_says() -> None:
    calendar = Calendar("h", "Europe/Berlin")

    def hours(day: str, after: str) -> int:
        start, end = calendar.parse([day, after])
        return int(end - start)

    assert hours("2024-03-31T00:00+01:00", "2024-04-01T00:00+02:00") == 23
    assert hours("2024-10-27T00:00+02:00", "2024-10-28T00:00+01:00") == 25
    first, second = calendar.parse(["2024-10-27T02:00+02:00", "2024-10-27T02:00+01:00"])
    assert second == first + 1
    assert calendar.format([first, second]) == ["2024-10-27T02:00:00+02:00", "2024-10-27T02:00:00+01:00"]


def test_daily_steps_are_local_days_however_long() -> None:
    calendar = Calendar("D", "Europe/Berlin")

    steps = calendar.parse(["2024-03-30T00:00+01:00", "2024-03-31T00:00+01:00", "2024-04-01T00:00+02:00"])

    assert np.diff(steps).tolist() == [1, 1]


def test_any_offset_may_name_an_instant_of_an_aware_series() -> None:
    hourly, daily = Calendar("h", "Europe/Berlin"), Calendar("D", "Europe/Berlin")

    same = hourly.parse(["2024-07-01T12:00Z", "2024-07-01T14:00+02:00", "2024-07-01T08:00-04:00"])

    assert len(set(same.tolist())) == 1
    assert daily.parse(["2024-06-30T22:00Z"]) == daily.parse(["2024-07-01T00:00+02:00"])


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "Asia/Kathmandu", "America/St_Johns", "Australia/Lord_Howe"])
def test_hourly_grids_lie_on_local_hours_in_zones_off_by_part_of_an_hour(zone: str) -> None:
    calendar = Calendar("h", zone)
    winter = 7 if zone == "Australia/Lord_Howe" else 1
    noon = datetime(2024, winter, 10, 12, tzinfo=ZoneInfo(zone)).isoformat()

    assert calendar.format(calendar.parse([noon])) == [noon]


@pytest.mark.parametrize(
    ("zone", "before"),
    [("America/Sao_Paulo", "2018-11-03T00:00-03:00"), ("Asia/Beirut", "2024-03-30T00:00+02:00")],
)
def test_a_midnight_that_clocks_skip_has_a_step_like_any_other(zone: str, before: str) -> None:
    calendar = Calendar("D", zone)
    steps = calendar.parse([before]) + np.arange(3)

    np.testing.assert_array_equal(calendar.parse(calendar.format(steps)), steps)
    np.testing.assert_array_equal(calendar.to_steps(pd.Series(calendar.to_index(steps))), steps)


def test_month_ends_follow_the_length_of_the_month() -> None:
    calendar = Calendar("ME")

    steps = calendar.parse(["2024-01-31"]) + np.arange(3)

    assert calendar.format(steps) == ["2024-01-31T00:00:00", "2024-02-29T00:00:00", "2024-03-31T00:00:00"]


def test_business_days_skip_the_weekend() -> None:
    calendar = Calendar("B")

    friday, monday = calendar.parse(["2024-03-01", "2024-03-04"])

    assert monday == friday + 1


@pytest.mark.parametrize(
    ("freq", "off", "before"),
    [
        ("h", "2024-01-01T00:30", "2024-01-01T00:00:00"),
        ("15min", "2024-01-01T00:20", "2024-01-01T00:15:00"),
        ("D", "2024-01-01T06:00", "2024-01-01T00:00:00"),
        ("W-MON", "2024-01-02", "2024-01-01T00:00:00"),
        ("MS", "2024-01-15", "2024-01-01T00:00:00"),
        ("ME", "2024-02-28", "2024-01-31T00:00:00"),
        ("ME", "2024-01-31T12:00", "2024-01-31T00:00:00"),
        ("QE", "2024-04-30", "2024-03-31T00:00:00"),
        ("YS", "2024-02-01", "2024-01-01T00:00:00"),
        ("B", "2024-03-02", "2024-03-01T00:00:00"),
        ("B", "1965-03-06", "1965-03-05T00:00:00"),
        ("MS", "1965-03-06", "1965-03-01T00:00:00"),
    ],
)
def test_a_timestamp_off_the_grid_is_refused_with_the_step_before_it(freq: str, off: str, before: str) -> None:
    with pytest.raises(InputError, match=f"not on the grid of freq '{freq}'.*{before}"):
        Calendar(freq).parse([off])
    with pytest.raises(InputError, match=f"not on the grid of freq '{freq}'.*{before}"):
        Calendar(freq).to_steps(pd.Series(pd.to_datetime([off])))


@pytest.mark.parametrize(
    ("freq", "zone", "on", "off", "before", "shift"),
    [
        ("h", "Australia/Lord_Howe", "2024-07-05T05:00+10:30", "2024-03-05T05:00+11:00", "04:30:00\\+11:00", "0:30:00"),
        (
            "h@1970-01-01T00:30",
            "Australia/Lord_Howe",
            "2024-03-05T05:00+11:00",
            "2024-07-05T05:00+10:30",
            "04:30",
            "0:30",
        ),
        ("2h", "Europe/Berlin", "2024-01-01T04:00+01:00", "2024-07-01T04:00+02:00", "03:00:00\\+02:00", "1:00:00"),
    ],
)
def test_local_hours_that_are_no_grid_because_clocks_change_are_refused_with_the_reason(
    freq: str, zone: str, on: str, off: str, before: str, shift: str
) -> None:
    """Steps have one length; what is refused is named as it came, in local time."""
    calendar = Calendar(freq, zone)
    calendar.parse([on])

    for refused in (
        partial(calendar.parse, [off]),
        partial(calendar.to_steps, pd.Series(pd.to_datetime([off])).dt.tz_convert(zone)),
    ):
        with pytest.raises(
            InputError, match=rf"ds {re.escape(off[:16])}.*the step before it is .*{before}.*clocks.*{shift}"
        ):
            refused()


def test_what_is_off_the_grid_for_another_reason_is_not_put_down_to_the_clocks() -> None:
    with pytest.raises(InputError, match=r"ds 2261-12-30T04:30:00\+01:00 .* 2261-12-30T04:00:00\+01:00$"):
        Calendar("h", "Europe/Berlin").parse(["2261-12-30T04:30+01:00"])


@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York", "Asia/Kolkata"])
def test_fractions_of_a_second_are_read_with_and_without_an_offset(zone: str | None) -> None:
    calendar = Calendar("100ms", zone)
    steps = np.array([1, 9, 10, 12_345])

    np.testing.assert_array_equal(calendar.parse(calendar.format(steps)), steps)


@pytest.mark.parametrize(
    "text", ["2024-01-01T00:00:00.5", "2024-01-01T00:00:00.0000005", "2024-01-01T00:00:00,0000005"]
)
def test_fractions_of_a_second_are_never_rounded_away(text: str) -> None:
    with pytest.raises(InputError, match="ds"):
        Calendar("s").parse([text])


@pytest.mark.parametrize(
    "value",
    ["yesterday", "", "2024-13-01", 5, 5.0, None, True, ["2024-01-01"], "1500-01-01", "2500-01-01", "0001-01-01",
     "2024-01-01é00:00", "2024-01-01-00:00", "2024-01-01T00:00:00." + "0" * 100_000, "1" * 100_000],
)  # fmt: skip
def test_what_is_no_timestamp_is_refused_in_a_line(value: object) -> None:
    with pytest.raises(InputError, match="ds") as refusal:
        Calendar("D").parse([value])  # type: ignore[list-item]

    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize("value", ["5", 5.0, True, None, "2024-01-01"])
def test_what_is_no_integer_step_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="is not an integer step, but freq is '1'"):
        Calendar("1").parse([value])  # type: ignore[list-item]


@pytest.mark.parametrize("value", [2**53, -(2**53), 10**30])
def test_an_integer_step_has_at_most_53_bits(value: int) -> None:
    with pytest.raises(InputError, match=f"ds {value} is no integer step below 2\\*\\*53"):
        Calendar("1").parse([value])

    assert Calendar("1").parse([2**53 - 1, 1 - 2**53]).tolist() == [2**53 - 1, 1 - 2**53]


def test_a_missing_or_an_unwanted_time_zone_is_refused() -> None:
    with pytest.raises(InputError, match=r"no UTC offset.*Europe/Berlin"):
        Calendar("h", "Europe/Berlin").parse(["2024-01-01T00:00"])
    with pytest.raises(InputError, match="a UTC offset, expected none"):
        Calendar("h").parse(["2024-01-01T00:00Z"])


@pytest.mark.parametrize(
    ("freq", "zone", "column", "message"),
    [
        ("1", None, [1.0, 2.0], "integer steps"),
        ("1", None, ["1", "2"], "integer steps"),
        ("h", None, [1, 2], "needs timestamps"),
        ("h", None, ["2024-01-01", "2024-01-02"], "needs timestamps"),
        ("h", None, pd.to_datetime(["2024-01-01", None]), "missing in 1 row"),
        ("h", None, pd.to_datetime(["2024-01-01"]).tz_localize("UTC"), "time zone UTC, expected None"),
        ("h", "Europe/Berlin", pd.to_datetime(["2024-01-01"]).tz_localize("UTC"), "UTC, expected Europe/Berlin"),
        ("h", "Europe/Berlin", pd.to_datetime(["2024-01-01"]), "None, expected Europe/Berlin"),
    ],
)
def test_a_column_of_the_wrong_type_or_zone_is_refused(
    freq: str, zone: str | None, column: object, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Calendar(freq, zone).to_steps(pd.Series(column))  # type: ignore[call-overload]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_every_resolution_of_pandas_is_read(unit: str) -> None:
    column = pd.Series(pd.to_datetime(["2024-01-01T05:00"]).as_unit(unit))

    assert Calendar("h").to_steps(column).tolist() == Calendar("h").parse(["2024-01-01T05:00"]).tolist()


@pytest.mark.parametrize("freq", ["", "x", "hours", "-1h", "0D", "0", "2", "None", f"{10**20}h"])
def test_an_unknown_frequency_is_refused(freq: str) -> None:
    with pytest.raises(ConfigError, match="freq"):
        Calendar(freq)


@pytest.mark.parametrize(("freq", "now"), [("H", "h"), ("15T", "min"), ("M", "ME"), ("Q-DEC", "QE")])
def test_a_frequency_of_older_versions_is_told_its_name_of_today(freq: str, now: str) -> None:
    with pytest.raises(ConfigError, match=f"pandas now writes '{now}'"):
        Calendar(freq)


@pytest.mark.parametrize("freq", ["106752D", "99999999999D", "2562048h", "15300W", "999999999W", "99999999999999MS"])
def test_a_frequency_of_steps_longer_than_the_calendar_is_refused(freq: str) -> None:
    with pytest.raises(ConfigError, match="steps of more than 146 years"):
        Calendar(freq)


@pytest.mark.parametrize("freq", ["SMS", "WOM-3FRI", "BME", "2B", "BQS"])
def test_a_frequency_without_a_regular_grid_is_refused(freq: str) -> None:
    with pytest.raises(ConfigError, match="no regular grid"):
        Calendar(freq)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc/passwd", "+02:00"])
def test_an_unknown_time_zone_is_refused(zone: str) -> None:
    with pytest.raises(ConfigError, match="time zone"):
        Calendar("h", zone)


def test_integer_steps_have_no_time_zone() -> None:
    with pytest.raises(ConfigError, match="takes no time zone"):
        Calendar("1", "UTC")


@pytest.mark.parametrize("freq", ["h", "D", "MS", "YS", "W", "B"])
def test_a_step_beyond_the_last_date_that_can_be_written_is_refused(freq: str) -> None:
    calendar = Calendar(freq)

    with pytest.raises(InputError, match=r"ds|2262|step"):
        calendar.format([anchor(calendar, 2261) + 24 * 800])


def test_a_year_outside_what_nanoseconds_can_hold_is_refused() -> None:
    for text in ("1600-01-01", "2300-01-01"):
        with pytest.raises(InputError, match="outside the years"):
            Calendar("D").parse([text])
        for unit in ("s", "us"):
            with pytest.raises(InputError, match=f"ds {text} 00:00:00 lies outside the years 1678 to 2261"):
                Calendar("D").to_steps(pd.Series(pd.to_datetime([text]).as_unit(unit)))


def test_calendars_compare_by_frequency_and_zone() -> None:
    assert Calendar("h") == Calendar("h")
    assert Calendar("h") != Calendar("h", "UTC")
    assert len({Calendar("D"), Calendar("D"), Calendar("W")}) == 2


@pytest.mark.parametrize(
    ("freq", "expected"),
    [("h", (24, 168)), ("30min", (48, 336)), ("min", (1440,)), ("7h", (1,)), ("D", (7,)), ("W", (52,)), ("2W", (1,)),
     ("MS", (12,)), ("2MS", (1,)), ("QE", (4,)), ("B", (5,)), ("1", (1,))],
)  # fmt: skip
def test_usual_seasonalities(freq: str, expected: tuple[int, ...]) -> None:
    assert Calendar(freq).default_seasonality == expected


@pytest.mark.parametrize(
    ("freq", "first", "found"),
    [
        ("2D", "2024-01-03", "2D@1970-01-02"),
        ("2D", "2024-01-04", "2D"),
        ("48h", "2024-01-03T05:00", "48h@1970-01-02T05:00"),
        ("6h", "2024-01-01T03:00", "6h@1970-01-01T03:00"),
        ("h", "2024-01-01T00:30", "h@1970-01-01T00:30"),
        ("D", "2024-01-01T06:00", "D@1970-01-01T06:00"),
        ("W", "2024-01-03", "W@1970-01-07"),
        ("2W", "2024-01-14", "2W@1970-01-11"),
        ("2MS", "2024-02-01", "2MS@1970-02-01"),
        ("QS", "2024-02-01", "QS@1970-02-01"),
        ("YE", "2024-06-30", "YE@1970-06-30"),
        ("MS", "2024-02-01", "MS"),
    ],
)
def test_a_grid_begins_where_the_data_does(freq: str, first: str, found: str) -> None:
    ds = pd.Series(pd.date_range(first, periods=9, freq=pd.tseries.frequencies.to_offset(freq)))
    if ds[0] != pd.Timestamp(first):  # pandas has an anchor of its own
        months = {"2MS": 2, "QS": 3, "YE": 12}.get(freq)
        step = pd.DateOffset(months=months) if months else pd.Timedelta(7, "D")
        ds = pd.Series([pd.Timestamp(first) + place * step for place in range(9)])

    calendar = Calendar(freq).fitted(ds)

    assert calendar.freq == found
    assert np.diff(calendar.to_steps(ds)).tolist() == [1] * 8
    assert list(calendar.to_index(calendar.to_steps(ds))) == list(ds)
    assert Calendar(calendar.freq).fitted(ds) == calendar
    assert calendar.default_seasonality == Calendar(freq).default_seasonality


@pytest.mark.parametrize(
    ("freq", "ds"),
    [
        ("D", ["2024-01-01T06:00", "2024-01-02T07:00"]),
        ("W-SUN", ["2024-01-03", "2024-01-10"]),
        ("MS", ["2024-01-15", "2024-02-15"]),
        ("B", ["2024-01-06", "2024-01-13"]),
        ("h", ["2024-01-06T00:30"]),
        ("2D@1970-01-01", ["2024-01-03", "2024-01-05"]),
    ],
)
def test_no_grid_is_bent(freq: str, ds: list[str]) -> None:
    stamps = pd.Series(pd.to_datetime(ds))

    calendar = Calendar(freq).fitted(stamps)

    assert calendar == Calendar(freq)
    with pytest.raises(InputError, match="not on the grid"):
        calendar.to_steps(stamps)


@pytest.mark.parametrize("freq", ["2D@yesterday", "B@1970-01-02", "MS@1970-01-15", "D@NaT"])
def test_a_beginning_that_no_grid_has_is_refused(freq: str) -> None:
    with pytest.raises(ConfigError, match="no grid of"):
        Calendar(freq)


def test_a_midnight_that_comes_twice_is_a_step_once_and_told_as_the_first_of_the_two() -> None:
    daily, both = Calendar("D", "America/Havana"), ["2024-11-03T00:00:00-04:00", "2024-11-03T00:00:00-05:00"]

    steps = daily.parse(both)

    assert steps[0] == steps[1]
    assert daily.format(steps[:1]) == both[:1]
    assert daily.to_steps(pd.Series(daily.to_index(steps))).tolist() == steps.tolist()
