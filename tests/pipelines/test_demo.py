"""The demo's score against sums written out by hand, and its data."""

from __future__ import annotations

import numpy as np
import pytest

from forecaster import InputError, Panel
from pipelines.demo.cities import REPLAY_STEPS, load_cities
from pipelines.demo.scoreboard import SEASON, Scoreboard
from pipelines.demo.stage import prepare_folder
from tests.pipelines.kit import run_cli


def test_every_forecast_that_covers_an_observation_counts_once() -> None:
    generator = np.random.default_rng(0)
    history, truth = generator.normal(size=60).tolist(), generator.normal(size=10).tolist()
    horizon = 3
    forecasts = generator.normal(size=(11, horizon))
    board = Scoreboard({"a": history})

    board.add_forecast("a", {"0.1": forecasts[0] - 1, "0.5": forecasts[0], "0.9": forecasts[0] + 1})
    for number, y in enumerate(truth, start=1):
        board.add_observation("a", y, 0.001)
        board.add_forecast("a", {"0.1": forecasts[number] - 1, "0.5": forecasts[number], "0.9": forecasts[number] + 1})

    values = [*history, *truth]
    errors, naive, inside = [], [], []
    for cutoff in range(10):
        for step in range(1, horizon + 1):
            place = cutoff + step - 1
            if place < 10:
                errors.append(abs(truth[place] - forecasts[cutoff, step - 1]))
                naive.append(abs(truth[place] - values[60 + place - SEASON]))
                inside.append(errors[-1] <= 1)
    score = board.total
    assert (score.observations, score.pairs) == (10, len(errors))
    assert score.mae == pytest.approx(np.mean(errors))
    assert score.naive_mae == pytest.approx(np.mean(naive))
    assert score.coverage == pytest.approx(np.mean(inside))
    assert score.latency_ms(0.5) == pytest.approx(1.0)


def test_the_naive_forecast_of_a_long_horizon_uses_only_what_was_known_at_its_cutoff() -> None:
    board = Scoreboard({"a": list(np.arange(SEASON, dtype=float))})
    flat = [0.0] * (2 * SEASON)
    board.add_forecast("a", {"0.1": flat, "0.5": flat, "0.9": flat})

    for y in range(2 * SEASON):
        board.add_observation("a", float(y % SEASON), 0.0)

    assert board.total.naive_mae == 0.0


def test_the_cities_are_hourly_and_split_four_weeks_before_the_end() -> None:
    cities = load_cities()

    panel = Panel.from_frame(cities.history, "h")
    assert panel.unique_ids == cities.names == ["seattle", "san_francisco"]
    assert len(cities.replay) == 2 * REPLAY_STEPS
    assert cities.replay["ds"].min() > cities.history["ds"].max()
    assert cities.replay["ds"].is_monotonic_increasing


def test_the_demo_empties_only_folders_of_its_own(tmp_path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    prepare_folder(own)
    (own / "old.txt").write_text("old")
    other.mkdir()
    (other / "precious.txt").write_text("precious")

    prepare_folder(own)
    with pytest.raises(InputError, match="no demo made it"):
        prepare_folder(other)

    assert not (own / "old.txt").exists()
    assert (other / "precious.txt").exists()


@pytest.mark.slow
def test_the_whole_demo_holds_what_it_claims(tmp_path) -> None:
    """Minutes: real training, a real server, really killed. The demo checks its own claims; this checks that it did."""
    done = run_cli("demo", "--json", cwd=tmp_path, timeout=900)

    assert done.status == 0, done.err
    told = done.json
    assert told["crash"]["lost"] == 0
    assert told["crash"]["acknowledged"] > 0
    assert len(told["batch_difference"]) == 2
    assert max(told["batch_difference"]) <= 1e-4
    assert told["swap"]["failed_requests"] == 0
    assert told["live"]["observations"] == 2 * REPLAY_STEPS
    assert told["live"]["mae"] < told["live"]["seasonal_naive_mae"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo-run"]
