"""Alarms are judged by the published rules, and a model's surprise is found where something happened."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecaster import InputError
from pipelines.benchmarks.anomalies import (
    LABELS,
    VALUES,
    AnomalyRequest,
    anomalies_table,
    changes,
    read_recordings,
    run_anomalies,
)
from pipelines.benchmarks.detection import Recording, detect, loudest
from tests.pipelines.kit import QUICK, Ran

BEGIN = pd.Timestamp("2014-01-01")


def recording(rows: int, *windows: tuple[int, int]) -> Recording:
    return Recording("r", BEGIN, np.zeros(rows), windows)


def plain_score(recordings: list[Recording], alarms: list[np.ndarray]) -> float:
    """The benchmark's rules for alarms that are given, row by row."""

    def sigmoid(x: float) -> float:
        return -1.0 if x > 3 else 2 / (1 + math.exp(5 * x)) - 1

    total, windows = 0.0, 0
    for one, raised in zip(recordings, alarms, strict=True):
        probation = min(int(0.15 * len(one.y)), 750)
        best = dict.fromkeys(one.windows, -1.0)
        windows += len(best)
        for row in np.flatnonzero(raised):
            if row < probation:
                continue
            inside = [(first, last) for first, last in one.windows if first <= row <= last]
            past = [(first, last) for first, last in one.windows if last < row]
            if inside:
                first, last = inside[0]
                worth = sigmoid(-(last - row + 1) / (last - first + 1)) / sigmoid(-1)
                best[inside[0]] = max(best[inside[0]], worth)
            elif past:
                first, last = past[-1]
                total += 0.11 * sigmoid((row - last) / (last - first))
            else:
                total -= 0.11
        total += sum(best.values())
    return 100 * (total + windows) / (2 * windows)


@given(
    seed=st.integers(0, 10_000),
    windows=st.lists(st.tuples(st.integers(0, 180), st.integers(2, 15)), min_size=1, max_size=4),
    kinds=st.integers(2, 40),
)
def test_the_best_threshold_has_the_score_of_its_alarms_and_no_other_a_higher_one(seed, windows, kinds):
    generator = np.random.default_rng(seed)
    apart = [(first, first + length) for first, length in sorted(windows)]
    apart = [pair for i, pair in enumerate(apart) if all(pair[0] > other[1] for other in apart[:i])]
    recordings = [recording(200, *apart), recording(60), recording(100, (40, 44))]
    scores = [generator.integers(0, kinds, len(one.y)).astype(float) for one in recordings]
    scores[1][3:9] = np.nan

    found = detect(recordings, scores)

    by_threshold = {t: plain_score(recordings, [s >= t for s in scores]) for t in [*range(kinds), math.inf]}
    assert found.score == pytest.approx(max(by_threshold.values()))
    assert found.score == pytest.approx(by_threshold[found.threshold])
    alarms = [(s >= found.threshold) & (np.arange(len(s)) >= int(0.15 * len(s))) for s in scores]
    assert found.false_alarms == sum(int((a & (r.within < 0)).sum()) for a, r in zip(alarms, recordings, strict=True))


def test_an_alarm_at_the_first_row_of_each_window_is_perfect_and_none_is_nothing():
    recordings = [recording(200, (50, 60), (90, 99)), recording(100, (40, 44))]
    perfect = [np.where(np.isin(np.arange(200), [50, 90]), 1.0, np.nan), np.where(np.arange(100) == 40, 1.0, np.nan)]

    assert detect(recordings, perfect).score == pytest.approx(100)
    assert detect(recordings, perfect).found == detect(recordings, perfect).windows == 3
    assert detect(recordings, [np.full(200, np.nan), np.full(100, np.nan)]).score == 0


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0, math.nan]), min_size=1, max_size=40), st.integers(1, 9))
def test_the_loudest_exceed_all_before_them(scores, rows):
    heard = loudest(np.array(scores), rows)

    for row, score in enumerate(scores):
        before = [other for other in scores[max(0, row - rows) : row] if not math.isnan(other)]
        assert (heard[row] == score) == (not math.isnan(score) and all(score > other for other in before))


