"""Settings of the service, from arguments or from the environment (prefix ``FORECASTER_``).

Nothing here opens, connects or checks anything outside the values themselves. Unknown arguments are refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.naming import check_model_name, store_of
from service.retention import check_span

__all__ = ["NamedModel", "Settings", "misnamed"]

_PREFIX = "FORECASTER_"
_OTHERS = ("FORECASTER_DATA", "FORECASTER_DATA_FOLDER", "FORECASTER_DEBUG")
_OTHERS_BEGIN = "FORECASTER_SCHEDULE_"
"""Variables of the same prefix that other programs of this project read."""

Span = Annotated[str, AfterValidator(check_span)]
_LONGEST = 366 * 24 * 3600
"""Seconds of any pause or limit: no clock of the system waits for infinity, as which "never" is written."""
Seconds = Annotated[float, Field(le=_LONGEST)]


class NamedModel(BaseModel):
    """A model that is served under a name: a reference, or an object with what is different for this model."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str
    challenger: str | None = None
    retention: Span | None = None
    max_gap_steps: Annotated[int, Field(ge=0)] | None = None
    max_history_steps: Annotated[int, Field(ge=1)] = 1_000_000
    max_resident: Annotated[int, Field(ge=1)] = 200_000

    @model_validator(mode="before")
    @classmethod
    def _of_reference(cls, given: Any) -> Any:
        return {"model": given} if isinstance(given, str) else given


