"""What a training leaves behind in MLflow, and that its steps can be repeated alone."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException

from forecaster import Forecaster, ForecasterError, InputError, backtest
from pipelines.backtesting import Rival, measure_champion
from pipelines.benchmarks.speed import Shape, benchmark_training
from pipelines.configuration import build_config, flatten
from pipelines.connection import RegistryError, connect
from pipelines.console import Reporter
from pipelines.loading import load_judged
from pipelines.predict import answer, forecasts
from pipelines.registry import CHALLENGER, CHAMPION, promote, version_of_alias
from pipelines.score import score
from pipelines.tracking import backtest_metrics, git_commit
from pipelines.train import (
    TrainRequest,
    backtest_seconds,
    backtest_step,
    fit_step,
    prepare,
    promotion_step,
    register_step,
    run_name,
    train,
    train_model,
)
from tests.pipelines.kit import HORIZON, QUICK, SEASON, long_frame

# MLflow 3.17 itself uses what pandas 3 advises against, also when its client only reads.
pytestmark = pytest.mark.filterwarnings("ignore:Operation with range is deprecated")

CURVES = {"train_loss", "val_loss", "learning_rate", "gradient_norm", "clipped_share", "updates_per_second", "seconds"}


@pytest.fixture
def request_(tmp_path: Path, tracking_uri: str) -> TrainRequest:
    """A training that takes a second."""
    long_frame().to_csv(tmp_path / "data.csv", index=False)
    return TrainRequest(
        data=str(tmp_path / "data.csv"),
        freq="h",
        horizon=HORIZON,
        seasonality=(SEASON,),
        overrides=QUICK,
        name="demand",
        tracking_uri=tracking_uri,
    )


def changed(request: TrainRequest, **changes: object) -> TrainRequest:
    return replace(request, **changes)  # type: ignore[arg-type]


def artifacts(client: MlflowClient, run_id: str, folder: str = "") -> set[str]:
    return {item.path for item in client.list_artifacts(run_id, folder)}


@pytest.mark.parametrize(
    ("data", "name"),
    [("some/sales.v2.csv", "sales.v2"), (".", Path.cwd().stem), ("sales/", "sales"), (f"{'x' * 251}.csv", "x" * 200)],
)
def test_a_run_is_named_by_its_data_whatever_they_are_called(data: str, name: str) -> None:
    assert run_name(data, "2024-01-01") == f"{name} to 2024-01-01"


def test_a_training_writes_down_all_that_explains_it(request_: TrainRequest, tracking_uri: str, tmp_path: Path) -> None:
    result = train(changed(request_, seed=3, out=str(tmp_path / "model")))

    client = connect(tracking_uri)
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == f"data to {long_frame()['ds'].max().isoformat()}"
    assert run.data.params["network.hidden_size"] == "8"
    assert run.data.params["training.seed"] == "3"
    for key, value in flatten(Forecaster.load(tmp_path / "model").config.to_dict()).items():
        assert run.data.params.get(f"chosen.{key}", run.data.params[key]) == str(value)
    assert run.data.params["transform"] == "auto"
    assert run.data.params["chosen.transform"] in ("log", "linear")
    assert set(run.data.metrics) >= CURVES
    assert len(client.get_metric_history(result.run_id, "gradient_norm")) == result.epochs
    assert len(client.get_metric_history(result.run_id, "val_loss")) == 2, "finishing has no validation"
    assert backtest_metrics(client, result.run_id) == pytest.approx(result.metrics)
    fingerprint = run.data.tags["data.training.fingerprint"]
    assert re.fullmatch("[0-9a-f]{64}", fingerprint)
    assert run.inputs.dataset_inputs[0].dataset.digest == fingerprint[:36]
    told = run.inputs.dataset_inputs[0].dataset
    assert json.loads(told.profile)["num_rows"] == len(long_frame()) + 1, "a gap is a row without y"
    columns = json.loads(told.schema)["mlflow_colspec"]
    assert [(column["name"], column["type"], column["required"]) for column in columns] == [
        ("unique_id", "string", True),
        ("ds", "datetime", True),
        ("y", "double", False),
    ]
    assert {"environment.python", "environment.torch"} <= set(run.data.tags)
    assert run.data.tags.get("mlflow.source.git.commit") == git_commit(Path(__file__).parent)
    assert artifacts(client, result.run_id) == {"backtest", "environment.json", "judged", "plots"}
    assert artifacts(client, result.run_id, "backtest") == {
        f"backtest/{name}" for name in ("by_series.json", "by_step.json", "by_window.json", "forecasts.parquet")
    }
    assert artifacts(client, result.run_id, "plots") == {"plots/learning_curve.html", "plots/backtest.html"}
    for page in ("learning_curve", "backtest"):
        path = client.download_artifacts(result.run_id, f"plots/{page}.html", str(tmp_path))
        text = Path(path).read_text(encoding="utf-8")
        assert text.count("<script") >= 2
        assert "<script src" not in text, "a plot must not need a network"
    logged = client.get_logged_model(run.data.tags["model.uri"].removeprefix("models:/"))
    assert {metric.key for metric in logged.metrics} >= {"backtest/wql", "backtest/coverage_80"}
    assert Path(tmp_path / "model" / "manifest.json").exists()


def test_a_time_box_holds_the_whole_training_not_only_the_fit(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes after the fit is expected to take as long as what came before; half of a box is left in any case."""
    clock, given = [0.0], []

    def reading(*args: object, **options: object) -> object:
        clock[0] += 90
        return prepare(*args, **options)  # type: ignore[arg-type]

    def fitting(*args: object, max_minutes: float, **options: object) -> object:
        given.append(max_minutes)
        return train_model(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("pipelines.train.time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr("pipelines.train.prepare", reading)
    monkeypatch.setattr("pipelines.train.train_model", fitting)

    for box in (10, 2):
        train(changed(request_, max_minutes=box))

    assert given == [pytest.approx(7, abs=0.01), 1]


def test_a_time_box_has_room_for_the_backtest_of_a_champion(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[float] = []
    monkeypatch.setattr("pipelines.train.minutes_to_fit", lambda *args: counted.append(args[2] * 60))

    for changes in ({}, {}, {"n_windows": 0}):
        train(changed(request_, **changes))

    once = backtest_seconds(prepare(request_).panel)
    assert counted == pytest.approx([once, 2 * once, 0])


def test_a_value_of_one_long_series_takes_longer_than_one_of_many(request_: TrainRequest) -> None:
    panel = prepare(request_).panel
    one = panel.select(np.arange(1))

    assert backtest_seconds(one) / one.observed > backtest_seconds(panel) / panel.observed


def test_a_model_is_kept_where_its_run_breaks_off_and_the_user_is_told(
    request_: TrainRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RegistryError("the model cannot be logged: the disk is full")

    said: list[str] = []
    reporter = Reporter(quiet=True)
    reporter.notice = said.append  # type: ignore[method-assign]
    monkeypatch.setattr("pipelines.tracking.log_forecaster", refuse)
    out = str(tmp_path / "model")

    with pytest.raises(RegistryError):
        train(changed(request_, out=out), reporter)

    assert Forecaster.load(out)
    assert any(out in text for text in said)


def test_the_gate_judges_weights_that_never_saw_the_windows_of_either_rival(
    request_: TrainRequest, tracking_uri: str, tmp_path: Path
) -> None:
    first = train(changed(request_, out=str(tmp_path / "model")))
    client = connect(tracking_uri)
    served, judged = Forecaster.load(tmp_path / "model"), load_judged(client, first.run_id)
    plan = prepare(request_)
    windows = {name: getattr(plan.windows, name) for name in ("horizon", "n_windows", "step_size")}

    assert judged is not None
    assert judged.fingerprint() != served.fingerprint() == first.fingerprint
    assert backtest(judged, plan.panel, **windows).metrics == pytest.approx(first.metrics)
    rival = measure_champion(client, "demand", plan.windows, "none", tracking_uri=tracking_uri)
    assert rival is not None
    assert rival.metrics == pytest.approx(first.metrics)


def test_what_is_in_the_held_out_windows_changes_the_served_weights_and_not_the_judged_ones(
    request_: TrainRequest, tracking_uri: str, tmp_path: Path
) -> None:
    plan, frame = prepare(request_), long_frame()
    held = frame["ds"] > frame["ds"].max() - pd.Timedelta(hours=plan.windows.held_out)
    frame.loc[held, "y"] += 7 * np.arange(held.sum())
    frame.to_csv(tmp_path / "changed.csv", index=False)

    runs = [fit_step(prepare(one), one) for one in (request_, changed(request_, data=str(tmp_path / "changed.csv")))]
    judged = [load_judged(connect(tracking_uri), run.run_id) for run in runs]

    assert all(model is not None for model in judged)
    assert len({model.fingerprint() for model in judged if model is not None}) == 1
    assert len({run.forecaster.fingerprint() for run in runs}) == 2


def test_steps_can_be_repeated_alone_and_change_nothing_then(request_: TrainRequest, tracking_uri: str) -> None:
    """As a scheduler does it: every step starts from the request, and a run id or a version."""
    client = connect(tracking_uri)
    run_id = fit_step(prepare(request_), request_).run_id

    first = backtest_step(run_id, prepare(request_), request_)
    again = backtest_step(run_id, prepare(request_), request_)
    assert first is not None
    assert again is not None
    assert first.metrics == again.metrics
    assert backtest_metrics(client, run_id) == pytest.approx(first.metrics)

    assert register_step(run_id, request_) == register_step(run_id, request_) == "1"
    rival, decision = promotion_step("1", prepare(request_), request_)
    assert rival is None
    assert decision.promoted
    assert version_of_alias(client, "demand", CHALLENGER) == version_of_alias(client, "demand", CHAMPION) == "1"
    with pytest.raises(InputError, match="no run"):
        register_step("0" * 32, request_)


def test_a_promotion_that_was_cut_short_can_be_repeated(
    request_: TrainRequest, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry goes away between the alias and the run; a champion that beats nobody but itself is no refusal."""
    client = connect(tracking_uri)
    train(request_)
    better = changed(request_, margin=-10.0)

    def away(*_: object) -> None:
        raise RegistryError("max retries exceeded")

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr("pipelines.train.describe_version", away)
        with pytest.raises(RegistryError):
            train(better)
    plan, registered = prepare(better), client.get_registered_model("demand").aliases
    tags = client.get_model_version("demand", "2").tags
    assert {alias: int(of) for alias, of in registered.items()} == {"champion": 2, "challenger": 2, "previous": 1}

    for _ in range(2):
        rival, decision = promotion_step("2", plan, better)
        assert rival is not None
        assert (decision.promoted, rival.version) == (True, "1")
    assert client.get_registered_model("demand").aliases == registered
    assert client.get_model_version("demand", "2").tags == tags


def test_series_too_short_to_judge_train_a_first_champion_but_never_replace_one(
    request_: TrainRequest, tracking_uri: str
) -> None:
    long_frame(steps=17).to_csv(request_.data, index=False)

    first, second = train(request_), train(changed(request_, seed=1))

    assert (first.n_windows, first.promoted, first.metrics) == (0, True, {})
    assert not second.promoted
    assert second.reason == "the challenger has no backtest, because no window was held out"
    assert (second.champion_version, second.champion_metrics) == ("1", {})
    assert version_of_alias(connect(tracking_uri), "demand", CHAMPION) == "1"


def test_a_champion_that_cannot_be_fetched_just_now_refuses_nobody(
    request_: TrainRequest, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal would stay when the server is back, and nobody would look again."""
    client = connect(tracking_uri)
    train(request_)

    def away(*_: object, **__: object) -> None:
        raise MlflowException("max retries exceeded")

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr("mlflow.MlflowClient.list_artifacts", away)
        with pytest.raises(
            RegistryError, match=r"version 2 of model 'demand' is registered, but not judged: .* retries"
        ):
            train(changed(request_, seed=1))
    assert client.get_model_version("demand", "2").tags.keys().isdisjoint({"promotion.status", "promotion.reason"})

    rival, _ = promotion_step("2", prepare(request_), request_)
    assert rival is not None
    assert rival.metrics


def test_a_champion_of_which_only_the_model_is_left_is_measured_by_that(
    request_: TrainRequest, tracking_uri: str, tmp_path: Path
) -> None:
    """Brought from another registry it has no run; and runs are tidied away, by halves at times."""
    client = connect(tracking_uri)
    first = train(request_)
    model = download_artifacts(artifact_uri="models:/demand/1", dst_path=str(tmp_path / "brought"))
    windows = prepare(request_).windows

    def measured() -> Rival:
        rival = measure_champion(client, "demand", windows, "none", tracking_uri=tracking_uri)
        assert rival is not None
        return rival

    as_judged = measured()
    client.create_model_version("demand", source=model)
    client.set_registered_model_alias("demand", CHAMPION, "2")
    served = measured()
    assert served.problem is None
    assert served.metrics != as_judged.metrics == pytest.approx(first.metrics)

    client.set_registered_model_alias("demand", CHAMPION, "1")
    (weights,) = (tmp_path / "mlartifacts" / first.run_id).rglob("weights.safetensors")
    weights.unlink()
    assert replace(measured(), version="2") == served

    client.delete_run(first.run_id)
    client._tracking_client.store._hard_delete_run(first.run_id)  # as `mlflow gc` does
    assert replace(measured(), version="2") == served


@pytest.mark.parametrize(
    ("gone", "what"), [("", "is registered, but its files are gone"), ("artifacts", "holds no artifact of forecaster")]
)
def test_a_champion_without_files_or_of_another_kind_is_told_from_a_registry_that_is_away(
    request_: TrainRequest, tracking_uri: str, tmp_path: Path, gone: str, what: str
) -> None:
    train(request_)
    for judged in (tmp_path / "mlartifacts").rglob("judged"):
        shutil.rmtree(judged)
    (model,) = (tmp_path / "mlartifacts" / "models").iterdir()
    shutil.rmtree(model / "artifacts" / gone)

    result = train(changed(request_, seed=1))

    assert not result.promoted
    assert f"champion 1: model models:/demand/1 {what}" in result.reason


def test_a_model_that_cannot_be_saved_to_its_folder_is_registered_all_the_same(
    request_: TrainRequest, tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was checked before the training is another after it: here, somebody has put files there."""
    out = tmp_path / "model"

    def fit(*given: Any, **more: Any) -> Any:
        fitted = train_model(*given, **more)
        out.mkdir()
        (out / "precious.txt").write_text("mine")
        return fitted

    monkeypatch.setattr("pipelines.train.train_model", fit)

    with pytest.raises(ForecasterError, match=r"^version 1 of model 'demand' .*, but .*model holds other files"):
        train(changed(request_, out=str(out)))

    assert version_of_alias(connect(tracking_uri), "demand", CHALLENGER) == "1"
    assert [path.name for path in out.iterdir()] == ["precious.txt"]


def test_who_became_champion_while_another_was_measured_has_to_be_beaten(
    request_: TrainRequest, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(tracking_uri)
    train(request_)
    for _ in range(2):
        register_step(fit_step(prepare(request_), request_).run_id, request_)
    measured: list[str] = []

    def measure(*given: Any, **more: Any) -> Rival | None:
        rival = measure_champion(*given, **more)
        if not measured:
            promote(client, "demand", "2", force=True)  # by another process
        measured.append(rival.version if rival else "none")
        return rival

    monkeypatch.setattr("pipelines.train.measure_champion", measure)

    rival, _ = promotion_step("3", prepare(request_), request_)

    assert measured == ["1", "2"]
    assert rival is not None
    assert rival.version == client.get_model_version("demand", "3").tags["promotion.compared_with"] == "2"


def test_runs_and_versions_say_in_words_what_came_of_them(request_: TrainRequest, tracking_uri: str) -> None:
    """On MLflow's pages, where a list of numbers is all there is otherwise."""
    client = connect(tracking_uri)
    train(request_)

    result = train(request_)

    notes = [
        client.get_model_version("demand", "2").description,
        client.get_run(result.run_id).data.tags["mlflow.note.content"],
    ]
    assert notes[0] == notes[1]
    assert not result.promoted, "the same once more beats nobody"
    assert notes[0].startswith("Refused by the gate: ")
    assert client.get_model_version("demand", "1").description.startswith("Let in by the gate: ")
    said = " ".join(notes[0].split())
    assert f"3 series of `{Path(request_.data).name}`, 358 values up to 2024-01-05T23:00:00" in said
    assert result.reason in said
    assert "| metric | model | seasonal naive | champion 1 |" in said
    assert f"| wql | {result.metrics['wql']:.4g} | {result.metrics['seasonal_naive_wql']:.4g} |" in said
    assert "- transform" in said
    assert client.get_experiment_by_name("demand").tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_training_without_windows_has_a_note_without_a_table_and_prints_no_password(
    request_: TrainRequest, tracking_uri: str
) -> None:
    result = train(changed(request_, n_windows=0))

    printed = replace(result, tracking_uri="postgresql://someone:secret@host/mlflow?sslmode=require").to_dict()
    assert result.to_dict()["tracking_uri"] == tracking_uri
    assert printed["tracking_uri"] == "postgresql://host/mlflow?sslmode=require"
    assert "|" not in connect(tracking_uri).get_model_version("demand", "1").description


def test_a_model_keeps_the_grid_that_the_data_begin(request_: TrainRequest, tmp_path: Path) -> None:
    frame = long_frame(steps=120 + HORIZON).assign(ds=lambda frame: frame["ds"] + pd.Timedelta(30, "min"))
    truth = frame.groupby("unique_id").tail(HORIZON)
    frame.drop(truth.index).to_csv(request_.data, index=False)
    truth.to_csv(tmp_path / "truth.csv", index=False)
    long_frame().to_csv(tmp_path / "hours.csv", index=False)
    model, found = str(tmp_path / "model"), tmp_path / "found.csv"

    train(changed(request_, out=model))
    answer(request_.data, model, forecasts(), out=found)
    metrics = score(found, tmp_path / "truth.csv", history=request_.data, freq="h", season=SEASON)

    assert metrics["wql"] < 1
    with pytest.raises(InputError, match="is in steps of freq h@1970-01-01T00:30, but"):
        score(found, tmp_path / "truth.csv", history=tmp_path / "hours.csv", freq="h", season=SEASON)
    with pytest.raises(InputError, match="not on the grid of freq 'h@1970-01-01T00:30'"):
        answer(tmp_path / "hours.csv", model, forecasts())


def test_a_training_without_windows_says_whose_choice_that_was(request_: TrainRequest) -> None:
    said: list[str] = []
    reporter = Reporter(quiet=True)
    reporter.notice = said.append  # type: ignore[method-assign]

    prepare(changed(request_, n_windows=0), reporter)
    long_frame(steps=17).to_csv(request_.data, index=False)
    prepare(request_, reporter)

    about = [text for text in said if "will not judge" in text]
    assert "as asked" in about[0]
    assert "too short" in about[1]


def test_levels_that_models_cannot_be_compared_at_are_refused_before_the_training(request_: TrainRequest) -> None:
    narrow = {**request_.overrides, "quantile_levels": "0.25,0.5,0.75"}

    with pytest.raises(InputError, match=r"quantile_levels are 0.25, 0.5, 0.75; 0.1 and 0.9 have to lie within them"):
        prepare(changed(request_, overrides=narrow))
    prepare(changed(request_, overrides={**narrow, "head": "student_t"}))


def test_rows_without_y_at_the_end_neither_train_nor_judge(request_: TrainRequest) -> None:
    fingerprint = prepare(request_).panel.fingerprint()
    frame = long_frame()
    ahead = frame.groupby("unique_id").tail(2).assign(y=np.nan)
    ahead["ds"] += pd.Timedelta(HORIZON, "h")
    pd.concat([frame, ahead]).to_csv(request_.data, index=False)

    assert prepare(request_).panel.fingerprint() == fingerprint


def test_a_season_that_no_series_is_as_long_as_is_remarked_on(request_: TrainRequest) -> None:
    said: list[str] = []
    reporter = Reporter(quiet=True)
    reporter.notice = said.append  # type: ignore[method-assign]

    prepare(request_, reporter)
    assert not any("no series shows" in text for text in said)
    prepare(changed(request_, seasonality=(SEASON, 2000)), reporter)
    assert any("no series shows a season of 2000 steps" in text for text in said)


def test_a_champion_that_cannot_forecast_so_far_stays_and_the_reason_says_so(
    request_: TrainRequest, tracking_uri: str
) -> None:
    train(changed(request_, horizon=1))

    result = train(request_)

    assert not result.promoted
    assert "cannot be measured" in result.reason
    assert "champion 1: horizon is 6, expected 1 to 4" in result.reason


def test_options_win_over_the_file_and_overrides_over_options(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('freq = "D"\nhorizon = 9\n[network]\nhidden_size = 16\nnum_layers = 3\n[training]\nseed = 1\n')

    config = build_config(freq="h", horizon=6, seed=2, config_file=file, overrides={"network.num_layers": "1"})

    assert (config.freq, config.horizon, config.network.hidden_size) == ("h", 6, 16)
    assert (config.network.num_layers, config.training.seed) == (1, 2)


def test_the_training_benchmark_measures_both_loops() -> None:
    shape = Shape(lanes=2, chunk_length=8, hidden_size=4, num_layers=2, horizon=2, season=2)
    rows = list(benchmark_training(shape, rounds=1, seconds=1.0))

    assert [row["benchmark"] for row in rows] == ["training", "training", "training_ensemble"]
    assert all(row["value"] > 0 and row["reference"] > 0 and row["ratio"] > 0 for row in rows)
