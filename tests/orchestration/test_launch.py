"""`forecaster schedule` starts and stops as one, and trains by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from forecaster import ForecasterError, InputError
from pipelines.connection import connect
from pipelines.console import Reporter
from pipelines.orchestration.launch import exclusive, launch, prepare_home, spawn
from pipelines.orchestration.schedule import SCHEDULE
from pipelines.registry import CHAMPION, version_of_alias
from tests.house.tree import ROOT
from tests.orchestration.waves import OVERRIDES, settings_in
from tests.stack.compose import free_ports

QUIET = Reporter(quiet=True)


def test_two_schedules_do_not_share_a_folder(tmp_path):
    with exclusive(prepare_home(tmp_path)), pytest.raises(InputError, match="another schedule already runs"):
        launch(settings_in(tmp_path), home=tmp_path, reporter=QUIET)


@pytest.mark.parametrize("change", [{"cron": "every day"}, {"cron": "61 * * * *"}, {"time_zone": "Mars/Olympus"}])
def test_an_impossible_schedule_is_refused_before_anything_starts(tmp_path, change):
    with pytest.raises(InputError, match="is not a schedule"):
        launch(settings_in(tmp_path, **change), home=tmp_path / "home", reporter=QUIET)

    assert not (tmp_path / "home").exists()


def test_a_folder_is_held_as_long_as_any_process_of_a_schedule_lives(tmp_path):
    """Of one that was killed the daemon lives on, and starts runs."""
    home = prepare_home(tmp_path)
    with exclusive(home) as lock:
        left = spawn(("timeit", "-n", "1", "-r", "1", "import time; time.sleep(600)"), os.environ, lock)
    try:
        with pytest.raises(InputError, match="another schedule already runs"), exclusive(home):
            pass
    finally:
        left.kill()
        left.wait()
    with exclusive(home):
        pass


def test_a_folders_own_settings_are_left_alone(tmp_path):
    written = prepare_home(tmp_path / "home") / "dagster.yaml"
    written.write_text("telemetry: {enabled: false}\n")
    prepare_home(tmp_path / "home")

    assert written.read_text() == "telemetry: {enabled: false}\n"


def test_a_file_in_the_place_of_the_folder_is_bad_input(tmp_path):
    (tmp_path / "home").write_text("in the way")

    with pytest.raises(InputError, match=r"--home: .*home cannot be the scheduler's folder: File exists"):
        prepare_home(tmp_path / "home")


@pytest.mark.slow
def test_definitions_that_do_not_load_are_an_error_and_leave_no_process(tmp_path):
    settings = settings_in(tmp_path).model_copy(update={"horizon": -1})

    with pytest.raises(ForecasterError, match="could not load"):
        launch(settings, home=tmp_path / "home", reporter=QUIET)
    assert processes_of(tmp_path / "home") == []


@pytest.mark.slow
def test_a_one_minute_schedule_trains_and_promotes_by_itself_twice(tmp_path):
    """And stops on SIGTERM, with status 0 and no process left behind."""
    settings = settings_in(tmp_path)
    home = tmp_path / "home"
    # MLflow sets its store up in many steps, which two processes must not take at once: this one looks at it too.
    connect(settings.tracking_uri, create=True)
    # The second model is as good as the first; the gate shall let it in all the same.
    options = ["--freq", "h", "--horizon", "6", "--season", "24", "--name", "waves", "--margin", "-1"]
    for key, value in OVERRIDES.items():
        options += ["--set", f"{key}={value}"]
    options += ["--cron", "* * * * *", "--home", str(home), "--port", str(free_ports(1)[0])]
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from pipelines.cli import main; raise SystemExit(main())",
            "schedule",
            settings.data,
            *options,
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "MLFLOW_TRACKING_URI": settings.tracking_uri,
            "OMP_NUM_THREADS": "1",
        },
    )
    try:
        wait_until(lambda: champion(settings.tracking_uri) >= 2 or process.poll() is not None, minutes=8)
        assert process.poll() is None, "the schedule ended by itself"
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)

    assert (status, processes_of(home)) == (0, [])
    with dg.DagsterInstance.from_config(str(home)) as instance:
        done = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS]))
    assert len(done) >= 2
    assert {run.tags.get("dagster/schedule_name") for run in done} == {SCHEDULE}


def champion(tracking_uri: str) -> int:
    if not Path(tracking_uri.removeprefix("sqlite:///")).exists():
        return 0
    return int(version_of_alias(connect(tracking_uri), "waves", CHAMPION) or 0)


def processes_of(home: Path) -> list[int]:
    """Processes whose environment names the folder, where the system can tell."""
    wanted = f"DAGSTER_HOME={home}\0".encode()
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in environment.read_bytes():
                found.append(int(environment.parent.name))
        except OSError:
            continue
    return found


def wait_until(holds: Callable[[], bool], *, minutes: float) -> None:
    deadline = time.monotonic() + 60 * minutes
    while not holds():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(1)
