"""What Dagster loads: the assets, the job over them, the schedule, and where values lie in between.

Built when Dagster asks for it, from the settings in the environment; importing this module reads nothing.
"""

import dagster as dg

from pipelines.orchestration.assets import ASSETS
from pipelines.orchestration.schedule import JOB, training_schedule
from pipelines.orchestration.settings import ScheduleSettings
from pipelines.orchestration.stores import json_store

__all__ = ["build_definitions", "definitions"]

# Dagster's pages show every event; the console tells what a person waits for.
CONFIG = {"loggers": {"console": {"config": {"log_level": "INFO"}}}}


def build_definitions(settings: ScheduleSettings) -> dg.Definitions:
    """Put the pipeline together for given settings."""
    # One process per run: a step's own process would spend more time on importing PyTorch than on its work.
    job = dg.define_asset_job(JOB, selection=list(ASSETS), executor_def=dg.in_process_executor, config=CONFIG)
    return dg.Definitions(
        assets=list(ASSETS),
        jobs=[job],
        schedules=[training_schedule(settings)],
        resources={"settings": settings, "json_store": json_store},
    )


@dg.definitions
def definitions() -> dg.Definitions:
    """Return the pipeline for the settings in the environment."""
    return build_definitions(ScheduleSettings())  # type: ignore[call-arg] # the values come from the environment
