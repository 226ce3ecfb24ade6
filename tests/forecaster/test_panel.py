"""The panel: what is taken as it is, what becomes a missing step, and what is refused by name."""

from __future__ import annotations

import re
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecaster import Calendar, ConfigError, CovariatesConfig, Panel, PanelError
from tests.forecaster.kit import Float, series

HOURS = pd.date_range("2024-03-01", periods=5, freq="h")


def frame_of(rows: list[tuple[object, object, object]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["unique_id", "ds", "y"])


def two_series() -> pd.DataFrame:
    return frame_of([("a", HOURS[i], float(i)) for i in range(5)] + [("b", HOURS[i], 10.0 * i) for i in range(2, 5)])


def test_series_keep_their_order_position_and_values() -> None:
    panel = Panel.from_frame(two_series().iloc[::1], "h")

    assert panel.unique_ids == ["a", "b"]
    assert len(panel) == 2
    assert panel.lengths.tolist() == [5, 3]
    assert (panel.first_steps - panel.first_steps[0]).tolist() == [0, 2]
    assert panel.last_steps[0] == panel.last_steps[1]
    assert panel.series(1).tolist() == [20.0, 30.0, 40.0]
    assert panel.index_of("b") == 1


def test_interleaved_rows_give_the_same_panel_as_contiguous_ones() -> None:
    frame = two_series()

    interleaved = Panel.from_frame(frame.sort_values(["ds", "unique_id"]), "h")

    assert interleaved.fingerprint() == Panel.from_frame(frame, "h").fingerprint()


def test_the_index_and_the_order_of_columns_do_not_matter() -> None:
    frame = two_series()
    odd = frame[["y", "ds", "unique_id"]].set_index(np.arange(8) * 3 + 7)

    assert Panel.from_frame(odd, "h").fingerprint() == Panel.from_frame(frame, "h").fingerprint()


def test_skipped_and_empty_steps_become_missing_values() -> None:
    panel = Panel.from_frame(frame_of([("a", HOURS[0], 1.0), ("a", HOURS[2], np.nan), ("a", HOURS[4], 5.0)]), "h")

    np.testing.assert_array_equal(panel.series(0), [1.0, np.nan, np.nan, np.nan, 5.0])


def test_integer_steps_are_a_calendar_of_their_own() -> None:
    panel = Panel.from_frame(frame_of([("a", 3, 1.0), ("a", 5, 2.0), ("b", -4, 3.0)]), "1")

    assert panel.calendar == Calendar("1")
    assert panel.first_steps.tolist() == [3, -4]
    np.testing.assert_array_equal(panel.series(0), [1.0, np.nan, 2.0])
    assert panel.to_frame()["ds"].tolist() == [3, 4, 5, -4]


@pytest.mark.parametrize(
    "y",
    [
        pd.array([1, None, 3], dtype="Int64"),
        np.array([1, 2, 3], dtype=np.int8),
        np.float32([1, 2, 3]),
        pd.Series([1, None, 3.0], dtype=object),
        [Decimal("1.0"), None, Decimal(3)],
        pd.array([Decimal(1), None, Decimal(3)], dtype=pd.ArrowDtype(pa.decimal128(9, 2))),
    ],
)
def test_any_numeric_type_of_y_is_read(y: object) -> None:
    frame = pd.DataFrame({"unique_id": "a", "ds": HOURS[:3], "y": y})

    panel = Panel.from_frame(frame, "h")
    as_covariate = Panel.from_frame(frame.assign(x=frame["y"]), "h", CovariatesConfig(past=("x",)))

    assert panel.series(0).dtype == np.float64
    assert panel.series(0)[[0, 2]].tolist() == [1.0, 3.0]
    np.testing.assert_array_equal(as_covariate.tables[0][:, 0], panel.series(0))


def test_names_of_columns_that_are_numbers_are_read_as_text() -> None:
    frame, roles = two_series().assign(**{"1": 2.0}).rename(columns={"1": 1}), CovariatesConfig(known=("1",))

    panel = Panel.from_frame(frame, "h", roles)

    assert panel.tables[0][:, 0].tolist() == [2.0] * 5
    coming = frame.assign(ds=frame["ds"] + pd.Timedelta(3, "h"))
    assert panel.with_future(coming).future(1)[:, 0, 0].tolist() == [2.0, 2.0]


def test_numbers_that_are_not_real_are_no_covariate() -> None:
    with pytest.raises(PanelError, match=r"series 'a': covariate 'x' is \(1\+2j\) at .*, expected a finite number"):
        Panel.from_frame(two_series().assign(x=1 + 2j), "h", CovariatesConfig(past=("x",)))


def test_a_panel_is_on_the_grid_that_its_timestamps_begin() -> None:
    half_hours = two_series().assign(ds=lambda f: f["ds"] + pd.Timedelta(30, "min"))

    panel = Panel.from_frame(half_hours, "h")

    assert panel.calendar == Calendar("h@1970-01-01T00:30")
    assert panel.to_frame()["ds"].tolist() == half_hours["ds"].tolist()
    assert Panel.from_frame(panel.to_frame(), panel.calendar.freq).fingerprint() == panel.fingerprint()


def test_names_of_any_type_become_text() -> None:
    frame = pd.DataFrame({"unique_id": pd.Categorical([7, 7, 8]), "ds": [0, 1, 0], "y": 1.0})

    assert Panel.from_frame(frame, "1").unique_ids == ["7", "8"]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "UTC"])
