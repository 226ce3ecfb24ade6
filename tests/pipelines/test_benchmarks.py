"""Protocols reproduce published floors where the data is at hand; their parts do what they say where it is not."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from forecaster import Config, CovariatesConfig, Forecaster, InputError, backtest
from forecaster.baselines import seasonal_naive
from pipelines.benchmarks.ablation import VARIANTS, choose_variants, run_ablation
from pipelines.benchmarks.accuracy import AccuracyRequest, milestones, run_accuracy
from pipelines.benchmarks.evaluation import costs, evaluate, forecast_batches, warm_state
from pipelines.benchmarks.peers import (
    PeersRequest,
    best_wql,
    peers_table,
    read_lines,
    run_peers,
    thinned,
    without_gaps,
)
from pipelines.benchmarks.protocols import PROTOCOLS, Protocol, Target, Task, choose, load, task_of
from pipelines.benchmarks.report import ablation_table, accuracy_table, milestones_table, verdict
from pipelines.benchmarks.scores import LEVELS, Scores, naive_scores
from pipelines.benchmarks.streams import (
    age_rows,
    cold_rows,
    follower,
    run_streams,
    sample,
    short_memory,
    streams_table,
    young,
)
from pipelines.cli import main
from tests.pipelines.kit import HORIZON, QUICK, SEASON, long_frame, tiny_config

pytestmark = pytest.mark.filterwarnings("ignore:Operation with range is deprecated")

TINY = Protocol(
    "tiny", ("tiny.parquet",), "h", HORIZON, (SEASON,), SEASON, (Target("mase", 1.0, 0.5),), test=20, step=3
)


@pytest.fixture(scope="module")
def tiny() -> Task:
    """Three short series with gaps; five origins, three steps apart."""
    return task_of(TINY, long_frame())


# -- with the data sets at hand ----------------------------------------------------------------------------------------

FLOORS = {
    "m4-hourly": {"smape": 13.912, "mase": 1.193, "owa": 0.628},
    "m4-weekly": {"smape": 9.161, "mase": 2.777, "owa": 1.0},
    "europe-load": {"mape": 5.080},
    "etth1-96": {"mse": 0.512, "mae": 0.433},
    "etth1-720": {"mse": 0.655, "mae": 0.514},
    "exchange-rate": {"mase": 1.7402, "wql": 0.0130},
}
"""Of the seasonal naive; each published, or computed by a plain loop from the same files."""

needs_data = pytest.mark.skipif("FORECASTER_DATA" not in os.environ, reason="FORECASTER_DATA names no data folder")


@needs_data
@pytest.mark.parametrize("name", FLOORS)
def test_the_seasonal_naive_scores_what_it_is_known_to_score(name: str) -> None:
    found = naive_scores(load(PROTOCOLS[name], os.environ["FORECASTER_DATA"]))

    for metric, value in FLOORS[name].items():
        digits = len(str(value).partition(".")[2])
        assert found[metric] == pytest.approx(value, abs=0.51 * 10**-digits), metric


@needs_data
def test_the_daily_naive_of_the_load_scores_what_it_is_known_to_score() -> None:
    found = naive_scores(load(replace(PROTOCOLS["europe-load"], period=24), os.environ["FORECASTER_DATA"]))

    assert found["mape"] == pytest.approx(5.545, abs=5e-4)


@needs_data
def test_a_naive_that_repeats_gaps_too_scores_what_it_is_known_to_score_on_nn5() -> None:
    task = load(PROTOCOLS["nn5-daily"], os.environ["FORECASTER_DATA"])
    plain = np.stack([np.resize(history[-7:], 56) for history in task.histories])
    scores = Scores(task)
    scores.add(task.truth([56]), plain[None, ..., None])

    # The published sum has 1.024; one that looks further back where the last week has gaps is a little better.
    assert scores.metrics()["mase"] == pytest.approx(1.024, abs=5e-4)
    assert naive_scores(task)["mase"] == pytest.approx(1.018, abs=5e-4)


# -- origins and scores ------------------------------------------------------------------------------------------------


def test_origins_end_with_the_last_that_has_a_whole_horizon() -> None:
    assert list(TINY.origins) == [20, 17, 14, 11, 8]
    assert list(PROTOCOLS["m4-hourly"].origins) == [48]
    assert [len(PROTOCOLS[name].origins) for name in ("etth1-96", "etth1-720", "europe-load")] == [2785, 2161, 365]


def test_scores_are_those_of_a_backtest(tiny: Task) -> None:
    """Two ways to the same numbers, but for MASE, whose denominator a backtest takes anew at every cutoff."""
    forecaster = Forecaster.create(tiny_config(), seed=3)
    one_origin = task_of(replace(TINY, test=HORIZON), long_frame())
    expected = backtest(forecaster, one_origin.panel, horizon=HORIZON, n_windows=1, step_size=1).metrics
    found = evaluate(forecaster, one_origin)

    shared = {"smape", "mase", "owa", "wql", "coverage_80"}
    assert {name: found[name] for name in shared} == pytest.approx({name: expected[name] for name in shared})

    several = replace(TINY, test=20, step=7)  # origins 20, 13 and 6 steps before the end
    expected = backtest(forecaster, tiny.panel, horizon=HORIZON, n_windows=3, step_size=7).metrics
    found = evaluate(forecaster, Task(several, tiny.panel))
    shared = {"smape", "wql", "coverage_80"}
    assert {name: found[name] for name in shared} == pytest.approx({name: expected[name] for name in shared})


def test_every_origin_is_forecast_as_if_it_were_the_only_one(tiny: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.benchmarks.evaluation.LARGEST_BATCH", 2 * 3 * HORIZON * len(LEVELS))
    forecaster = Forecaster.create(tiny_config(), seed=1)
    batches = list(forecast_batches(forecaster, tiny, warm_state(forecaster, tiny)))

    assert [list(lefts) for lefts, _ in batches] == [[20, 17], [14, 11], [8]]
    for lefts, quantiles in batches:
        for left, found in zip(lefts, quantiles, strict=True):
            past = tiny.panel.drop_last(left)
            alone = forecaster.forecast(forecaster.warm_up(past.values, past.first_steps.tolist()), HORIZON, LEVELS)
            np.testing.assert_allclose(found, alone, rtol=1e-5)


def test_errors_in_percent_and_squares_are_what_they_say(tiny: Task) -> None:
    y, quantiles = tiny.truth([20]), np.empty((1, 3, HORIZON, 9))
    y[0, 0, 0] = np.nan
    quantiles[:] = np.linspace(10, 34, 9)  # median and mean 22
    quantiles[..., 8] += 9  # mean 23
    scores = Scores(tiny)
    scores.add(y, quantiles)
    found = scores.metrics()

    by_series = [np.nanmean(np.abs(y[0, n] - 22) / y[0, n]) for n in range(3)]
    assert found["mape"] == pytest.approx(100 * np.mean(by_series))
    assert found["mse_mean"] == pytest.approx(np.nanmean((y - 23) ** 2))
    assert found["mse"] == pytest.approx(np.nanmean((y - 22) ** 2))
    assert found["mae"] == pytest.approx(np.nanmean(np.abs(y - 22)))


def test_a_forecast_that_is_missing_is_not_a_perfect_one(tiny: Task) -> None:
    """Sums over everything have no value then; where the truth is missing, too, nothing is missed."""
    truth, found = tiny.truth([20]), []
    for known in (1.0, np.nan):
        y, quantiles = truth.copy(), np.repeat(truth[..., None] + 1, 9, -1)
        y[0, 0, 0] *= known
        quantiles[0, 0, 0] = np.nan
        scores = Scores(tiny)
        scores.add(y, quantiles)
        found.append(scores.metrics())

    sums = ("mse", "mse_mean", "mae", "wql")
    assert np.isnan([found[0][name] for name in sums]).all()
    assert [found[1][name] for name in sums[:3]] == pytest.approx([1, 1, 1])


def test_a_point_forecast_has_no_interval(tiny: Task) -> None:
    scores = Scores(tiny)
    scores.add(tiny.truth([20]), tiny.truth([20])[..., None])

    assert {"wql", "coverage_80"} & set(scores.metrics()) == set()
    assert scores.metrics()["mae"] == 0


def test_series_are_scaled_by_their_first_rows_and_cut() -> None:
    task = task_of(replace(TINY, rows=90, scaled_by=40), long_frame())
    first = task.panel.series(1)[:40]

    assert set(task.panel.lengths.tolist()) == {90}
    assert (first.mean(), first.std()) == pytest.approx((0, 1))


def test_nothing_after_the_first_origin_may_be_learnt_from(tiny: Task) -> None:
    assert (tiny.panel.lengths - tiny.learnable.lengths).tolist() == [20, 20, 20]
    assert [len(history) for history in tiny.histories] == tiny.learnable.lengths.tolist()


def test_the_naive_sees_only_the_past(tiny: Task) -> None:
    y = tiny.panel.series(2)
    by_hand = [
        np.mean(np.abs(y[len(y) - left :][:HORIZON] - seasonal_naive(y[: len(y) - left], HORIZON, SEASON)))
        for left in TINY.origins
    ]
    only = Task(TINY, replace(tiny.panel, unique_ids=["s2"], first_steps=np.array([0]), values=[y]))

    assert naive_scores(only)["mae"] == pytest.approx(np.mean(by_hand))


# -- the command -------------------------------------------------------------------------------------------------------


def small_exchange(folder: Path) -> None:
    """A file of the right form for the smallest protocol."""
    generator = np.random.default_rng(0)
    frames = [
        pd.DataFrame({"unique_id": f"x{n}", "ds": np.arange(160), "y": 10 + np.cumsum(generator.normal(0, 0.1, 160))})
        for n in range(2)
    ]
    pd.concat(frames).to_parquet(folder / "exchange_rate.parquet", index=False)


def test_a_row_and_a_run_for_every_seed(tmp_path: Path, tracking_uri: str) -> None:
    small_exchange(tmp_path)
    request = AccuracyRequest(
        str(tmp_path), choose(["exchange-rate"]), seeds=(1, 2), minutes=1, overrides=QUICK, tracking_uri=tracking_uri
    )
    rows = list(run_accuracy(request))

    assert [(row["set"], row["seed"]) for row in rows] == [("exchange-rate", 1), ("exchange-rate", 2)]
    client = MlflowClient(tracking_uri)
    for row in rows:
        run = client.get_run(row["run_id"])
        assert run.data.metrics["test/mase"] == row["mase"]
        assert run.info.run_name == f"exchange-rate, default, seed {row['seed']}"
        assert run.data.params["training.seed"] == run.data.tags["benchmark.seed"] == str(row["seed"])
        assert row["parameters"] > 0
        assert row["state_bytes"] > 0
        assert row["update_us"] > 0

    columns, (line,) = accuracy_table(rows)
    told = dict(zip(columns, line, strict=True))
    assert (told["set"], told["seeds"], told["metric"]) == ("exchange-rate", "1, 2", "MASE")
    assert (told["must"], told["goal"]) == ("1.74", "1.64")
    assert "to" in told["result"]


def test_the_same_seed_gives_the_same_figures(tmp_path: Path, tracking_uri: str) -> None:
    small_exchange(tmp_path)
    request = AccuracyRequest(
        str(tmp_path), choose(["exchange-rate"]), minutes=1, overrides=QUICK, tracking_uri=tracking_uri
    )
    (first,), (second,) = list(run_accuracy(request)), list(run_accuracy(request))

    assert {k: first[k] for k in ("mase", "wql", "mse")} == {k: second[k] for k in ("mase", "wql", "mse")}


def test_the_command_writes_its_table(
    tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_exchange(tmp_path)
    monkeypatch.chdir(tmp_path)
    settings = [f"--set={key}={value}" for key, value in QUICK.items()]
    arguments = ["bench", "accuracy", "--data", ".", "--sets", "exchange-rate", "--out", "table.md", "--json"]

    assert main([*arguments, *settings, "--tracking-uri", tracking_uri]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"][0]["set"] == "exchange-rate"
    assert "| exchange-rate | 0 | MASE |" in (tmp_path / "table.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "mentions"),
    [
        ({"protocols": choose([])}, "NN5-daily.parquet"),
        ({"folder": "nowhere"}, "nowhere"),
        ({"minutes": 0.0}, "--minutes"),
        ({"overrides": {"network.size": "3"}}, "network.size"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is_trained(
    tmp_path: Path, changes: dict[str, object], mentions: str
) -> None:
    small_exchange(tmp_path)
    request = replace(AccuracyRequest(str(tmp_path), choose(["exchange-rate"])), **changes)  # type: ignore[arg-type]

    with pytest.raises(InputError, match=mentions):
        list(run_accuracy(request))


def test_an_unknown_set_is_named() -> None:
    with pytest.raises(InputError, match="m5"):
        choose(["m5"])


# -- beside other libraries --------------------------------------------------------------------------------------------


def test_what_a_peer_forecasts_is_scored_as_if_it_were_ours(tmp_path: Path) -> None:
    """There and back through the other process, with the one peer that needs no library."""
    small_exchange(tmp_path)
    request = PeersRequest(str(tmp_path), choose(["exchange-rate"]), ["plain-naive"], sys.executable)
    (row,) = run_peers(request)
    expected = naive_scores(load(PROTOCOLS["exchange-rate"], tmp_path))

    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert min(row["fit_seconds"], row["predict_seconds"], row["update_seconds"]) > 0
    assert best_wql([row, {**row, "peer": "worse", "wql": 1.0}]) == {"exchange-rate": ("plain-naive", row["wql"])}


def test_a_library_that_fails_is_a_row_that_says_so(tmp_path: Path) -> None:
    small_exchange(tmp_path)
    request = PeersRequest(str(tmp_path), choose(["exchange-rate"]), ["gluonts-deepar"], sys.executable)
    (row,) = run_peers(request)

    assert "gluonts" in row["problem"]
    _, (line,) = peers_table([row])
    assert "gluonts" in line[3]


def test_gaps_are_filled_without_a_look_at_the_test_part() -> None:
    y = np.array([np.nan, 1.0, np.nan, 3.0, np.nan, np.nan, 9.0])

    assert without_gaps(y, 5).tolist() == [1, 2, 3, 3, 3, 9]


def test_origins_are_thinned_evenly() -> None:
    assert list(thinned(TINY, None).origins) == list(TINY.origins)
    assert list(thinned(TINY, 3).origins) == [20, 14, 8]


def test_lines_of_earlier_comparisons_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_exchange(tmp_path)
    monkeypatch.chdir(tmp_path)
    arguments = ["bench", "peers", "--data", ".", "--sets", "exchange-rate", "--peers", "plain-naive"]
    interpreter = os.path.relpath(sys.executable)  # as the default is: the library's process starts elsewhere
    for _ in range(2):
        assert main([*arguments, "--python", interpreter, "--lines", "peers.jsonl", "--out", "peers.md"]) == 0

    assert len(read_lines("peers.jsonl")) == 2
    assert "plain-naive" in (tmp_path / "peers.md").read_text(encoding="utf-8")


# -- milestones, variants, streams -------------------------------------------------------------------------------------


def test_milestones_are_the_first_times_that_a_score_was_reached(tiny: Task) -> None:
    good, bad = Forecaster.create(tiny_config(), seed=1), Forecaster.create(tiny_config(), seed=1)
    bad.forecast = lambda *_: np.zeros((len(tiny.panel) * len(TINY.origins), HORIZON, 9))  # type: ignore[method-assign]
    score = evaluate(good, tiny)["wql"]
    snapshots = [(1.0, bad), (2.0, good), (3.0, good)]

    assert milestones(tiny, snapshots, score, None) == {"seconds_to_naive_wql": 2.0}
    found = milestones(tiny, snapshots, score, ("other", score / 2))
    assert found == {
        "seconds_to_naive_wql": 2.0,
        "seconds_to_rival_wql": None,
        "rival": "other",
        "rival_wql": score / 2,
    }
    row = {"set": "exchange-rate", "seed": 0, "seasonal_naive_wql": score, **found, "seconds_to_rival_wql": 4.0}
    _, (line,) = milestones_table([row], [{"set": "exchange-rate", "peer": "other", "fit_seconds": 20.0}])
    assert (line[2], line[3], line[-1]) == ("2 s", "other", "5")


def test_every_variant_is_a_configuration_other_than_the_default() -> None:
    base = PROTOCOLS["m4-hourly"].config
    configs = [resolve(base.with_overrides(variant.overrides), "log") for variant in VARIANTS.values()]

    assert configs[0] == resolve(base, "log")
    assert len(set(map(repr, configs))) == len(configs) - 1  # log is what the default becomes on positive data
    assert [variant.name for variant in choose_variants(["gru"])] == ["default", "gru"]
    with pytest.raises(InputError, match="xlstm"):
        choose_variants(["xlstm"])


def resolve(config: Config, transform: str) -> Config:
    return config.with_overrides({"transform": transform}) if config.transform == "auto" else config


def test_variants_stand_beside_the_default(tmp_path: Path, tracking_uri: str) -> None:
    small_exchange(tmp_path)
    request = AccuracyRequest(
        str(tmp_path), choose(["exchange-rate"]), minutes=1, overrides=QUICK, tracking_uri=tracking_uri
    )
    rows = list(run_ablation(request, choose_variants(["raw", "forked-short"])))

    assert [row["label"] for row in rows] == ["default", "raw", "forked-short"]
    columns, lines = ablation_table(rows)
    place = columns.index("change of WQL")
    assert lines[0][place] == "+0.0 %"
    assert lines[1][place] not in ("+0.0 %", "-")


def test_old_and_new_states_are_compared_at_the_same_origins() -> None:
    """A carried state is the one that the whole past makes, at whatever age; a cold one has seen what it says."""
    hours = long_frame(steps=400)
    task = task_of(replace(TINY, name="europe-load", test=40, step=1), hours)
    forecaster = Forecaster.create(tiny_config(), seed=1)
    part = young(task)

    assert len(part.histories[0]) == 400 // 25
    ages = list(age_rows(forecaster, part))
    assert [row["group"] for row in ages[::3]] == [f"age {a} to {b} x" for a, b in pairwise((1, 2, 5, 10, 15, 20, 25))]
    cold = list(cold_rows(forecaster, task))
    by_group = {(row["group"], row["method"]): row["wql"] for row in cold}
    whole = Task(replace(task.protocol, step=34), task.panel)  # the first and the last origin of the sample
    assert sample(task.protocol.origins, 2) == list(whole.protocol.origins)
    assert by_group["all steps seen", "carried"] != by_group["1 steps seen", "carried"]
    columns, lines = streams_table([*ages, *cold])
    assert len(lines) == 6 + 5
    assert all(len(line) == len(columns) for line in lines)


def test_a_carried_state_forecasts_what_a_fresh_one_of_the_whole_past_does() -> None:
    task = task_of(replace(TINY, test=40, step=1), long_frame())
    forecaster = Forecaster.create(tiny_config(), seed=1)
    follow = follower(forecaster, task)

    for left in (40, 33, 12):
        np.testing.assert_allclose(follow(left), short_memory(forecaster, task, left, 10_000), rtol=1e-5)


# -- covariates --------------------------------------------------------------------------------------------------------


def test_known_columns_reach_every_forecast_and_only_where_they_are_known(tmp_path: Path) -> None:
    """Batched origins with their own futures: each as if it were the only one; another future, another forecast."""
    frame = long_frame()
    frame["plan"] = np.random.default_rng(0).normal(size=len(frame))
    frame.to_parquet(tmp_path / "tiny.parquet", index=False)
    covariates = CovariatesConfig(known=("plan",), calendar=())
    protocol = replace(TINY, covariates=covariates)
    task = load(protocol, tmp_path)
    forecaster = Forecaster.create(tiny_config(covariates={"known": ["plan"], "calendar": []}), seed=1)
    batches = list(forecast_batches(forecaster, task, warm_state(forecaster, task)))

    for lefts, quantiles in batches:
        for left, found in zip(lefts, quantiles, strict=True):
            past = task.panel.drop_last(left)
            future = torch.from_numpy(past.future(HORIZON))
            alone = forecaster.forecast(forecaster.warm_up_panel(past), HORIZON, LEVELS, future)
            np.testing.assert_allclose(found, alone, rtol=1e-4)
    assert costs(forecaster, task, rounds=1)["forecast_us_single"] > 0


def test_targets_may_be_shares_of_another_result() -> None:
    plain, known = {"set": "bike-sharing", "mase": 1.0}, {"set": "bike-sharing-known", "mase": 0.8}

    assert verdict("bike-sharing-known", [known], [plain]) == "must"
    assert verdict("bike-sharing-known", [known], [{**plain, "mase": 0.9}]) == "no"
    assert verdict("bike-sharing-known", [known]) == "-"


def test_ages_of_streams_with_covariates_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    long_frame().to_parquet(tmp_path / "tiny.parquet")
    covered = replace(TINY, name="covered", covariates=CovariatesConfig(known=("price",)))

    with pytest.raises(InputError, match="sets without covariates, not covered"):
        next(run_streams(AccuracyRequest(str(tmp_path), [covered])))
