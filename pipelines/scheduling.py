"""From the options of ``forecaster schedule`` to the orchestrator's launcher, which is only imported when asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from forecaster import InputError
from pipelines.configuration import parse_overrides
from pipelines.plan import prepare

__all__ = ["run_schedule"]


def run_schedule(settings: Mapping[str, Any], overrides: Sequence[str], *, home: str, host: str, port: int) -> int:
    """Check the settings, then run the scheduler until it is asked to stop.

    Parameters
    ----------
    settings
        Fields of the orchestrator's `ScheduleSettings`.
    overrides
        ``key=value`` texts.
    home
        Folder of the scheduler's memory.
    host, port
        Of its web pages.

    Returns
    -------
    int
        Exit status.

    Raises
    ------
    InputError
        The training could not begin: found out now rather than at three in the morning.
    """
    from pipelines.orchestration.assets import train_request
    from pipelines.orchestration.launch import launch
    from pipelines.orchestration.settings import ScheduleSettings

    try:
        checked = ScheduleSettings(**settings, overrides=parse_overrides(overrides))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"--{'-'.join(map(str, first['loc'])).replace('_', '-')}: {first['msg']}") from error
    prepare(train_request(checked))
    return launch(checked, home=home, host=host, port=port)
