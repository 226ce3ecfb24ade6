"""The command line as a user meets it: real processes, exit statuses, one line per mistake, nothing left behind."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer

from forecaster import Forecaster, Panel
from forecaster.baselines import naive2
from pipelines.cli import app
from tests.pipelines.kit import (
    HORIZON,
    QUICK,
    Ran,
    covered_frame,
    environment,
    files_below,
    long_frame,
    random_forecaster,
    run_cli,
)

TRAIN = ("train", "data.csv", "--freq", "h", "--horizon", str(HORIZON), "--season", "4")
SMALL = tuple(word for key, value in QUICK.items() for word in ("--set", f"{key}={value}"))


Runner = Callable[..., Ran]


@pytest.fixture
def folder(tmp_path: Path, empty_database: Path) -> Path:
    """A working folder with data and an empty MLflow store."""
    work = tmp_path / "work"
    work.mkdir()
    long_frame().to_csv(work / "data.csv", index=False)
    shutil.copy(empty_database, work / "mlflow.db")
    return work


def test_train_predict_backtest_promote_and_models_work_together(
    folder: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One story through the whole offline edge; the first step is a process of its own, as a user starts it."""
    trained = run_cli(*TRAIN, *SMALL, "--out", "model", "--json", cwd=folder)
    assert trained.status == 0, trained.err
    assert trained.json["promoted"]
    assert trained.json["aliases"] == ["challenger", "champion"]
    assert trained.json["n_windows"] == 2
    assert {"wql", "mase", "smape", "owa", "seasonal_naive_wql"} <= set(trained.json["metrics"])
    assert sorted(path.name for path in folder.iterdir()) == ["data.csv", "mlartifacts", "mlflow.db", "model"]
    for chatter in ("lightning", "GPU", "alembic", "INFO", "Warning", "mlflow.", "Traceback"):
        assert chatter not in trained.err

    monkeypatch.chdir(folder)
    predicted = run("predict", "data.csv", "--model", "models:/forecaster@champion", "--out", "out.csv", "--json")
    assert predicted.status == 0, predicted.err
    forecasts = pd.read_csv(folder / "out.csv", parse_dates=["ds"])
    assert list(forecasts.columns) == ["unique_id", "ds", *(f"0.{k}" for k in range(1, 10))]
    expected = Forecaster.load(folder / "model").forecast_frame(Panel.from_frame(long_frame(), "h"))
    np.testing.assert_allclose(forecasts.iloc[:, 2:], expected.iloc[:, 2:], rtol=1e-6)
    assert predicted.json["model"] == {"reference": "models:/forecaster@champion", "name": "forecaster", "version": "1"}

    # What is served has learnt from the windows by now; the run keeps the twin that was judged on them.
    (judged,) = folder.rglob("judged")
    measured = run(
        "backtest", "data.csv", "--model", str(judged), "--horizon", "6", "--windows", "2", "--step", "6", "--json"
    )
    assert measured.status == 0, measured.err
    assert measured.json["metrics"]["wql"] == pytest.approx(trained.json["metrics"]["wql"])
    assert [row["window"] for row in measured.json["windows"]] == [0, 1]

    # The same seed on the same data is the same model, which beats nobody.
    again = run(*TRAIN, *SMALL, "--json")
    assert again.status == 0, again.err
    assert not again.json["promoted"]
    assert again.json["fingerprint"] == trained.json["fingerprint"]
    assert "does not beat the champion" in again.json["reason"]
    listed = run("models", "--json")
    assert [(row["version"], row["aliases"], row["status"]) for row in listed.json["models"]] == [
        ("2", ["challenger"], "refused"),
        ("1", ["champion"], "promoted"),
    ]

    refused = run("promote", "forecaster")
    assert (refused.status, len(refused.complaints)) == (2, 1)
    assert run("promote", "forecaster", "--force", "--json").json["champion"] == "2"
    assert run("promote", "forecaster", "--rollback", "--json").json["champion"] == "1"


