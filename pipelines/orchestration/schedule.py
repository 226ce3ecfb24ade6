"""When to train: one cron schedule over the whole pipeline, on from the start, never two runs at a time.

Knows Dagster and the settings; what a run does is the assets' business.
"""

import dagster as dg

from pipelines.orchestration.settings import ScheduleSettings

__all__ = ["JOB", "SCHEDULE", "training_schedule"]

JOB = "training"
SCHEDULE = "training_schedule"

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def training_schedule(settings: ScheduleSettings) -> dg.ScheduleDefinition:
    """Build the schedule; it runs by default, so that a fresh deployment needs no click."""

    def evaluate(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        runs = context.instance.get_runs(dg.RunsFilter(job_name=JOB, statuses=UNFINISHED), limit=1)
        # A queue would only grow when a training takes longer than the pause between two.
        return dg.SkipReason(f"run {runs[0].run_id} is not finished yet") if runs else dg.RunRequest()

    return dg.ScheduleDefinition(
        name=SCHEDULE,
        job_name=JOB,
        cron_schedule=settings.cron,
        execution_timezone=settings.time_zone,
        execution_fn=evaluate,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Train, judge and perhaps promote model {settings.name!r}.",
    )
