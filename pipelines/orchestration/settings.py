"""What the schedule trains, on what, and when: one frozen value, from arguments or from ``FORECASTER_SCHEDULE_*``.

The launcher writes it into the environment of the processes that it starts, and they read it back; a container gets
the same variables from its compose file. Knows no Dagster and opens nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["ScheduleSettings"]

PREFIX = "FORECASTER_SCHEDULE_"


class ScheduleSettings(BaseSettings):
    """One scheduled training pipeline; unknown keys are refused.

    Examples
    --------
    >>> settings = ScheduleSettings(data="energy.parquet", freq="h", horizon=48, season=(24, 168))
    >>> settings.to_environment()["FORECASTER_SCHEDULE_SEASON"]
    '[24, 168]'
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    data: str = Field(min_length=1, description="CSV or Parquet file or folder, a long frame")
    freq: str = Field(min_length=1, description="pandas offset alias, or 1 for integer steps")
    horizon: int = Field(ge=1, description="steps to forecast")
    season: tuple[int, ...] = Field((), description="seasonalities in steps; default by freq")
    name: str = Field("forecaster", min_length=1, description="registered model")
    cron: str = Field("0 3 * * *", description="when to train, five fields")
    time_zone: str = Field("UTC", description="time zone of the cron expression, IANA name")
    max_minutes: float | None = Field(None, gt=0, description="a training is done in about so long")
    seed: int | None = Field(None, description="seed of the training; default by the library")
    config: str | None = Field(None, description="TOML or JSON file with the keys of the library's Config")
    overrides: Mapping[str, str] = Field(default_factory=dict, description="dotted key to text, as with --set")
    windows: int | None = Field(None, ge=0, description="backtest windows; default by the length of the series")
    step: int | None = Field(None, ge=1, description="steps between two backtest cutoffs; default the horizon")
    margin: float = Field(0.0, lt=1, description="share by which a challenger has to beat the champion")
    tracking_uri: str | None = Field(None, description="MLflow server or store; default as on the command line")

    def to_environment(self) -> dict[str, str]:
        """Return the variables from which another process reads these settings back."""
        values = self.model_dump(mode="json", exclude_none=True)
        return {
            PREFIX + name.upper(): value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items()
        }