def test_covariates_go_from_training_to_a_forecast_of_a_known_future(
    folder: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    frame = covered_frame()
    frame.to_csv(folder / "data.csv", index=False)
    frame[frame["y"].notna()].to_csv(folder / "history.csv", index=False)
    future = frame.groupby("unique_id").tail(HORIZON)
    future[["unique_id", "ds", "price", "open"]].to_csv(folder / "future.csv", index=False)

    trained = run(*TRAIN, *SMALL, "--known", "price,open", "--static", "place", "--out", "model", "--json")
    assert trained.status == 0, trained.err
    covariates = Forecaster.load(folder / "model").config.covariates
    assert (covariates.known, covariates.static) == (("price", "open"), ("place",))
    assert covariates.values_of("place") == ("harbour", "hill")

    within = run("predict", "data.csv", "--model", "model", "--out", "within.csv", "--json")
    beside = run(
        "predict", "history.csv", "--model", "model", "--future", "future.csv", "--out", "beside.csv", "--json"
    )
    unknown = run("predict", "history.csv", "--model", "model", "--out", "none.csv")

    assert (within.status, beside.status, unknown.status) == (0, 0, 2), (within.err, beside.err)
    assert (folder / "within.csv").read_text() == (folder / "beside.csv").read_text()
    assert "series 's0': price, open are not known at 2024-01-06" in unknown.complaints[0]
    measured = run(
        "backtest", "data.csv", "--model", "model", "--horizon", "6", "--windows", "2", "--step", "6", "--json"
    )
    assert measured.status == 0, measured.err
    drawn = run(
        "simulate", "history.csv", "--model", "model", "--future", "future.csv", "--out", "paths.csv", "--samples", "3"
    )
    assert drawn.status == 0, drawn.err


def test_rows_without_y_at_the_end_are_no_part_of_a_backtest_and_forecasts_begin_after_them(
    folder: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    random_forecaster().save("model")
    frame = long_frame()
    late = frame.groupby("unique_id")["ds"].transform("max") - frame["ds"] < pd.Timedelta(2, "h")
    late &= frame["unique_id"] != "s1"
    frame.assign(y=frame["y"].mask(late)).to_csv("late.csv", index=False)
    frame[~late].to_csv("cut.csv", index=False)
    windows = ("--model", "model", "--horizon", "6", "--windows", "2", "--step", "6", "--json")

    measured = [run("backtest", name, *windows).json["metrics"] for name in ("late.csv", "cut.csv")]
    told = run("predict", "late.csv", "--model", "model", "--out", "out.csv")
    silent = run("predict", "cut.csv", "--model", "model", "--out", "cut-out.csv")

    assert measured[0] == measured[1]
    assert "2 series of late.csv end in up to 2 steps without y; what is forecast begins after them" in told.err
    assert "without y" not in silent.err
    assert pd.read_csv("out.csv", parse_dates=["ds"])["ds"].min() == frame["ds"].max() + pd.Timedelta(1, "h")


def test_score_repeats_a_known_result(tmp_path: Path, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Naive2 as the forecast has an OWA of exactly 1."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    history, truth, forecasts = [], [], []
    for name in ("a", "b"):
        y = 50 + 10 * np.sin(2 * np.pi * np.arange(106) / 4) + generator.normal(0, 1, 106)
        history.append(pd.DataFrame({"unique_id": name, "ds": range(100), "y": y[:100]}))
        truth.append(pd.DataFrame({"unique_id": name, "ds": range(100, 106), "y": y[100:]}))
        guess = naive2(y[:100], 6, 4)
        forecasts.append(
            pd.DataFrame({"unique_id": name, "ds": range(100, 106), "0.1": guess - 3, "0.5": guess, "0.9": guess + 3})
        )
    for name, frames in (("history", history), ("truth", truth), ("forecasts", forecasts)):
        pd.concat(frames).to_csv(tmp_path / f"{name}.csv", index=False)

    scored = run("score", "forecasts.csv", "truth.csv", "--history", "history.csv", "--season", "4", "--json")
    moved = run("score", "forecasts.csv", "truth.csv", "--history", "truth.csv", "--season", "4")
    ahead = [frame.assign(y=np.nan) for frame in truth]  # what tells the future of known covariates
    pd.concat([*history, *ahead]).to_csv("planned.csv", index=False)
    planned = run("score", "forecasts.csv", "truth.csv", "--history", "planned.csv", "--season", "4", "--json")
    pd.concat([forecasts[0].assign(**{"0.9": np.nan}), forecasts[1]]).to_parquet("half.parquet")
    half = run("score", "half.parquet", "truth.csv", "--history", "history.csv", "--season", "4")

    assert scored.status == 0, scored.err
    assert scored.json["metrics"]["owa"] == pytest.approx(1.0)
    assert scored.json["metrics"]["series"] == 2
    assert 0 <= scored.json["metrics"]["coverage_80"] <= 1
    assert (moved.status, len(moved.complaints)) == (2, 1)
    assert planned.json["metrics"] == scored.json["metrics"]
    assert half.status == 2
    assert "series 'a' has steps without a forecast at level 0.9" in half.complaints[0]


def test_a_model_of_a_time_zone_reads_and_scores_files_that_only_have_offsets(
    tmp_path: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    random_forecaster(time_zone="Europe/Berlin").save("model")
    frame = long_frame(steps=120 + HORIZON)
    frame["ds"] = frame["ds"].dt.tz_localize("Europe/Berlin")
    known = frame.groupby("unique_id").cumcount(ascending=False) >= HORIZON
    frame[known].to_csv("history.csv", index=False)
    frame[~known].to_parquet("truth.parquet")
    frame[known].to_parquet("history.parquet")

    forecasts = [
        run("predict", f"history.{kind}", "--model", "model", "--out", f"{kind}.csv") for kind in ("csv", "parquet")
    ]
    scored = [
        run(
            "score",
            "csv.csv",
            "truth.parquet",
            "--history",
            f"history.{kind}",
            "--season",
            "4",
            "--freq",
            "h",
            "--json",
        )
        for kind in ("csv", "parquet")
    ]
    frame.assign(ds=frame["ds"].dt.tz_localize(None)).to_csv("naive.csv", index=False)
    naive = run("score", "csv.csv", "naive.csv", "--history", "history.csv", "--season", "4", "--freq", "h")

    assert [done.status for done in (*forecasts, *scored)] == [0] * 4, scored[0].err
    assert Path("csv.csv").read_text() == Path("parquet.csv").read_text()
    assert scored[0].json["metrics"] == scored[1].json["metrics"]
    assert (naive.status, naive.complaints) == (2, ["forecaster: naive.csv is in no time zone, but history.csv in UTC"])


def test_forecasts_of_local_days_are_scored_where_files_only_have_offsets(
    tmp_path: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    random_forecaster(freq="D", time_zone="Europe/Berlin").save("model")
    frame = long_frame(steps=120 + HORIZON)
    days = (pd.to_datetime(frame["ds"]) - pd.Timestamp("2024-01-01")) // pd.Timedelta(hours=1)
    frame["ds"] = pd.Timestamp("2024-01-01", tz="Europe/Berlin") + days * pd.offsets.Day()
    known = frame.groupby("unique_id").cumcount(ascending=False) >= HORIZON
    frame[known].to_csv("history.csv", index=False)
    frame[~known].to_csv("truth.csv", index=False)
    score = ("score", "out.csv", "truth.csv", "--history", "history.csv", "--season", "4", "--freq", "D", "--json")

    predicted = run("predict", "history.csv", "--model", "model", "--out", "out.csv")
    without, scored, nowhere = (
        run(*score, *more) for more in ((), *(("--time-zone", z) for z in ("Europe/Berlin", "")))
    )

    assert (predicted.status, without.status, scored.status, nowhere.status) == (0, 2, 0, 2)
    assert "--time-zone" in without.complaints[0]
    assert scored.json["metrics"]["series"] == 3
    assert nowhere.complaints == ["forecaster: time_zone '' is not a known IANA time zone"]


MISTAKES = {
    "unknown command": (("trian",), "trian"),
    "unknown option": ((*TRAIN, "--colour", "red"), "--colour"),
    "missing option": (("train", "data.csv", "--freq", "h"), "--horizon"),
    "horizon that is no number": (("train", "data.csv", "--freq", "h", "--horizon", "six"), "--horizon"),
    "horizon 0": (("train", "data.csv", "--freq", "h", "--horizon", "0"), "horizon"),
    "horizon far too long": (("train", "data.csv", "--freq", "h", "--horizon", "100000"), "horizon"),
    "horizon longer than the data": (("train", "data.csv", "--freq", "h", "--horizon", "200", "--windows", "1"), "200"),
    "no such file": (("train", "nowhere.csv", "--freq", "h", "--horizon", "6"), "nowhere.csv does not exist"),
    "wrong freq": (("train", "data.csv", "--freq", "D", "--horizon", "6"), "not on the grid"),
    "unknown freq": (("train", "data.csv", "--freq", "blue", "--horizon", "6"), "'blue'"),
    "integer freq for dates": (("train", "data.csv", "--freq", "1", "--horizon", "6"), "integer steps"),
    "missing column": (("train", "columns.csv", "--freq", "h", "--horizon", "6"), "lacks columns ['y']"),
    "text in y": (("train", "text.csv", "--freq", "h", "--horizon", "6"), "'lots'"),
    "infinite y": (("train", "infinite.csv", "--freq", "h", "--horizon", "6"), "inf"),
    "repeated ds": (("train", "repeat.csv", "--freq", "h", "--horizon", "6"), "repeats"),
    "disorder": (("train", "disorder.csv", "--freq", "h", "--horizon", "6"), "goes back"),
    "empty file": (("train", "empty.csv", "--freq", "h", "--horizon", "6"), "empty"),
    "series without y": (("train", "hollow.csv", "--freq", "h", "--horizon", "6"), "no observed y"),
    "two steps only": (("train", "short.csv", "--freq", "h", "--horizon", "6"), "3 steps or more"),
    "unknown key": ((*TRAIN, "--set", "network.colour=red"), "network.colour"),
    "override without a value": ((*TRAIN, "--set", "network.hidden_size"), "key=value"),
    "impossible value": ((*TRAIN, "--set", "network.hidden_size=0"), "hidden_size"),
    "season 0": (("train", "data.csv", "--freq", "h", "--horizon", "6", "--season", "0"), "season"),
    "no such configuration": ((*TRAIN, "--config", "nowhere.toml"), "nowhere.toml"),
    "broken configuration": ((*TRAIN, "--config", "data.csv"), "not valid JSON"),
    "no time at all": ((*TRAIN, "--max-minutes", "0"), "--max-minutes"),
    "all the time there is": ((*TRAIN, "--max-minutes", "inf"), "--max-minutes"),
    "a name with a slash": ((*TRAIN, "--name", "a/b"), "a/b"),
    "a name that a URL reads otherwise": ((*TRAIN, "--name", "a?b"), "a?b"),
    "a name that is none": ((*TRAIN, "--name", ".."), "'..'"),
    "a name of two lines": ((*TRAIN, "--name", "a\nb"), "printable"),
    "a name for nobody's patience": ((*TRAIN, "--name", "x" * 251), "1 to 250"),
    "an output that is a file": ((*TRAIN, "--out", "data.csv"), "data.csv"),
    "an output with other things in it": ((*TRAIN, "--out", "."), "holds other files"),
    "an output that even root cannot make": ((*TRAIN, "--out", "/proc/model"), "/proc cannot be written to"),
    "too many windows": ((*TRAIN, "--windows", "50"), "50 backtest windows"),
    "fewer windows than none": ((*TRAIN, "--windows", "-1"), "at least 0, not -1"),
    "steps of none": ((*TRAIN, "--step", "0"), "at least 1, not 0"),
    "an output below a file": ((*TRAIN, "--out", "data.csv/model"), "data.csv is no folder"),
    "another time zone": ((*TRAIN, "--set", "time_zone=UTC"), "is in no time zone, but the configuration says UTC"),
    "another freq": ((*TRAIN, "--set", "freq=D"), "grid of freq 'D'"),
    "a margin nobody meets": ((*TRAIN, "--margin", "1"), "margin"),
    "unknown model": (("predict", "data.csv", "--model", "models:/nobody@champion", "--out", "o.csv"), "nobody"),
    "unknown model folder": (("predict", "data.csv", "--model", "nowhere", "--out", "o.csv"), "nowhere"),
    "damaged model": (("predict", "data.csv", "--model", "damaged", "--out", "o.csv"), "damaged"),
    "model of another freq": (("predict", "data.csv", "--model", "daily", "--out", "o.csv"), "not on the grid"),
    "horizon 0 at forecast": (
        ("predict", "data.csv", "--model", "model", "--horizon", "0", "--out", "o.csv"),
        "horizon is 0",
    ),
    "horizon too long at forecast": (
        ("predict", "data.csv", "--model", "model", "--horizon", "99", "--out", "o.csv"),
        "horizon is 99",
    ),
    "impossible level": (
        ("predict", "data.csv", "--model", "model", "--quantile-level", "2", "--out", "o.csv"),
        "quantile level 2",
    ),
    "output nowhere": (
        ("predict", "data.csv", "--model", "model", "--out", "/proc/o.csv"),
        "/proc cannot be written to",
    ),
    "backtest to nowhere": (
        (
            "backtest",
            "data.csv",
            "--model",
            "model",
            "--horizon",
            "6",
            *("--windows=1", "--step=6", "--out=/proc/o.csv"),
        ),
        "/proc cannot be written to",
    ),
    "output over the input": (("predict", "data.csv", "--model", "model", "--out", "./data.csv"), "is read as input"),
    "output over the future": (
        ("simulate", "data.csv", "--model", "model", "--future", "short.csv", "--out", "short.csv"),
        "short.csv: it is read as input",
    ),
    "output among the input": (
        ("backtest", ".", "--model", "model", *("--horizon=6", "--windows=1", "--step=6", "--out=o.csv")),
        "it lies in ., whose files are all read as data",
    ),
    "a report to nowhere": (("bench", "accuracy", "--data", ".", "--out", "/proc/o.md"), "/proc cannot be written to"),
    "rows to nowhere": (("bench", "peers", "--data", ".", "--lines", "/proc/o.jsonl"), "/proc cannot be written to"),
    "output of no kind": (("predict", "data.csv", "--model", "model", "--out", "o.json"), "o.json"),
    "no windows": (
        ("backtest", "data.csv", "--model", "model", "--horizon", "6", "--windows", "0", "--step", "1"),
        "windows",
    ),
    "windows beyond the data": (
        ("backtest", "data.csv", "--model", "model", "--horizon", "6", "--windows", "99", "--step", "9"),
        "steps",
    ),
    "promotion of nobody": (("promote", "nobody"), "nobody"),
    "rollback of nobody": (("promote", "nobody", "--rollback"), "nobody"),
    "rollback and force": (("promote", "nobody", "--rollback", "--force"), "--rollback"),
    "models of nobody": (("models", "nobody"), "nobody"),
    "no such store": (("models", "--tracking-uri", "sqlite:///nowhere.db"), "nowhere.db"),
    "a store that is a folder": (("models", "--tracking-uri", "sqlite:///model"), "is a folder"),
    "a store that nobody keeps": (("models", "--tracking-uri", "sqlite://"), "gone when the command ends"),
    "unknown benchmark": (("bench", "--only", "lunch"), "lunch"),
    "a demo in a used folder": (("demo", "--folder", "."), "not empty"),
    "a schedule of a season 0": (("schedule", *TRAIN[1:], "--season", "0"), "seasonality"),
    "a schedule of a name with a slash": (("schedule", *TRAIN[1:], "--name", "a/b"), "a/b"),
    "a schedule of no minutes": (("schedule", *TRAIN[1:], "--max-minutes", "0"), "--max-minutes"),
    "a schedule of a margin of all": (("schedule", *TRAIN[1:], "--margin", "1"), "--margin"),
    "schedule of nothing": (("schedule", "nowhere.csv", "--freq", "h", "--horizon", "6"), "nowhere.csv"),
}
"""Each with what the one line has to mention."""


@pytest.fixture(scope="module")
def mistakes_folder(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A working folder with everything that can be wrong in it."""
    work = tmp_path_factory.mktemp("mistakes")
    shutil.copy(empty_database, work / "mlflow.db")
    frame = long_frame(series=1)
    frame.to_csv(work / "data.csv", index=False)
    frame.rename(columns={"y": "value"}).to_csv(work / "columns.csv", index=False)
    frame.assign(y=["lots", *frame["y"][1:]]).to_csv(work / "text.csv", index=False)
    frame.assign(y=[*frame["y"][:-1], np.inf]).to_csv(work / "infinite.csv", index=False)
    pd.concat([frame[:5], frame[4:]]).to_csv(work / "repeat.csv", index=False)
    frame[::-1].to_csv(work / "disorder.csv", index=False)
    (work / "empty.csv").write_text("")
    frame.assign(y=np.nan).to_csv(work / "hollow.csv", index=False)
    frame[:2].to_csv(work / "short.csv", index=False)
    random_forecaster().save(work / "model")
    random_forecaster(freq="D").save(work / "daily")
    random_forecaster().save(work / "damaged")
    weights = work / "damaged" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"oops")
    return work


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_one_line_status_2_and_changes_nothing(
    mistakes_folder: Path, kind: str, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, because starting fifty costs minutes; the same `main` that the console script calls."""
    arguments, expected = MISTAKES[kind]
    monkeypatch.chdir(mistakes_folder)
    before = files_below(mistakes_folder)

    done = run(*arguments)

    assert done.status == 2, done.err
    assert len(done.complaints) == 1, done.err
    assert expected in done.complaints[0]
    assert "Traceback" not in done.err
    assert done.out == ""
    assert files_below(mistakes_folder) == before


def test_the_console_script_says_the_same_in_a_process_of_its_own(mistakes_folder: Path) -> None:
    done = run_cli("predict", "data.csv", "--model", "damaged", "--out", "o.csv", cwd=mistakes_folder)

    assert done.status == 2
    assert len(done.complaints) == 1


@pytest.mark.parametrize("group", ["keys", "streams"])
def test_a_group_of_commands_without_one_explains_itself(group: str, run: Runner) -> None:
    done = run(group)

    assert done.status == 2
    assert "Usage" in done.out
    assert done.err == ""


@pytest.mark.parametrize("scheme", ["http", "postgresql", "postgresql+psycopg"])
def test_an_unreachable_server_is_one_line_and_status_1(
    scheme: str, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database server is asked once: MLflow's own ten attempts take 100 s."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("mlflow.store.db.utils.time", None)  # for sleeping between two of them

    done = run("models", "--tracking-uri", f"{scheme}://me:secret@127.0.0.1:9")

    assert done.status == 1
    assert len(done.complaints) == 1
    assert "unexpected" not in done.err
    assert "secret" not in done.err


@pytest.mark.parametrize("debug", ["", "1"])
def test_an_unexpected_error_is_one_line_and_a_traceback_only_when_asked_for(
    folder: Path, run: Runner, monkeypatch: pytest.MonkeyPatch, debug: str
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("pipelines.registry.versions", broken)
    monkeypatch.setenv("FORECASTER_DEBUG", debug)
    monkeypatch.chdir(folder)

    done = run("models")

    assert done.status == 1
    assert done.complaints[-1].startswith("forecaster: unexpected ZeroDivisionError: two lines")
    assert ("Traceback" in done.err) == bool(debug)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "mlflow.db"), "Permission denied: mlflow.db"),
    ],
)
def test_a_disk_that_is_full_or_not_the_users_is_nothing_unexpected(
    folder: Path, run: Runner, monkeypatch: pytest.MonkeyPatch, error: OSError, said: str
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr("pipelines.registry.versions", full)
    monkeypatch.chdir(folder)

    done = run("models")

    assert (done.status, done.complaints) == (1, [f"forecaster: {said}"])


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        (
            "raise ModuleNotFoundError('', name='typer')",
            1,
            "package typer is not installed; forecaster[pipelines] brings it",
        ),
        ("raise KeyboardInterrupt", 130, "interrupted"),
        ("__import__('signal').raise_signal(15)", 143, "terminated"),
    ],
)
def test_a_command_that_cannot_be_imported_says_so_in_one_line(
    tmp_path: Path, fault: str, status: int, said: str
) -> None:
    (tmp_path / "typer.py").write_text(fault)

    done = run_cli(
        "models", cwd=tmp_path, env={"PYTHONPATH": os.pathsep.join([str(tmp_path), environment({})["PYTHONPATH"]])}
    )

    assert (done.status, done.out, done.complaints) == (status, "", [f"forecaster: {said}"])


@pytest.mark.parametrize(
    ("command", "package", "said"),
    [("serve", "uvicorn", "forecaster[service] brings it"), ("train", "lightning", "an extra of forecaster")],
)
def test_a_command_without_its_packages_says_so_in_one_line(
    folder: Path, tmp_path: Path, command: str, package: str, said: str
) -> None:
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('', name={package!r})")
    arguments = {"serve": ["--model", "model"], "train": [*TRAIN[1:], *SMALL]}[command]

    done = run_cli(
        command,
        *arguments,
        cwd=folder,
        env={"PYTHONPATH": os.pathsep.join([str(tmp_path), environment({})["PYTHONPATH"]])},
    )

    assert done.status == 1
    assert done.complaints[-1].startswith(f"forecaster: package {package} is not installed; ")
    assert said in done.complaints[-1]
    assert "Traceback" not in done.err


@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_ctrl_c_and_sigterm_end_training_with_a_status_of_their_own_and_a_killed_run(
    folder: Path, number: signal.Signals, said: str
) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "pipelines",
            *TRAIN,
            *SMALL,
            "--set",
            "training.updates=1000000",
            "--set",
            "training.patience=1000000",
        ],
        cwd=folder,
        env=environment({}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Jobs in the background of a script are started with SIGINT ignored, and so would be their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "started" in line:
            break
    time.sleep(1.0)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)

    assert process.returncode == 128 + number
    assert err.strip().splitlines()[-1] == f"forecaster: {said}"
    assert "Traceback" not in err
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("forecaster")
    assert experiment is not None
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["KILLED"]


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("made", [None, SystemExit(1), SystemExit(), RuntimeError("a worker ended")], ids=repr)
@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_ctrl_c_and_sigterm_end_any_command_in_one_line_whatever_a_library_makes_of_them(
    folder: Path,
    run: Runner,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    said: str,
    made: BaseException | None,
) -> None:
    def ending(*_: object) -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            if made is None:
                raise
            raise made from None

    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr("pipelines.registry.versions", ending)
    monkeypatch.chdir(folder)

    done = run("models")

    assert (done.status, done.out, done.complaints) == (128 + number, "", [f"forecaster: {said}"])
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_what_can_be_trained_can_be_trained_on_a_schedule() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    options = {name: {option.name for option in commands[name].params} for name in ("train", "schedule")}

    assert options["train"] - options["schedule"] == {"out", "json"}


COMMANDS = ("train", "predict", "backtest", "score", "promote", "models", "keys", "serve", "demo", "schedule", "bench")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_explains_itself(command: str, run: Runner) -> None:
    done = run(*command.split(), "--help")

    assert done.status == 0
    assert "Usage: forecaster" in done.out
    assert all(name in done.out for name in (() if command else COMMANDS))


def test_serve_becomes_the_service_with_its_settings(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr("os.execve", lambda _, arguments, environment: became.append((arguments[1:], environment)))

    run("serve", "--model", "m", "--named", "a=x", "--named", "b=models:/b@c", "--store", "s", "--port", "1")

    arguments, given = became[0]
    assert arguments == ["-m", "service.programs", "serve"]
    assert {key: value for key, value in given.items() if key.startswith("FORECASTER_")} == {
        "FORECASTER_MODEL": "m",
        "FORECASTER_MODELS": '{"a": "x", "b": "models:/b@c"}',
        "FORECASTER_STORE": "s",
        "FORECASTER_PORT": "1",
    }


@pytest.mark.parametrize("named", [["a"], ["=x"], ["a="], ["a=x", "a=y"]])
def test_serve_refuses_named_models_that_are_none(named: list[str], run: Runner) -> None:
    done = run("serve", *(f"--named={pair}" for pair in named))

    assert done.status == 2
    assert "--named" in done.err


def test_a_new_key_is_made_by_the_service(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[list[str]] = []
    monkeypatch.setattr("os.execve", lambda _, arguments, _environment: became.append(arguments[1:]))

    run("keys", "new", "me", "--scopes", "read", "--rate", "1234567.5", "--models", "load,/", "--json")

    assert became == [
        [
            "-m",
            "service.programs",
            "keys",
            "new",
            "me",
            "--scopes=read",
            "--rate=1234567.5",
            "--models=load,/",
            "--json",
        ]
    ]


def test_simulate_writes_paths_that_a_seed_repeats(folder: Path, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    random_forecaster().save(folder / "model")
    monkeypatch.chdir(folder)

    ran = run(
        "simulate", "data.csv", "--model", "model", "--samples", "3", "--seed", "7", "--out", "a.parquet", "--json"
    )
    again = run("simulate", "data.csv", "--model", "model", "--samples", "3", "--seed", "7", "--out", "b.csv")
    refused = run("simulate", "data.csv", "--model", "model", "--samples", "0", "--out", "c.csv")

    assert ran.status == again.status == 0, ran.err
    paths = pd.read_parquet("a.parquet")
    assert list(paths.columns) == ["unique_id", "sample", "ds", "y"]
    assert len(paths) == ran.json["rows"] == 3 * 3 * HORIZON
    np.testing.assert_allclose(pd.read_csv("b.csv")["y"], paths["y"], rtol=1e-9)
    assert refused.status == 2
    assert "num_samples is 0, expected 1 to 10000" in refused.err
    assert not Path("c.csv").exists()


def test_a_head_for_counts_refuses_other_data_before_anything_is_written(
    folder: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    before = files_below(folder)

    ran = run(*TRAIN, *SMALL, "--set", "head=zero_inflated")

    assert ran.status == 2
    assert "series 's0' has y = " in ran.err
    assert "head 'zero_inflated' expects counts: whole numbers of 0 or more" in ran.err
    assert files_below(folder) == before


@pytest.mark.parametrize("head", ["student_t", "negative_binomial", "zero_inflated"])
def test_every_head_trains_is_logged_and_predicts(
    head: str, folder: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    frame = long_frame()
    frame["y"] = np.round(frame["y"])
    frame.to_csv(folder / "data.csv", index=False)
    monkeypatch.chdir(folder)

    trained = run(*TRAIN, *SMALL, "--set", f"head={head}", "--json")
    champion = ("--model", "models:/forecaster@champion")
    predicted = run("predict", "data.csv", *champion, "--out", "out.csv", "--quantile-level", "0.995")

    assert trained.status == predicted.status == 0, trained.err + predicted.err
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    logged = mlflow.pyfunc.load_model("models:/forecaster/1").predict(frame, {"quantile_levels": [0.995]})
    np.testing.assert_allclose(logged["0.995"], pd.read_csv("out.csv")["0.995"], rtol=1e-6)