class Settings(BaseSettings):
    """What an operator can choose.

    Every field can be given as ``FORECASTER_<NAME>``, for example ``FORECASTER_STORE=postgresql+psycopg://…``; an empty
    variable is as none, as compose files and units make one of what is not set.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, protected_namespaces=()
    )

    model: str = Field(
        "models:/forecaster@champion",
        description="artifact folder, models:/NAME@ALIAS or models:/NAME/VERSION; none by default if `models` has any",
    )
    models: dict[Annotated[str, AfterValidator(check_model_name)], NamedModel] = Field(
        {},
        description="further models, each a service of its own below /models/NAME: name -> reference, or an object of "
        "model and what differs for it of challenger, retention, max_gap_steps, max_history_steps, max_resident",
    )
    store: str = Field(
        "sqlite:///forecaster.db",
        description="SQLAlchemy URL of the observation log; of a named model a file beside it, or a PostgreSQL schema",
    )
    host: str = Field("127.0.0.1", description="address to listen at; others than this machine's want API keys")
    port: int = Field(8000, ge=0, le=65535, description="0: any that is free")
    api_keys_file: Path | None = Field(
        None, description="hashes of the API keys, one a line; without it only this machine may be listened to"
    )
    allowed_hosts: str | None = Field(
        None,
        description="DNS names, separated by commas, that requests without API keys may be for, beside addresses and "
        "names without a dot; else 421",
    )
    rate_limit: float | None = Field(
        None, gt=0, description="requests per second of each API key that has no rate of its own; default: no limit"
    )
    log_level: str = Field(
        "warning", pattern="^(critical|error|warning|info|debug)$", description="the least that is logged"
    )
    log_format: str = Field("text", pattern="^(text|json)$", description="json: one object per line")
    access_log: bool = Field(True, description="one line per request at level info")

    tracking_uri: str | None = Field(
        None, description="MLflow tracking URI; default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db"
    )
    model_cache: Path | None = Field(
        None, description="folder that keeps downloaded models, so that a start needs no registry"
    )
    poll_seconds: Seconds = Field(5.0, gt=0, description="how often the alias is looked up in the registry")

    require_if_match: bool = Field(
        False, description="a write to one stream without If-Match or If-None-Match is refused with 428"
    )
    idempotency_hours: float = Field(
        24.0, gt=0, le=24 * 366, description="how long the reply to a request with an Idempotency-Key is kept"
    )
    rollback_hours: float = Field(
        24, ge=0, le=10_000, description="how long the model before, and the states under it, are kept for a way back"
    )

    challenger: str | None = Field(
        None, description="a model, named as `model` is, that follows the log in shadow beside the one that serves"
    )
    challenger_streams: int = Field(1000, ge=1, description="streams that the challenger follows, the oldest first")

    max_body_bytes: int = Field(
        32 * 2**20, ge=1024, description="bodies that are larger, packed or unpacked, are refused with 413"
    )
    compress_from: int = Field(
        16_384, ge=1, description="replies of so many bytes or more go as gzip to those who accept it"
    )
    max_connections: int = Field(4096, ge=1, description="open at a time; beyond it: 503")
    head_seconds: Seconds = Field(10.0, gt=0, description="until a request's head must be complete, else 408")
    body_seconds: Seconds = Field(60.0, gt=0, description="until a request's body must be complete, else 408")
    read_seconds: Seconds = Field(30.0, gt=0, description="until a client that reads nothing of its reply is cut off")
    max_history_steps: int = Field(1_000_000, ge=1, description="longest history, gaps included, of one series")
    max_gap_steps: int | None = Field(
        None,
        ge=0,
        description="longest gap filled with missing steps; default: the larger of 168 and two longest seasons",
    )
    max_pending: int = Field(
        100_000, ge=1, description="observations and queries waiting for the engine; beyond it: 503"
    )
    max_waiting: int = Field(
        4096, ge=1, description="requests waiting for the engine, whatever they carry; beyond it: 503"
    )
    max_event_readers: int = Field(1000, ge=0, description="clients that read events at a time; beyond it: 503")
    max_batch: int = Field(4096, ge=1, description="most streams in one micro-batch")
    max_resident: int = Field(200_000, ge=1, description="most streams in memory; the longest idle ones leave first")
    snapshot_every: int = Field(256, ge=1, description="steps of a stream between two snapshots of its state")
    retention: Span | None = Field(
        None,
        description="how much of each log is kept, steps (5000) or time before the last ds (90D); at least the model's "
        "ring and one longest gap; the same for all replicas of a store; default: everything",
    )
    trim_seconds: Seconds = Field(60.0, gt=0, description="pause between two passes of trimming")
    exclusive_store: bool = Field(
        False, description="this is the only process on the store, so nothing is looked for that others have written"
    )
    drain_seconds: int = Field(30, ge=1, le=_LONGEST, description="time for requests in flight at shutdown")
    farewell_seconds: Seconds = Field(
        0.0, ge=0, description="not ready but still answering after SIGTERM, until balancers have seen it"
    )
    stall_seconds: Seconds = Field(
        30.0, gt=0, description="after so long in one micro-batch the service is not ready and those that wait get 503"
    )
    torch_threads: int = Field(1, ge=1, description="threads of one model step; small steps lose by more")
    open_telemetry: bool = Field(
        False, description="traces by OTLP, to where the OTEL_* variables say; needs the extra otel"
    )

    @property
    def replies_seconds(self) -> int:
        """How long replies are kept."""
        return round(self.idempotency_hours * 3600)

    @property
    def hosts(self) -> frozenset[str]:
        """The DNS names that are allowed.

        Examples
        --------
        >>> sorted(Settings(allowed_hosts="Forecasts.example, load.example").hosts)
        ['forecasts.example', 'load.example']
        """
        return frozenset(filter(None, (name.strip().lower() for name in (self.allowed_hosts or "").split(","))))

    @property
    def names(self) -> list[str | None]:
        """Of the models to serve; None is the one without a name, at the root."""
        unnamed: list[str | None] = [None] if "model" in self.model_fields_set or not self.models else []
        return [*unnamed, *self.models]

    def of(self, name: str | None) -> Self:
        """The settings of one model's service.

        Examples
        --------
        >>> settings = Settings(model="a", models={"load": {"model": "b", "retention": "90D"}}, store="sqlite:///log.db")
        >>> settings.names
        [None, 'load']
        >>> own = settings.of("load")
        >>> own.model, own.retention, own.store, own.names
        ('b', '90D', 'sqlite:///log.load.db', [None])
        """
        if name is None:
            return self.model_copy(update={"models": {}})
        # Registered models cannot have an @ in their names, so nothing else is kept in such a folder.
        cache = self.model_cache and self.model_cache / f"@{name}"
        own: dict[str, Any] = {
            "challenger": None,
            "models": {},
            "model_cache": cache,
            "store": store_of(self.store, name),
        }
        return self.model_copy(update=own | self.models[name].model_dump(exclude_unset=True))


def misnamed(variables: Iterable[str]) -> list[str]:
    """A line about each variable that looks like a setting and is none.

    Examples
    --------
    >>> misnamed(["FORECASTER_RETENTON", "FORECASTER_STORE", "FORECASTER_SCHEDULE_CRON", "PATH"])
    ['FORECASTER_RETENTON is no setting and changes nothing; is FORECASTER_RETENTION meant?']
    """
    fields = [name.upper() for name in Settings.model_fields]
    known = [_PREFIX + name for name in fields]
    lines = []
    for variable in sorted(variables):
        name = variable.upper()
        if not name.startswith(_PREFIX) or name in (*known, *_OTHERS) or name.startswith(_OTHERS_BEGIN):
            continue
        nearest = get_close_matches(name.removeprefix(_PREFIX), fields, 1, 0.8)
        meant = f"; is {_PREFIX}{nearest[0]} meant?" if nearest else ""
        lines.append(f"{variable} is no setting and changes nothing{meant}")
    return lines
