"""What to train, on what, and where it goes; and the checked plan that comes of it before anything is written.

A request is plain values that any process can rebuild; a plan follows from the request and the data file alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from forecaster import ArtifactError, Calendar, Config, InputError, Panel
from forecaster.artifact import check_place
from pipelines.backtesting import SHORTEST_SERIES, HoldOut, can_be_learnt_from, hold_out
from pipelines.configuration import build_config
from pipelines.connection import shorten
from pipelines.console import Reporter
from pipelines.data import check_folder, read_panel
from pipelines.promotion import check_margin

__all__ = ["Plan", "TrainRequest", "prepare"]

DEFAULT_MODEL = "forecaster"
LONGEST_BOX = 366 * 24 * 60
LONGEST_NAME = 250
UNUSABLE = "/:@%?#'\""
"""Characters that a reference ``models:/NAME@ALIAS``, a URL, or a filter of MLflow's would read otherwise."""


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What to train, on what, and where it goes.

    Parameters
    ----------
    data
        CSV or Parquet file, or a folder of them.
    freq, horizon, seasonality, seed, config_file, overrides
        See `build_config`.
    name
        Registered model, and name of the experiment.
    max_minutes
        Time box from reading the data to the gate's decision; None for no limit.
    n_windows, step_size
        Backtest windows held out of training; None lets the length of the series decide.
    margin
        Share by which the model has to beat the champion; see `pipelines.promotion.decide`.
    out
        Folder that also gets the artifact.
    tracking_uri
        MLflow; None takes the environment's or the default.
    """

    data: str
    freq: str
    horizon: int
    seasonality: Sequence[int] = ()
    seed: int | None = None
    config_file: str | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    name: str = DEFAULT_MODEL
    max_minutes: float | None = None
    n_windows: int | None = None
    step_size: int | None = None
    margin: float = 0.0
    out: str | None = None
    tracking_uri: str | None = None

    def __post_init__(self) -> None:
        """Refuse a margin that nothing could meet."""
        check_margin(self.margin)


@dataclass(frozen=True, slots=True)
class Plan:
    """Checked input: the configuration, the whole panel, and what of it training may see."""

    config: Config
    panel: Panel
    windows: HoldOut


def prepare(request: TrainRequest, reporter: Reporter | None = None) -> Plan:
    """Read and check everything; write nothing.

    Raises
    ------
    InputError
        Data, configuration or options are wrong.
    """
    reporter = reporter or Reporter(quiet=True)
    config = configuration(request)
    panel = read_panel(request.data, config.freq, config.covariates, time_zone=config.time_zone, notice=reporter.notice)
    panel = panel.until_observed()
    config = configuration(request, panel.calendar)
    if config.calendar != panel.calendar:
        found, expected = (zone or "no time zone" for zone in (panel.calendar.time_zone, config.time_zone))
        raise InputError(f"{request.data} is in {found}, but the configuration says {expected}")
    if config.freq != request.freq:
        reporter.notice(f"freq {config.freq}: where the grid begins, the data say")
    check_request(request)
    if config.head == "quantile" and not (config.quantile_levels[0] <= 0.1 and config.quantile_levels[-1] >= 0.9):
        raise InputError(
            f"quantile_levels are {', '.join(map(str, config.quantile_levels))}; 0.1 and 0.9 have to lie within them, "
            "as models are compared, and forecasts written, at 0.1 to 0.9"
        )
    if config.counts:
        panel.require_counts(f"head {config.head!r}")
    windows = hold_out(panel, config.horizon, n_windows=request.n_windows, step_size=request.step_size)
    if not can_be_learnt_from(windows.training):
        longest, left = (max(map(len, found.values), default=0) for found in (panel, windows.training))
        raise InputError(
            f"{request.data}: no series has {SHORTEST_SERIES} steps or more to learn from; the longest has {longest}, "
            f"{longest - left} of them held out"
        )
    say_split(windows, reporter, asked=request.n_windows is not None)
    chosen = "as asked" if request.seasonality else f"from the configuration, or usual for freq {config.freq}"
    reporter.notice(f"seasonality {', '.join(map(str, config.seasonality))}: {chosen}")
    longest = max(map(len, windows.training.values))
    if request.seasonality and (unseen := [season for season in config.seasonality if season >= longest]):
        reporter.notice(
            f"no series shows a season of {unseen[0]} steps: {longest:,} are the most there are to learn from"
        )
    return Plan(config, panel, windows)


def configuration(request: TrainRequest, calendar: Calendar | None = None) -> Config:
    """The configuration that a request asks for, on data of this calendar."""
    return build_config(
        freq=request.freq if calendar is None else calendar.freq,
        horizon=request.horizon,
        seasonality=request.seasonality,
        time_zone=None if calendar is None else calendar.time_zone,
        seed=request.seed,
        config_file=request.config_file,
        overrides=request.overrides,
    )


def check_request(request: TrainRequest) -> None:
    """Refuse what would only fail after the training.

    Raises
    ------
    InputError
        An unusable name, time limit or output folder.
    """
    name = request.name
    plain = name.isprintable() and name == name.strip() and not set(name) & set(UNUSABLE)
    if name in ("", ".", "..") or len(name) > LONGEST_NAME or not plain:
        raise InputError(
            f"model name {shorten(repr(name), 80)} must be 1 to {LONGEST_NAME} printable characters, "
            f"none of {' '.join(UNUSABLE)} and no space at its ends; . and .. are none"
        )
    if request.max_minutes is not None and not 0 < request.max_minutes <= LONGEST_BOX:
        raise InputError(f"--max-minutes must be above 0 and at most {LONGEST_BOX:,}, not {request.max_minutes:g}")
    if request.out is not None:
        out = Path(request.out)
        try:
            check_place(out)
        except ArtifactError as error:
            raise InputError(f"cannot save the model: {error}") from None
        places = [out.resolve()] if out.is_mount() else list(out.resolve().parents)
        check_folder(next(folder for folder in places if folder.exists()), f"cannot save the model to {out}")


def say_split(windows: HoldOut, reporter: Reporter, *, asked: bool) -> None:
    """Tell what training sees and what judges it; `asked`: whether the number of windows was the caller's."""
    panel = windows.panel
    size = f"{len(panel)} series, {int(panel.lengths.sum()):,} steps of freq {panel.calendar.freq}"
    if windows.n_windows == 0:
        why = "no backtest window is held out, as asked" if asked else "too short to hold a backtest window out"
        reporter.notice(f"data: {size}; {why}, so the gate will not judge this model")
        return
    held = windows.held_out
    reporter.notice(
        f"data: {size}; the last {held} steps of each ({windows.n_windows} backtest windows) are held out of training"
    )
    dropped = len(panel) - len(windows.training)
    if dropped:
        reporter.notice(f"{dropped} series are shorter than that and are not trained on")