def test_the_change_of_a_value_is_held_against_the_changes_before_it():
    found = changes(Recording("r", BEGIN, np.array([1.0, 2.0, 4.0, 4.0, 10.0]), ()))

    np.testing.assert_allclose(found, [np.nan, np.nan, 2.0, 0.0, 6.0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings of a wave every half hour, and one of every hour; in the first and the last something happens."""
    home, frames, windows = tmp_path_factory.mktemp("recordings"), [], {}
    for number, (freq, at) in enumerate([("30min", [900]), ("30min", []), ("h", [700, 1000])]):
        generator, steps = np.random.default_rng(number), np.arange(1200)
        y = 20 + 5 * np.sin(2 * np.pi * steps / (48 if freq == "30min" else 24)) + generator.normal(0, 0.5, 1200)
        ds = pd.date_range("2014-03-01 00:10", periods=1200, freq=freq)
        for row in at:
            y[row : row + 3] += 40
        windows[f"r{number}"] = [[str(ds[row - 5]), str(ds[row + 30])] for row in at]
        frames.append(pd.DataFrame({"unique_id": f"r{number}", "ds": ds, "y": y, "row": steps}))
    pd.concat(frames).sample(frac=1, random_state=0).to_parquet(home / VALUES)
    (home / LABELS).write_text(json.dumps({"windows": windows}), encoding="utf-8")
    return home


def test_what_happened_is_found_by_surprise(folder: Path) -> None:
    request = AnomalyRequest(str(folder), [0], 1.0, {**QUICK, "training.updates": 30})

    rows = list(run_anomalies(request))

    assert [row["method"] for row in rows] == ["change", "surprise", "surprise, loudest of a season"]
    assert all(row["found"] == row["windows"] == 3 for row in rows[1:])
    assert rows[2]["score"] > 80
    assert 0 <= rows[1]["beyond_3"] <= rows[1]["beyond_2"] <= rows[1]["beyond_1"] < 0.5
    columns, lines = anomalies_table(rows)
    assert all(len(line) == len(columns) for line in lines)


def test_the_command_says_what_it_found(folder: Path, tmp_path: Path, run: Callable[..., Ran]) -> None:
    options = [word for key, value in QUICK.items() for word in ("--set", f"{key}={value}")]
    out = tmp_path / "anomalies.md"

    done = run("bench", "anomalies", "--data", str(folder), "--out", str(out), *options)

    assert done.status == 0, done.err
    assert "loudest of a season" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize(("missing", "says"), [(LABELS, "holds no"), ("r1", "says nothing of r1")])
def test_missing_labels_are_named(folder: Path, tmp_path: Path, missing: str, says: str) -> None:
    (tmp_path / VALUES).write_bytes((folder / VALUES).read_bytes())
    if missing != LABELS:
        windows = json.loads((folder / LABELS).read_text(encoding="utf-8"))["windows"]
        del windows[missing]
        (tmp_path / LABELS).write_text(json.dumps({"windows": windows}), encoding="utf-8")

    with pytest.raises(InputError, match=says):
        read_recordings(str(tmp_path))


@pytest.mark.skipif("FORECASTER_DATA" not in os.environ, reason="FORECASTER_DATA names no data folder")
def test_the_real_recordings_are_those_of_the_description_and_chance_scores_as_little_as_it_does() -> None:
    by_freq = read_recordings(os.environ["FORECASTER_DATA"])
    recordings = [one for found in by_freq.values() for one in found]
    generator = np.random.default_rng(0)

    chance = [detect(recordings, [generator.random(len(one.y)) for one in recordings]).score for _ in range(3)]

    assert {freq: len(found) for freq, found in by_freq.items()} == {"5min": 22, "30min": 1, "h": 1}
    assert sum(len(one.windows) for one in recordings) == 49
    assert 5 < np.mean(chance) < 15  # published: about 11
