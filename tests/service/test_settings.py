"""Settings that nobody knows: a slip of the pen is said at the start."""

from __future__ import annotations

import os
import subprocess
import sys

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
    assert refusal.startswith("error: ")


def test_every_setting_is_known_in_any_case_and_what_resembles_none_is_named_alone():
    settings = [f"FORECASTER_{name.upper()}" for name in Settings.model_fields]

    assert misnamed([*settings, *map(str.lower, settings), "PATH", "MLFLOW_TRACKING_URI"]) == []
    assert misnamed(["FORECASTER_PORT_8000_TCP"]) == ["FORECASTER_PORT_8000_TCP is no setting and changes nothing"]