def test_a_time_zone_is_kept(zone: str) -> None:
    frame = two_series().assign(ds=lambda f: f["ds"].dt.tz_localize(zone))

    panel = Panel.from_frame(frame, "h")

    assert panel.calendar == Calendar("h", zone)
    assert str(panel.to_frame()["ds"].dt.tz) == zone
    assert panel.to_frame()["ds"].tolist() == frame["ds"].tolist()


@pytest.mark.parametrize("zone", ["+02:00", "dateutil/Europe/Berlin"])
def test_a_time_zone_without_a_name_is_refused_with_the_cure(zone: str) -> None:
    frame = two_series().assign(ds=lambda f: f["ds"].dt.tz_localize(zone))

    with pytest.raises(PanelError, match=r"ds is in time zone .* no IANA name .* ds.dt.tz_convert\(name\)"):
        Panel.from_frame(frame, "h")
    cured = frame.assign(ds=frame["ds"].dt.tz_convert("Europe/Berlin"))
    assert Panel.from_frame(cured, "h").to_frame()["ds"].tolist() == cured["ds"].tolist()


@given(
    histories=st.lists(st.tuples(series(min_size=1, max_size=20), st.integers(-100, 100)), min_size=1, max_size=4),
    freq=st.sampled_from(["h", "D", "MS", "1", "B", "W"]),
)
def test_a_panel_survives_the_way_through_a_frame(histories: list[tuple[Float, int]], freq: str) -> None:
    panel = Panel.from_series(Calendar(freq), [(f"s{i}", first, y) for i, (y, first) in enumerate(histories)])

    again = Panel.from_frame(panel.to_frame(), freq)

    assert again.fingerprint() == panel.fingerprint()


def replaced(column: str, row: int, value: object) -> pd.DataFrame:
    frame = two_series().astype({column: object})
    frame.loc[row, column] = value
    return frame.infer_objects()


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (two_series().drop(columns="y"), ["columns ['y'] are missing"]),
        (two_series().assign(price=1.0), ["columns ['price'] are unknown"]),
        (pd.concat([two_series(), two_series()[["y"]]], axis=1), ["columns ['y'] are there more than once"]),
        ({"unique_id": ["a"], "ds": HOURS[:1], "y": [1.0]}, ["pandas DataFrame, not from dict"]),
        (two_series().iloc[:0], ["no rows"]),
        (replaced("unique_id", 3, None), ["unique_id is missing in 1 rows"]),
        (replaced("y", 6, "much"), ["y has type", "'much'", "row 6"]),
        (two_series().assign(y=True), ["y has type bool"]),
        (two_series().assign(y=1 + 2j), ["y has type complex"]),
        (replaced("y", 6, np.inf), ["series 'b'", "inf", "2024-03-01 03:00"]),
        (replaced("y", 6, -np.inf), ["series 'b'", "-inf", "2024-03-01 03:00"]),
        (replaced("y", 1, 1e31), ["series 'a'", "1e+31", "2024-03-01 01:00"]),
        (replaced("ds", 6, HOURS[2]), ["series 'b'", "repeats", "2024-03-01 02:00", "unique per unique_id"]),
        (replaced("ds", 6, HOURS[1]), ["series 'b'", "goes back", "2024-03-01 01:00", "time order"]),
        (replaced("ds", 6, pd.Timestamp("2024-03-01 03:30")), ["series 'b'", "2024-03-01T03:30", "grid of freq 'h'"]),
        (replaced("ds", 6, pd.Timestamp("2024-03-01 03:00:00.000000001")), ["series 'b'", "03:00:00.000000001 is not"]),
        (replaced("ds", 7, pd.NaT), ["series 'b'", "ds is missing in 1 rows"]),
        (two_series().assign(ds=lambda f: f["ds"].astype(str)), ["series 'a'", "needs timestamps"]),
        (two_series().assign(ds=range(8)), ["series 'a'", "needs timestamps (see pandas.to_datetime)"]),
        (two_series().assign(ds=lambda f: f["ds"].dt.to_period("h")), ["period[h]", "see Series.dt.to_timestamp"]),
        (frame_of([("a", HOURS[0], 1.0), ("a", pd.Timestamp("2034-03-01"), 2.0)]), ["series 'a'", "is the freq right"]),
    ],
)  # fmt: skip
def test_every_refusal_names_what_and_where(frame: pd.DataFrame, words: list[str]) -> None:
    with pytest.raises(PanelError) as refusal:
        Panel.from_frame(frame, "h")

    for word in words:
        assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_timestamps_are_refused_where_integer_steps_are_expected() -> None:
    with pytest.raises(PanelError, match="freq '1' needs integer steps"):
        Panel.from_frame(two_series(), "1")


