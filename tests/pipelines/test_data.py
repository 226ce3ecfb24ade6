"""Reading files: what is accepted, and the one sentence each kind of damage gets."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forecaster import CovariatesConfig, ForecasterError, InputError, Panel
from pipelines.data import check_output, read_future, read_panel, write_frame


def hourly(unique_id: object = "a", steps: int = 5, start: str = "2024-01-01") -> pd.DataFrame:
    return pd.DataFrame(
        {"unique_id": unique_id, "ds": pd.date_range(start, periods=steps, freq="h"), "y": np.arange(steps) + 1.0}
    )


def write(folder: Path, text: str, name: str = "data.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["data.csv", "data.csv.gz", "DATA.CSV.GZ", "data.parquet", "data.pq"])
def test_csv_and_parquet_give_the_same_panel(tmp_path: Path, name: str) -> None:
    write_frame(hourly(), tmp_path / name)

    assert ((tmp_path / name).read_bytes()[:2] == b"\x1f\x8b") == name.lower().endswith(".gz")
    panel = read_panel(tmp_path / name, "h")

    assert panel.unique_ids == ["a"]
    np.testing.assert_array_equal(panel.series(0), [1, 2, 3, 4, 5])


def test_a_folder_is_read_in_name_order_and_a_series_may_span_files(tmp_path: Path) -> None:
    write_frame(hourly(start="2024-01-01", steps=3), tmp_path / "part-1.csv")
    write_frame(hourly(start="2024-01-01T03:00", steps=2), tmp_path / "part-2.parquet")
    (tmp_path / "README.txt").write_text("not data")
    for copies in (".ipynb_checkpoints", "_delta_log", "mlartifacts"):
        (tmp_path / copies).mkdir()
        write_frame(hourly(), tmp_path / copies / "part-1-checkpoint.parquet")

    assert read_panel(tmp_path, "h").lengths.tolist() == [5]


def test_integer_names_are_read_as_text_and_keep_their_zeros(tmp_path: Path) -> None:
    csv = write(tmp_path, "unique_id,ds,y\n007,0,1\n007,1,2\n")
    write_frame(hourly(unique_id=7), tmp_path / "data.parquet")

    assert read_panel(csv, "1").unique_ids == ["007"]
    assert read_panel(tmp_path / "data.parquet", "h").unique_ids == ["7"]


def test_a_series_may_be_called_na(tmp_path: Path) -> None:
    assert read_panel(write(tmp_path, "unique_id,ds,y\nNA,0,1\nNA,1,2\n"), "1").unique_ids == ["NA"]


@pytest.mark.parametrize("missing", ["", "NaN", "null", "NA"])
def test_a_missing_y_stays_missing(tmp_path: Path, missing: str) -> None:
    panel = read_panel(write(tmp_path, f"unique_id,ds,y\na,0,1\na,1,{missing}\na,2,3\n"), "1")

    np.testing.assert_array_equal(panel.series(0), [1, np.nan, 3])


def test_timestamps_with_offsets_are_read_in_utc(tmp_path: Path) -> None:
    text = "unique_id,ds,y\na,2024-03-31T00:00:00+01:00,1\na,2024-03-31T03:00:00+02:00,2\n"
    panel = read_panel(write(tmp_path, text), "h")

    assert panel.calendar.time_zone == "UTC"
    np.testing.assert_array_equal(panel.series(0), [1, np.nan, 2])


@pytest.mark.parametrize(
    ("freq", "start", "advised"),
    [("D", "2024-02-20", True), ("MS", "2024-03-01", True), ("h", "2024-02-20T00:30", False)],
)
def test_local_dates_that_only_have_offsets_are_refused_with_the_cure(
    tmp_path: Path, freq: str, start: str, advised: bool
) -> None:
    ds = pd.date_range(start, periods=60, freq=freq, tz="Europe/Berlin").to_series()
    ds.iloc[-1] += pd.Timedelta(0 if advised else 10, "min")
    pd.DataFrame({"unique_id": "a", "ds": ds, "y": 1.0}).to_csv(tmp_path / "data.csv", index=False)

    with pytest.raises(InputError, match="is not on the grid of freq") as caught:
        read_panel(tmp_path / "data.csv", freq)

    assert ("read in UTC, as no time zone was given" in str(caught.value)) == advised
    assert ("--set time_zone=Europe/Berlin" in str(caught.value)) == advised
    if advised:
        assert read_panel(tmp_path / "data.csv", freq, time_zone="Europe/Berlin").lengths.tolist() == [60]


def test_an_instant_may_be_written_in_any_zone_where_the_zone_is_known(tmp_path: Path) -> None:
    local = hourly(start="2024-03-31").assign(ds=lambda f: f["ds"].dt.tz_localize("UTC").dt.tz_convert("Europe/Berlin"))
    write_frame(local, tmp_path / "local.parquet")
    write_frame(local, tmp_path / "offsets.csv")
    write_frame(local.assign(ds=local["ds"].dt.tz_convert("Asia/Tokyo")), tmp_path / "far.parquet")

    read = [read_panel(path, "h", time_zone="Europe/Berlin") for path in tmp_path.iterdir()]

    assert {panel.fingerprint() for panel in read} == {Panel.from_frame(local, "h").fingerprint()}


def test_other_columns_are_ignored_and_named_in_one_notice(tmp_path: Path) -> None:
    notices: list[str] = []
    path = write(tmp_path, "unique_id,ds,y,price,promo\na,0,1,9,0\na,1,2,9,1\n")

    read_panel(path, "1", notice=notices.append)

    assert len(notices) == 1
    assert "price, promo" in notices[0]


def test_a_freq_finer_than_the_rows_is_remarked_on(tmp_path: Path) -> None:
    days = pd.concat([hourly("a", 4), hourly("b", 3)]).assign(
        ds=lambda f: f["ds"].dt.normalize() + f["y"] * pd.Timedelta("1D")
    )
    write_frame(days, tmp_path / "data.csv")
    notices: dict[str, list[str]] = {"h": [], "D": []}

    for freq, said in notices.items():
        read_panel(tmp_path / "data.csv", freq, notice=said.append)

    assert len(notices["h"]) == 1
    assert "closer than 24 steps of freq h: is the freq right?" in notices["h"][0]
    assert notices["D"] == []


def test_months_read_as_days_are_remarked_on_though_no_step_divides_them(tmp_path: Path) -> None:
    months = hourly(steps=24).assign(ds=pd.date_range("2023-01-01", periods=24, freq="MS"))
    write_frame(months, tmp_path / "data.csv")
    said: list[str] = []

    read_panel(tmp_path / "data.csv", "D", notice=said.append)

    assert said == [f"no two y of {tmp_path / 'data.csv'} are closer than 28 steps of freq D: is the freq right?"]


def test_declared_columns_are_numbers_or_categories_by_what_they_hold(tmp_path: Path) -> None:
    text = "unique_id,ds,y,price,promo,place,note\na,0,1,9,True,NA,\na,1,2,,,NA,\na,2,,NaN,False,NA,x\n"
    covariates = CovariatesConfig(known=("price", "promo"), static=("place",))
    notices: list[str] = []

    panel = read_panel(write(tmp_path, text), "1", covariates, notice=notices.append)

    assert panel.lengths.tolist() == [2]
    np.testing.assert_array_equal(panel.tables[0], [[9, 2], [np.nan, 0], [np.nan, 1]])
    assert panel.covariates.categories == (("promo", "false", "true"), ("place", "NA"))
    assert "ignored columns" in notices[0]
    assert "note" in notices[0]


def test_a_long_column_of_numbers_stays_one_where_some_are_missing_at_its_end(tmp_path: Path) -> None:
    steps = 50_000  # more than a reader takes at a time
    rows = [f"a,{step},1,{step % 1500}.5" for step in range(steps)] + [f"a,{steps},1,"]
    path = write(tmp_path, "\n".join(["unique_id,ds,y,price", *rows, ""]))

    panel = read_panel(path, "1", CovariatesConfig(past=("price",)))

    assert panel.covariates.categories == ()
    np.testing.assert_array_equal(panel.tables[0][[0, -2, -1], 0], [0.5, 499.5, np.nan])


def test_timestamps_with_a_bare_offset_are_counted_in_utc_whatever_the_file(tmp_path: Path) -> None:
    local = hourly().assign(ds=lambda f: f["ds"].dt.tz_localize("+02:00"))

    for name in ("data.csv", "data.parquet"):
        write_frame(local, tmp_path / name)
        panel = read_panel(tmp_path / name, "h")
        assert panel.calendar.format(panel.first_steps) == ["2023-12-31T22:00:00+00:00"]


def test_a_category_keeps_its_name_where_it_reads_like_a_number(tmp_path: Path) -> None:
    covariates = CovariatesConfig(known=("shop", "open"))
    text = "unique_id,ds,y,shop,open\na,0,1,A12,True\na,1,2,007,False\na,2,3,1.0,\n"
    learnt = read_panel(write(tmp_path, text), "1", covariates).covariates
    frame = pd.DataFrame({"unique_id": "a", "ds": [0, 1], "y": 1.0, "shop": ["007", "1.0"], "open": ["TRUE", "FALSE"]})
    expected = [[learnt.values_of("shop").index("007") + 1, 2], [learnt.values_of("shop").index("1.0") + 1, 1]]

    for name in ("numbers.csv", "numbers.parquet"):
        write_frame(frame, tmp_path / name)
        np.testing.assert_array_equal(read_panel(tmp_path / name, "1", learnt).tables[0], expected)
        future = read_future(tmp_path / name, "1", learnt)
        assert future["shop"].tolist() == ["007", "1.0"]


def test_texts_of_a_parquet_file_are_what_the_library_makes_of_them(tmp_path: Path) -> None:
    """Only CSV has no types: a file that says "text" is believed, also of post codes."""
    covariates = CovariatesConfig(known=("shop",), past=("price",), static=("post_code",))
    frame = hourly("a", 4).assign(shop=["007", "010", None, "007"], price=["1.5", "2", "", "1.5"], post_code="01067")
    write_frame(frame, tmp_path / "data.parquet")

    read, expected = read_panel(tmp_path / "data.parquet", "h", covariates), Panel.from_frame(frame, "h", covariates)

    assert read.covariates == expected.covariates
    assert dict((name, values) for name, *values in read.covariates.categories)["post_code"] == ["01067"]
    np.testing.assert_array_equal(read.tables[0], expected.tables[0])
    np.testing.assert_array_equal(read.static, expected.static)
    assert read_future(tmp_path / "data.parquet", "h", covariates)["shop"].tolist()[:2] == ["007", "010"]


@pytest.mark.parametrize("levels", [["unique_id", "ds"], ["ds", "nothing", "unique_id"], ["ds"]], ids=str)
def test_what_a_frame_has_in_its_index_is_a_column_as_well(tmp_path: Path, levels: list[str]) -> None:
    frame = pd.concat([hourly("a"), hourly("b", 3)]).assign(nothing=range(8))
    frame.set_index(levels).to_parquet(tmp_path / "data.parquet")

    panel = read_panel(tmp_path / "data.parquet", "h")

    assert panel.fingerprint() == Panel.from_frame(frame[["unique_id", "ds", "y"]], "h").fingerprint()


NO_NUMBERS: dict[str, list[object]] = {
    "truth values, one missing": [True, None],
    "timestamps": [pd.Timestamp("2024-01-01"), pd.Timestamp("2024-01-02")],
    "durations": [pd.Timedelta("1h"), pd.Timedelta("2h")],
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_what_is_no_number_is_not_taken_for_one(tmp_path: Path, kind: str) -> None:
    pd.DataFrame({"unique_id": "a", "ds": [0, 1], "y": NO_NUMBERS[kind]}).to_parquet(tmp_path / "data.parquet")

    with pytest.raises(InputError, match="expected a number"):
        read_panel(tmp_path / "data.parquet", "1")


@pytest.mark.parametrize(
    ("ds", "expected"),
    [
        (pd.array([1, None], dtype="Int64"), "ds is missing in 1 rows"),
        (np.array([2**63, 2**63 + 1], dtype=np.uint64), "ds 9223372036854775808 is no integer step"),
        (np.array(["1", "two"], dtype=object), "ds holds 'two' in a column of str"),
        (np.array(["1", "1" * 19], dtype=object), "ds holds '1111111111111111111' in a column of str"),
    ],
    ids=["missing", "huge", "text", "huge text"],
)
def test_what_is_no_integer_step_in_a_parquet_file_is_refused(tmp_path: Path, ds: object, expected: str) -> None:
    pd.DataFrame({"unique_id": "a", "ds": ds, "y": 1.0}).to_parquet(tmp_path / "data.parquet")

    with pytest.raises(InputError, match=expected):
        read_panel(tmp_path / "data.parquet", "1")


def test_whole_numbers_as_text_are_integer_steps(tmp_path: Path) -> None:
    pd.DataFrame({"unique_id": "a", "ds": ["-1", "0", " 01"], "y": 1.0}).to_parquet(tmp_path / "data.parquet")

    assert read_panel(tmp_path / "data.parquet", "1").to_frame()["ds"].tolist() == [-1, 0, 1]


@pytest.mark.parametrize(
    ("freq", "days"),
    [
        ("YS", ["1990-01-01", "1991-01-01", "1992-01-01"]),
        ("YE", ["1990-12-31", "1991-12-31", "1992-12-31"]),
        ("YS-APR", ["1990-04-01", "1991-04-01", "1992-04-01"]),
        ("YE-JUN", ["1990-06-30", "1991-06-30", "1992-06-30"]),
        ("12MS", ["1990-01-01", "1991-01-01", "1992-01-01"]),
    ],
)
def test_a_year_is_the_step_in_it_where_a_step_is_a_year(tmp_path: Path, freq: str, days: list[str]) -> None:
    roles = CovariatesConfig(known=("price",))
    frame = pd.DataFrame({"unique_id": "a", "ds": [1990, 1991, 1992], "y": [1.0, 2.0, 3.0], "price": 1.0})
    frame.to_csv(tmp_path / "numbers.csv", index=False)
    frame.to_parquet(tmp_path / "numbers.parquet")
    frame.assign(ds=frame["ds"].astype(str)).to_parquet(tmp_path / "text.parquet")
    frame.assign(ds=pd.to_datetime(days)).to_parquet(tmp_path / "days.parquet")

    panels = [read_panel(path, freq, roles) for path in tmp_path.iterdir()]
    futures = [read_future(path, freq, roles) for path in tmp_path.iterdir()]

    assert len({panel.fingerprint() for panel in panels}) == 1
    assert panels[0].to_frame()["ds"].tolist() == pd.to_datetime(days).tolist()
    assert all(future["ds"].tolist() == pd.to_datetime(days).tolist() for future in futures)


DAMAGED = {
    "no such column": ("unique_id,ds,value\na,0,1\n", "1", "lacks columns ['y']"),
    "names with spaces": ("unique_id, ds, y\na,0,1\n", "1", "found 'unique_id', ' ds', ' y'"),
    "a name twice": ("unique_id,ds,y,y\na,0,1,2\n", "1", "has 2 columns named 'y'"),
    "no rows": ("unique_id,ds,y\n", "1", "no rows"),
    "no text at all": ("", "1", "is empty"),
    "text in y": ("unique_id,ds,y\na,0,1\na,1,lots\n", "1", "'lots'"),
    "infinity": ("unique_id,ds,y\na,0,1\na,1,inf\n", "1", "inf"),
    "negative infinity": ("unique_id,ds,y\na,0,1\na,1,-inf\n", "1", "-inf"),
    "repeat": ("unique_id,ds,y\na,0,1\na,0,1\n", "1", "ds repeats at 0"),
    "disorder": ("unique_id,ds,y\na,1,1\na,0,1\n", "1", "ds goes back"),
    "text in ds": ("unique_id,ds,y\na,yesterday,1\n", "h", "'yesterday'"),
    "empty ds": ("unique_id,ds,y\na,,1\n", "h", "row 1"),
    "timestamps with freq 1": ("unique_id,ds,y\na,2024-01-01,1\n", "1", "integer steps"),
    "integers with a freq": ("unique_id,ds,y\na,1,1\na,2,1\n", "h", "freq 1"),
    "numbers that are no years": ("unique_id,ds,y\na,1,1\na,2,1\n", "YE", "ds 1 lies outside the years 1678 to 2261"),
    "days as numbers": ("unique_id,ds,y\na,19901231,1\n", "YE", "ds 19901231 lies outside the years"),
    "years with a shorter freq": ("unique_id,ds,y\na,1990,1\na,1991,1\n", "QS", "needs timestamps"),
    "every third year of two": ("unique_id,ds,y\na,1990,1\na,1993,1\n", "2YS", "not on the grid of freq '2YS'"),
    "off the grid": ("unique_id,ds,y\na,2024-01-01T00:30,1\n", "h", "not on the grid"),
    "unknown freq": ("unique_id,ds,y\na,2024-01-01,1\n", "fortnight", "'fortnight'"),
    "missing name": ("unique_id,ds,y\na,0,1\n,1,1\n", "1", "unique_id is missing in row 2"),
    "empty series": ("unique_id,ds,y\na,0,1\nb,0,\nb,1,\n", "1", "'b' has no observed y"),
    "ragged rows": ("unique_id,ds,y\na,0,1\na,1,1,1,1\n", "1", "cannot be read"),
    "more fields than names": ("unique_id,ds,y\na,0,5,1\na,1,6,2\n", "1", "more fields than the header, which has 3"),
    "a comma after every row": ("unique_id,ds,y\na,0,5,\na,1,6,\n", "1", "more fields than the header"),
    "truth values in y": ("unique_id,ds,y\na,0,True\na,1,False\n", "1", "y is True"),
    "years beyond": ("unique_id,ds,y\na,9999-01-01,1\n", "D", "series 'a': ds 9999-01-01 00:00:00 lies outside"),
    "offsets in some rows": (
        "unique_id,ds,y\na,2024-01-01T00:00+02:00,1\na,2024-01-01T01:00,1\n",
        "h",
        "'2024-01-01T01:00' in row 2 has no UTC offset, but '2024-01-01T00:00+02:00' in row 1 has one",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_refused_in_one_line_that_names_the_file(tmp_path: Path, kind: str) -> None:
    text, freq, expected = DAMAGED[kind]
    path = write(tmp_path, text)

    with pytest.raises(InputError) as caught:
        read_panel(path, freq)

    assert expected in str(caught.value)
    assert "data.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there_or_of_another_kind_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.csv", tmp_path, write(tmp_path, "x", "data.xlsx")):
        with pytest.raises(InputError):
            read_panel(path, "1")


def test_a_packed_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    write_frame(hourly(steps=1000), tmp_path / "data.csv.gz")
    packed = (tmp_path / "data.csv.gz").read_bytes()
    (tmp_path / "data.csv.gz").write_bytes(packed[: len(packed) // 2])

    with pytest.raises(InputError, match="cannot be read"):
        read_panel(tmp_path / "data.csv.gz", "h")


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_panel(write(tmp_path, "PAR1 but not really", "data.parquet"), "1")


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("ds", pa.array([0, 3600], pa.timestamp("s", "No/Where")), "there is no time zone 'No/Where'"),
        ("unique_id", pa.array([b"a", b"a"]), "unique_id is b'a' in row 1, expected text"),
        ("ds", pa.array([0, 2**62], pa.timestamp("ms")), "outside the years 1678 to 2261"),
    ],
)
def test_columns_of_a_parquet_file_that_cannot_be_what_they_are_to_be_are_refused(
    tmp_path: Path, column: str, values: pa.Array, said: str
) -> None:
    columns = {"unique_id": ["a", "a"], "ds": pa.array([0, 3600], pa.timestamp("s")), "y": [1.0, 2.0]}
    pq.write_table(pa.table(columns | {column: values}), tmp_path / "data.parquet")

    with pytest.raises(InputError, match=said):
        read_panel(tmp_path / "data.parquet", "h")


@pytest.mark.parametrize("name", ["out.json", "nowhere/out.csv"])
def test_an_impossible_output_is_refused_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        write_frame(hourly(), tmp_path / name)

    assert list(tmp_path.iterdir()) == []


def test_an_output_never_takes_the_place_of_an_input_by_whatever_name(tmp_path: Path) -> None:
    (tmp_path / "parts" / "old").mkdir(parents=True)
    data, part, linked = tmp_path / "data.csv", tmp_path / "parts" / "part.csv", tmp_path / "linked.csv"
    for path in (data, part, linked):
        write_frame(hourly(), path)
    (tmp_path / "link.csv").symlink_to(data)
    (tmp_path / "others").symlink_to(tmp_path / "parts")
    (tmp_path / "parts" / "link.csv").symlink_to(linked)
    inputs = [tmp_path / "link.csv", tmp_path / "parts"]

    for name in ("data.csv", "link.csv", "parts/../data.csv", "linked.csv"):
        with pytest.raises(InputError, match="is read as input"):
            check_output(tmp_path / name, inputs)
    for name in ("parts/new.csv", "others/new.csv", "parts/old/new.parquet"):
        with pytest.raises(InputError, match="whose files are all read as data"):
            check_output(tmp_path / name, inputs)
    for name in ("new.csv", "parts/_new.csv", "parts/../new.csv"):
        assert check_output(tmp_path / name, [*inputs, tmp_path / "new.csv"])


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out.csv").write_text("before")

    def fill(_: pd.DataFrame, path: Path, **more: object) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", fill)

    with pytest.raises(ForecasterError, match=r"cannot write .*out\.csv: .*No space left on device"):
        write_frame(hourly(), tmp_path / "out.csv")

    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
