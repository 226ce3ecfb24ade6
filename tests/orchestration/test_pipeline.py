"""The assets run the command line's own steps, in order, and hand each other what a later process can read."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import dagster as dg
import pytest

from pipelines.connection import connect
from pipelines.orchestration.assets import train_request
from pipelines.orchestration.code_server import fail_orphans
from pipelines.orchestration.definitions import build_definitions, definitions
from pipelines.orchestration.schedule import JOB, SCHEDULE
from pipelines.orchestration.settings import ScheduleSettings
from pipelines.registry import CHALLENGER, CHAMPION, version_of_alias
from tests.orchestration.waves import OVERRIDES, settings_in

ORDER = ["panel", "trained_model", "backtest", "registered_version", "promotion"]


class Finished(NamedTuple):
    settings: ScheduleSettings
    instance: dg.DagsterInstance
    result: dg.ExecuteInProcessResult


@pytest.fixture(scope="module", autouse=True)
def sigterm() -> Iterator[None]:
    """Dagster leaves SIGTERM as SIGINT was, so ignored where the tests run in the background of a shell."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def settings(tmp_path) -> ScheduleSettings:
    return settings_in(tmp_path)


@pytest.fixture
def instance(tmp_path) -> Iterator[dg.DagsterInstance]:
    with instance_in(tmp_path) as instance:
        yield instance


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Iterator[Finished]:
    """A run of the whole job, which takes seconds; tests that only look at it share it."""
    folder = tmp_path_factory.mktemp("finished")
    with instance_in(folder) as instance:
        settings = settings_in(folder)
        yield Finished(settings, instance, run_job(settings, instance))


def test_the_definitions_are_sound_and_the_schedule_is_on(settings):
    built = build_definitions(settings)

    dg.Definitions.validate_loadable(built)
    schedule = built.resolve_schedule_def(SCHEDULE)
    assert (schedule.cron_schedule, schedule.default_status) == (settings.cron, dg.DefaultScheduleStatus.RUNNING)
    job = built.resolve_job_def(JOB)
    assert [node.name for node in job.nodes_in_topological_order] == ORDER
    assert all(node.definition.retry_policy.max_retries == 2 for node in job.nodes)


def test_dagster_builds_them_from_the_environment(settings, monkeypatch):
    for name, value in settings.to_environment().items():
        monkeypatch.setenv(name, value)

    assert definitions().resolve_schedule_def(SCHEDULE).cron_schedule == settings.cron


def test_settings_survive_the_way_through_the_environment(settings, monkeypatch):
    for name, value in settings.to_environment().items():
        monkeypatch.setenv(name, value)

    assert ScheduleSettings() == settings
    unset = {name for name, field in ScheduleSettings.model_fields.items() if not field.is_required()}
    for name in unset:
        monkeypatch.setenv(f"FORECASTER_SCHEDULE_{name.upper()}", "")
    assert ScheduleSettings().model_fields_set.isdisjoint(unset), "an empty variable is as none"


def test_a_run_trains_measures_registers_and_decides(finished):
    result, client = finished.result, connect(finished.settings.tracking_uri)

    assert result.success
    assert version_of_alias(client, "waves", CHALLENGER) == "1"
    assert version_of_alias(client, "waves", CHAMPION) == ("1" if result.output_for_node("promotion") else None)
    assert result.output_for_node("backtest")["seasonal_naive_wql"] > 0
    run = client.get_run(result.output_for_node("trained_model"))
    assert run.info.run_name == "data to 2024-01-14T23:00:00", "of the data, not of the copy that the steps read"
    assert json.loads(run.inputs.dataset_inputs[0].dataset.source)["uri"] == finished.settings.data
    assert "series of `data.csv`" in client.get_model_version("waves", "1").description


def test_what_lies_between_the_assets_is_json(finished):
    stored = {path.name: path for path in Path(finished.instance.storage_directory()).rglob("*") if path.is_file()}

    assert {*(f"{name}.json" for name in ORDER), "panel.parquet"} <= set(stored)
    assert json.loads(stored["registered_version.json"].read_text()) == "1"


def test_a_step_can_be_repeated_alone(finished):
    """Registering the same run again in another execution neither trains again nor makes a second version."""
    job = build_definitions(finished.settings).resolve_job_def(JOB)
    again = job.execute_in_process(instance=finished.instance, asset_selection=[dg.AssetKey("registered_version")])

    assert again.output_for_node("registered_version") == "1"


def test_bad_input_fails_once_and_is_not_tried_again(settings, instance):
    """The same file would be just as wrong the next time."""
    Path(settings.data).write_text("unique_id,ds,y\na,2024-01-01,one\n")
    result = run_job(settings, instance)
    events = [event.event_type_value for event in result.all_events]

    assert not result.success
    assert events.count("STEP_FAILURE") == 1
    assert "STEP_UP_FOR_RETRY" not in events


def test_a_run_that_is_going_on_is_not_joined_by_another(settings, instance):
    schedule = build_definitions(settings).resolve_schedule_def(SCHEDULE)

    def tick() -> dg.RunRequest | dg.SkipReason:
        with dg.build_schedule_context(instance, scheduled_execution_time=datetime.now(UTC)) as context:
            return schedule.evaluate_tick(context)

    assert len(tick().run_requests) == 1
    instance.create_run_for_job(build_definitions(settings).resolve_job_def(JOB), status=dg.DagsterRunStatus.STARTED)
    assert tick().run_requests == []
    assert "not finished" in tick().skip_message


def test_a_run_whose_process_died_does_not_block_the_schedule(settings, instance):
    job = build_definitions(settings).resolve_job_def(JOB)
    run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)

    assert fail_orphans(instance) == [run.run_id]
    assert instance.get_run_by_id(run.run_id).status is dg.DagsterRunStatus.FAILURE
    assert fail_orphans(instance) == []


def test_the_request_says_the_same_as_the_settings(tmp_path):
    given = {"max_minutes": 2.5, "seed": 4, "windows": 3, "step": 2, "margin": 0.1, "config": "some.toml"}
    request = train_request(settings_in(tmp_path, **given))

    assert (request.data, request.freq, request.horizon) == (str(tmp_path / "data.csv"), "h", 6)
    assert (request.seasonality, request.name, request.overrides) == ((24,), "waves", OVERRIDES)
    assert (request.max_minutes, request.seed, request.n_windows, request.step_size) == (2.5, 4, 3, 2)
    assert (request.margin, request.config_file) == (0.1, "some.toml")


def instance_in(folder: Path) -> dg.DagsterInstance:
    home = folder / "home"
    home.mkdir()
    return dg.DagsterInstance.local_temp(str(home))


def run_job(settings: ScheduleSettings, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    job = build_definitions(settings).resolve_job_def(JOB)
    return job.execute_in_process(instance=instance, raise_on_error=False)
