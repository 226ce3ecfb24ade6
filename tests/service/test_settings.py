"""Settings that nobody knows, that say nothing, or that no clock can keep."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
from pydantic import ValidationError

from service.settings import Settings, misnamed
from tests.service.kit import ROOT


def test_a_misspelt_variable_is_named_in_one_line_with_what_was_meant(tmp_path):
    """By a real start, which goes on; what other programs of the project read is not our concern."""
    given = {
        "FORECASTER_RETENTON": "90D",
        "FORECASTER_LOG_LEVEL": "warning",
        "FORECASTER_SCHEDULE_CRON": "0 3 * * *",
        "FORECASTER_DATA": "data",
        "FORECASTER_DATA_FOLDER": "data",
        "FORECASTER_DEBUG": "1",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FORECASTER_")}
    done = subprocess.run(
        [sys.executable, "-m", "service", "--model", str(tmp_path / "none"), "--store", f"sqlite:///{tmp_path}/log.db"],
        env={**kept, **given, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    about, refusal = done.stderr.splitlines()

    assert about.endswith("FORECASTER_RETENTON is no setting and changes nothing; is FORECASTER_RETENTION meant?")
    assert refusal.startswith("forecaster: ")


def test_every_setting_is_known_in_any_case_and_what_resembles_none_is_named_alone():
    settings = [f"FORECASTER_{name.upper()}" for name in Settings.model_fields]

    assert misnamed([*settings, *map(str.lower, settings), "PATH", "MLFLOW_TRACKING_URI"]) == []
    assert misnamed(["FORECASTER_PORT_8000_TCP"]) == ["FORECASTER_PORT_8000_TCP is no setting and changes nothing"]
    assert misnamed(["FORECASTER_PATH"]) == ["FORECASTER_PATH is no setting and changes nothing"]


def test_an_empty_variable_is_as_none(monkeypatch):
    """What compose files and units make of a variable that nobody has set."""
    usual = Settings()
    for name in Settings.model_fields:
        monkeypatch.setenv(f"FORECASTER_{name.upper()}", "")

    assert Settings() == usual
    assert Settings().names == [None]


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if name.endswith("_seconds")])
def test_no_pause_is_longer_than_threads_can_wait(name):
    longest = next(limit.le for limit in Settings.model_fields[name].metadata if hasattr(limit, "le"))

    assert longest <= threading.TIMEOUT_MAX
    assert getattr(Settings(**{name: longest}), name) == longest
    for never in (float("inf"), 1e300):
        with pytest.raises(ValidationError):
            Settings(**{name: never})