def test_an_unknown_frequency_is_refused_as_such() -> None:
    for freq in ("fortnight", None, 1, pd.offsets.Hour()):
        with pytest.raises(ConfigError, match=re.escape(repr(freq))):
            Panel.from_frame(two_series(), freq)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "lists", [[["new", "red"]] * 8, pd.array([["new", "red"]] * 8, dtype=pd.ArrowDtype(pa.list_(pa.string())))]
)
def test_a_covariate_of_lists_is_refused_by_name(lists: object) -> None:
    frame = two_series().assign(tags=lists)

    for role in ("known", "past", "static"):
        with pytest.raises(PanelError, match=r"covariate 'tags' holds \['new', 'red'\], expected numbers, text"):
            Panel.from_frame(frame, "h", CovariatesConfig(**{role: ("tags",)}))


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64(), pa.timestamp("s")], ids=str)
def test_dates_of_arrow_are_timestamps(kind: pa.DataType) -> None:
    frame = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2024-03-01", periods=3), "y": 1.0})

    panel = Panel.from_frame(frame.astype({"ds": pd.ArrowDtype(kind)}), "D")

    assert panel.fingerprint() == Panel.from_frame(frame, "D").fingerprint()


def test_a_refused_frame_is_not_changed_and_neither_is_an_accepted_one() -> None:
    good, bad = two_series(), replaced("y", 6, np.inf)
    copies = good.copy(), bad.copy()

    Panel.from_frame(good, "h")
    with pytest.raises(PanelError):
        Panel.from_frame(bad, "h")

    pd.testing.assert_frame_equal(good, copies[0])
    pd.testing.assert_frame_equal(bad, copies[1])


@pytest.mark.parametrize("value", [np.inf, -np.inf, 2e30])
def test_values_beyond_reason_are_refused_without_a_frame_too(value: float) -> None:
    with pytest.raises(PanelError, match=r"series 'a'.*position 1"):
        Panel.from_series(Calendar("1"), [("a", 0, np.array([1.0, value]))])


def test_an_unknown_series_is_refused() -> None:
    with pytest.raises(PanelError, match="series 'z' is not in the panel of 2"):
        Panel.from_frame(two_series(), "h").index_of("z")


def test_columns_that_were_known_beforehand_end_with_the_series_where_they_are_no_longer() -> None:
    """As a panel has them that was read without."""
    frame = two_series().assign(s=2.0, t=np.arange(8.0))
    frame.loc[[3, 4, 6], "y"] = np.nan
    past = CovariatesConfig(past=("t",))
    panel = Panel.from_frame(frame, "h", CovariatesConfig(known=("s",), past=("t",))).with_covariates(past)

    assert len(panel.to_frame()) == panel.lengths.sum()
    assert panel.fingerprint() == Panel.from_frame(panel.to_frame(), "h", past).fingerprint()


