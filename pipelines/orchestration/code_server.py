"""The process that holds the pipeline's code: ``python -m pipelines.orchestration.code_server``.

Runs are children of this process, so a run that is still marked as going on when it starts has died with its
predecessor. It is marked as failed first; otherwise the schedule would wait for it for ever. Then Dagster's own code
server takes over: command line arguments are its arguments.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import dagster as dg

__all__ = ["DEFINITIONS", "command", "fail_orphans", "main"]

DEFINITIONS = "pipelines.orchestration.definitions"
MESSAGE = "The process that ran this was stopped."
BEGUN = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]


def fail_orphans(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs that no process works on any more.

    Returns
    -------
    list of str
        Their ids.
    """
    begun = instance.get_runs(dg.RunsFilter(statuses=BEGUN))
    for run in begun:
        instance.report_run_failed(run, MESSAGE)
    canceling = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.CANCELING]))
    for run in canceling:
        instance.report_run_canceled(run, MESSAGE)
    return [run.run_id for run in (*begun, *canceling)]


def command(arguments: Sequence[str]) -> list[str]:
    """Return the command line of Dagster's code server for these definitions.

    Examples
    --------
    >>> command(["--port", "4000"])[1:5]
    ['-m', 'dagster', 'api', 'grpc']
    """
    # Runs are started with this very interpreter, not with whatever `dagster` the search path holds.
    options = ["--use-python-environment-entry-point", "--log-level", "warning"]
    return [sys.executable, "-m", "dagster", "api", "grpc", "--module-name", DEFINITIONS, *options, *arguments]


def main(arguments: Sequence[str]) -> None:
    """Clean up, then become the code server."""
    with dg.DagsterInstance.get() as instance:
        fail_orphans(instance)
    line = command(arguments)
    os.execv(line[0], line)


if __name__ == "__main__":
    main(sys.argv[1:])