def test_drop_last_takes_steps_off_the_end_and_leaves_out_what_would_be_empty() -> None:
    panel = Panel.from_frame(two_series(), "h")

    shorter = panel.drop_last(3)

    assert shorter.unique_ids == ["a"]
    assert shorter.series(0).tolist() == [0.0, 1.0]
    assert shorter.first_steps[0] == panel.first_steps[0]
    assert panel.drop_last(0).fingerprint() == panel.fingerprint()
    assert len(panel.drop_last(9)) == 0


@pytest.mark.parametrize("roles", [{}, {"past": ("t",)}, {"known": ("t",)}, {"known": ("s",), "past": ("t",)}], ids=str)
def test_rows_without_y_after_the_last_observed_one_add_nothing_but_what_is_known_of_them(
    roles: dict[str, tuple[str, ...]],
) -> None:
    declared = CovariatesConfig(**roles)
    frame = two_series().assign(t=np.arange(8.0), s=2.0)[["unique_id", "ds", "y", *declared.columns]]
    frame.loc[[3, 4, 6], "y"] = np.nan

    panel = Panel.from_frame(frame, "h", declared).until_observed()

    np.testing.assert_array_equal(panel.series(0), [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(panel.series(1), [20.0, np.nan, 40.0])
    assert [len(table) for table in panel.tables] == [5 if declared.known else 3, 3]
    if declared.known:
        assert panel.select(np.arange(1)).future(2)[0, :, 0].tolist() == frame[declared.known[0]][3:5].tolist()
    else:
        assert panel.fingerprint() == Panel.from_frame(frame.drop(index=[3, 4]), "h", declared).fingerprint()
    assert panel.until_observed().fingerprint() == panel.fingerprint()
    assert Panel.from_frame(frame.assign(y=np.nan), "h", declared).until_observed().lengths.tolist() == [5, 3]


def test_tail_keeps_the_last_steps_of_every_series() -> None:
    panel = Panel.from_frame(two_series(), "h")

    end = panel.tail(4)

    assert end.lengths.tolist() == [4, 3]
    assert end.last_steps.tolist() == panel.last_steps.tolist()
    assert end.series(0).tolist() == [1.0, 2.0, 3.0, 4.0]


def test_an_empty_panel_still_has_a_frame() -> None:
    empty = Panel.from_frame(two_series(), "h").drop_last(9)

    assert list(empty.to_frame().columns) == ["unique_id", "ds", "y"]
    assert len(empty.to_frame()) == 0


def test_the_fingerprint_sees_the_values_of_covariates() -> None:
    frame = pd.DataFrame(
        {"unique_id": "a", "ds": pd.date_range("2024", periods=3, freq="h"), "y": 1.0, "t": 2.0, "s": 3.0}
    )
    roles = CovariatesConfig(known=("t",), static=("s",))

    found = {
        Panel.from_frame(frame.assign(**changed), "h", roles).fingerprint()
        for changed in ({}, {"t": [2.0, 2.0, 5.0]}, {"s": 4.0}, {"t": [2.0, 2.0, None]})
    }

    assert len(found) == 4


def test_the_fingerprint_sees_every_part() -> None:
    calendar = Calendar("h")
    parts = ("a", 0, np.array([1.0, np.nan, 3.0]))
    prints = [
        Panel.from_series(calendar, [parts]).fingerprint(),
        Panel.from_series(Calendar("D"), [parts]).fingerprint(),
        Panel.from_series(Calendar("h", "UTC"), [parts]).fingerprint(),
        Panel.from_series(calendar, [("b", *parts[1:])]).fingerprint(),
        Panel.from_series(calendar, [("a", 1, parts[2])]).fingerprint(),
        Panel.from_series(calendar, [("a", 0, np.array([1.0, np.nan, 3.5]))]).fingerprint(),
        Panel.from_series(calendar, [("a", 0, np.array([1.0, 3.0, np.nan]))]).fingerprint(),
        Panel.from_series(calendar, [("a", 0, np.array([1.0, np.nan, 3.0, np.nan]))]).fingerprint(),
        Panel.from_series(calendar, [parts, ("b", 0, np.array([1.0]))]).fingerprint(),
    ]

    assert len(set(prints)) == len(prints)
    assert Panel.from_series(calendar, [("a", 0, np.array([1.0, -np.nan, 3.0]))]).fingerprint() == prints[0]
