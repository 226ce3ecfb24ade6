"""The command line `forecaster`: options in, one call into the pipelines, results and an exit status out.

Thin on purpose: no command does work of its own. Heavy packages are imported inside the commands, so that ``--help``
answers at once. No traceback reaches a user: bad input is one line and status 2, anything else one line and status 1;
``FORECASTER_DEBUG=1`` brings the traceback back.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import Abort, TyperException

from pipelines.benchmarks.commands import bench
from pipelines.console import Reporter, emit, result_reporter
from pipelines.handing_over import keys, serve, streams
from pipelines.interruption import ended, interruptible
from pipelines.options import Json, TrackingUri

__all__ = ["app", "main"]

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""What a disk says that is full, or that this user may not write to."""

HELP = """Probabilistic forecasts from recurrent state: train, judge, promote and serve.

DATA is a long frame with columns unique_id, ds and y: a CSV or Parquet file, or a folder of them. FREQ is a pandas
offset alias (h, D, W, MS, 15min) or 1 for integer steps. Exit status: 0 done, 1 failed, 2 bad input.
"""

app = typer.Typer(
    name="forecaster",
    help=HELP,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA", help="CSV or Parquet file, or a folder of them: unique_id, ds, y.", show_default=False
    ),
]
Freq = Annotated[
    str, typer.Option(help="Step between two ds: a pandas offset alias, or 1 for integer steps.", show_default=False)
]
Season = Annotated[
    list[int] | None,
    typer.Option(
        help="Seasonality in steps; repeat for several. Default: the usual ones of the frequency.", show_default=False
    ),
]
Seed = Annotated[int | None, typer.Option(help="Seed of weights and training order.", show_default="0")]
ConfigFile = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help="TOML or JSON with hyper-parameters.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="One hyper-parameter, such as network.hidden_size=32; repeat for several.",
        show_default=False,
    ),
]
Known = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN",
        help="Covariate known for the steps to forecast too; repeat, or separate by commas.",
        show_default=False,
    ),
]
Past = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN", help="Covariate known up to the last y only.", show_default=False),
]
Static = Annotated[
    list[str] | None, typer.Option(metavar="COLUMN", help="Covariate with one value per series.", show_default=False)
]
FutureFile = Annotated[
    str | None,
    typer.Option(
        "--future",
        metavar="FILE",
        help="Known covariates of the coming steps: unique_id, ds and their columns.",
        show_default="rows of DATA without y",
    ),
]
MaxMinutes = Annotated[float | None, typer.Option(help="Be done in about so many minutes.", show_default="no limit")]
Name = Annotated[str, typer.Option(help="Registered model, and experiment.")]
Margin = Annotated[
    float,
    typer.Option(
        help="Share by which a challenger has to beat the champion; negative lets a slightly worse, fresher one in."
    ),
]
Windows = Annotated[
    int | None, typer.Option(help="Backtest windows held out of training.", show_default="1 to 4, by length")
]
Step = Annotated[int | None, typer.Option(help="Steps between two backtest cutoffs.", show_default="horizon")]
Model = Annotated[
    str, typer.Option(help="Artifact folder, models:/NAME@ALIAS or models:/NAME/VERSION.", show_default=False)
]


@app.command()
def train(
    data: Data,
    freq: Freq,
    horizon: Annotated[int, typer.Option(help="Steps to forecast.", show_default=False)],
    season: Season = None,
    known: Known = None,
    past: Past = None,
    static: Static = None,
    name: Name = "forecaster",
    config: ConfigFile = None,
    overrides: Overrides = None,
    max_minutes: MaxMinutes = None,
    seed: Seed = None,
    windows: Windows = None,
    step: Step = None,
    margin: Margin = 0.0,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Also save the artifact here.", show_default=False)
    ] = None,
    tracking_uri: TrackingUri = None,
    json: Json = False,
) -> None:
    """Train a model, register it as challenger, and promote it if it passes the gate.

    The last backtest windows of every series are held out of training and judge the model, the champion and the
    seasonal naive alike.
    """
    from pipelines.configuration import parse_overrides, roles
    from pipelines.train import TrainRequest
    from pipelines.train import train as run

    reporter = Reporter()
    request = TrainRequest(
        data=data,
        freq=freq,
        horizon=horizon,
        seasonality=tuple(season or ()),
        seed=seed,
        config_file=config,
        overrides=roles(known, past, static) | parse_overrides(overrides or []),
        name=name,
        max_minutes=max_minutes,
        n_windows=windows,
        step_size=step,
        margin=margin,
        out=out,
        tracking_uri=tracking_uri,
    )
    result = run(request, reporter)
    if result.metrics:
        from pipelines.tables import metrics_table

        result_reporter(json=json).table(
            *metrics_table(result.metrics, result.champion_metrics, result.champion_version)
        )
    verdict = "is champion now" if result.promoted else "stays challenger"
    reporter.notice(f"version {result.version} of model {result.model!r} {verdict}: {result.reason}")
    emit(json, {"command": "train", **result.to_dict()})


@app.command()
def predict(
    data: Data,
    model: Model,
    out: Annotated[str, typer.Option(metavar="FILE", help="CSV or Parquet file to write.", show_default=False)],
    future: FutureFile = None,
    horizon: Annotated[int | None, typer.Option(help="Steps to forecast.", show_default="the trained horizon")] = None,
    quantile_level: Annotated[
        list[float] | None, typer.Option(help="Quantile level; repeat for several.", show_default="0.1 to 0.9")
    ] = None,
    tracking_uri: TrackingUri = None,
    json: Json = False,
) -> None:
    """Forecast every series of DATA from its last row onwards.

    Writes a long frame: unique_id, ds, then one column per quantile level, named by the level.
    """
    from pipelines.predict import answer, forecasts

    reporter = Reporter()
    ask = forecasts(horizon, quantile_level or None)
    done = answer(data, model, ask, future=future, out=out, tracking_uri=tracking_uri, notice=reporter.notice)
    reporter.notice(f"{len(done.frame):,} forecasts for {done.n_series:,} series are in {out}")
    levels = [float(column) for column in done.frame.columns if column not in ("unique_id", "ds")]
    described = {"reference": done.model.reference, "name": done.model.name, "version": done.model.version}
    emit(
        json,
        {
            "command": "predict",
            "out": out,
            "series": done.n_series,
            "rows": len(done.frame),
            "quantile_levels": levels,
            "model": described,
        },
    )


@app.command()
def simulate(
    data: Data,
    model: Model,
    out: Annotated[str, typer.Option(metavar="FILE", help="CSV or Parquet file to write.", show_default=False)],
    future: FutureFile = None,
    samples: Annotated[int, typer.Option(help="Sample paths per series.")] = 100,
    horizon: Annotated[int | None, typer.Option(help="Steps to draw.", show_default="the trained horizon")] = None,
    seed: Annotated[int, typer.Option(help="The same seed, the same paths.")] = 0,
    tracking_uri: TrackingUri = None,
    json: Json = False,
) -> None:
    """Draw sample paths of every series of DATA from its last row onwards.

    Writes a long frame: unique_id, sample, ds, y. At every step the paths have the quantiles that predict writes; from
    step to step they hang together, so that sums and peaks of a path mean something.
    """
    from pipelines.predict import answer, paths

    reporter = Reporter()
    ask = paths(horizon, samples, seed)
    done = answer(data, model, ask, future=future, out=out, tracking_uri=tracking_uri, notice=reporter.notice)
    reporter.notice(f"{samples:,} paths of each of {done.n_series:,} series are in {out}")
    described = {"reference": done.model.reference, "name": done.model.name, "version": done.model.version}
    emit(
        json,
        {
            "command": "simulate",
            "out": out,
            "series": done.n_series,
            "rows": len(done.frame),
            "samples": samples,
            "seed": seed,
            "model": described,
        },
    )


@app.command()
def backtest(
    data: Data,
    model: Model,
    horizon: Annotated[int, typer.Option(help="Steps per window.", show_default=False)],
    windows: Annotated[int, typer.Option(help="How many cutoffs.", show_default=False)],
    step: Annotated[int, typer.Option(help="Steps between two cutoffs.", show_default=False)],
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="CSV or Parquet file for every forecast.", show_default=False)
    ] = None,
    tracking_uri: TrackingUri = None,
    json: Json = False,
) -> None:
    """Measure a model over rolling cutoffs at the end of every series.

    It is a fair measure on data that came after the training: what a model serves with has learnt from all of its file.
    The backtest that `train` reports is of the weights from before the windows.
    """
    from pipelines.backtesting import run_backtest
    from pipelines.data import check_output, read_panel, write_frame
    from pipelines.loading import load_model
    from pipelines.tables import metrics_table, step_table, window_table

    reporter, results = Reporter(), result_reporter(json=json)
    if out is not None:
        check_output(out, [data])
    loaded = load_model(model, tracking_uri)
    trained = loaded.forecaster.config
    panel = read_panel(data, trained.freq, trained.covariates, time_zone=trained.time_zone, notice=reporter.notice)
    panel = panel.until_observed()
    result = run_backtest(loaded.forecaster, panel, horizon=horizon, n_windows=windows, step_size=step)
    if out is not None:
        write_frame(result.forecasts, out)
        reporter.notice(f"{len(result.forecasts):,} forecasts are in {out}")
    results.table(*window_table(result.by_window))
    results.table(*step_table(result.by_step))
    results.table(*metrics_table(dict(result.metrics)))
    by_window = [{str(key): value for key, value in row.items()} for row in result.by_window.to_dict("records")]
    emit(
        json,
        {
            "command": "backtest",
            "model": model,
            "version": loaded.version,
            "metrics": result.metrics,
            "windows": by_window,
            "out": out,
        },
    )


@app.command()
def score(
    forecasts: Annotated[str, typer.Argument(metavar="FORECASTS", help="File written by predict.", show_default=False)],
    truth: Annotated[str, typer.Argument(metavar="TRUTH", help="What came: unique_id, ds, y.", show_default=False)],
    history: Annotated[
        str,
        typer.Option(
            metavar="DATA", help="What the forecasts were made from; scales MASE, makes Naive2.", show_default=False
        ),
    ],
    season: Annotated[int, typer.Option(help="Seasonality in steps of MASE and Naive2.", show_default=False)],
    freq: Annotated[
        str | None, typer.Option(help="Frequency; needed for timestamps.", show_default="1 for integer steps")
    ] = None,
    time_zone: Annotated[
        str | None, typer.Option(help="Of timestamps with UTC offsets; local days need it.", show_default="as in DATA")
    ] = None,
    json: Json = False,
) -> None:
    """Score a forecast file against the truth: sMAPE, MASE, OWA, WQL, coverage."""
    from pipelines.score import score as run
    from pipelines.tables import metrics_table

    reporter = Reporter()
    metrics = run(
        forecasts, truth, history=history, season=season, freq=freq, time_zone=time_zone, notice=reporter.notice
    )
    result_reporter(json=json).table(*metrics_table(metrics))
    emit(json, {"command": "score", "forecasts": forecasts, "truth": truth, "metrics": metrics})


@app.command()
def promote(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Registered model.", show_default=False)],
    version: Annotated[str | None, typer.Option(help="Which version.", show_default="the challenger")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overrule the gate.")] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="Return to the previous champion.")] = False,
    tracking_uri: TrackingUri = None,
    json: Json = False,
) -> None:
    """Make a version the champion, or return to the previous one."""
    from forecaster import InputError
    from pipelines import registry
    from pipelines.connection import connect

    reporter = Reporter()
    if rollback and (version is not None or force):
        raise InputError("--rollback goes to the previous champion; it takes neither --version nor --force")
    client = connect(tracking_uri)
    before = registry.version_of_alias(client, name, registry.CHAMPION)
    if rollback:
        now, _ = registry.rollback(client, name)
    else:
        now = registry.promote(client, name, version, force=force)
    reporter.notice(
        f"champion of model {name!r} is version {now} now" + (f", before it was {before}" if before else "")
    )
    emit(json, {"command": "promote", "model": name, "champion": now, "before": before, "rollback": rollback})


@app.command()
def models(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One registered model.", show_default="all")
    ] = None,
    tracking_uri: TrackingUri = None,
    json: Json = False,
) -> None:
    """List registered versions with their aliases, backtest metrics and the gate's decision."""
    from forecaster import InputError
    from pipelines.connection import connect
    from pipelines.registry import versions
    from pipelines.tables import models_table, version_row

    found = versions(connect(tracking_uri), name)
    if name is not None and not found:
        raise InputError(f"model {name!r} has no versions in this registry")
    rows = [version_row(version) for version in found]
    result_reporter(json=json).table(*models_table(rows))
    emit(json, {"command": "models", "models": rows})


app.command()(serve)
app.add_typer(streams, name="streams")
app.add_typer(keys, name="keys")


@app.command()
def demo(
    folder: Annotated[
        str, typer.Option(metavar="DIR", help="Working folder; emptied first if a demo made it.")
    ] = "demo-run",
    keep: Annotated[
        bool, typer.Option("--keep", envvar="KEEP", help="Leave the service and the MLflow UI running at the end.")
    ] = False,
    json: Json = False,
) -> None:
    """The whole path in a few minutes: train, judge, serve, crash, recover, swap the model.

    Two cities' hourly temperatures, streamed to a real server that is really killed.
    """
    from pipelines.demo.run import run_demo

    emit(json, {"command": "demo", **run_demo(folder, keep=keep, reporter=Reporter())})


@app.command()
def schedule(
    data: Data,
    freq: Freq,
    horizon: Annotated[int, typer.Option(help="Steps to forecast.", show_default=False)],
    season: Season = None,
    known: Known = None,
    past: Past = None,
    static: Static = None,
    name: Name = "forecaster",
    cron: Annotated[str, typer.Option(help="When to train, five fields.")] = "0 3 * * *",
    time_zone: Annotated[str, typer.Option(help="Time zone of the cron expression.")] = "UTC",
    config: ConfigFile = None,
    overrides: Overrides = None,
    max_minutes: MaxMinutes = None,
    seed: Seed = None,
    windows: Windows = None,
    step: Step = None,
    margin: Margin = 0.0,
    tracking_uri: TrackingUri = None,
    home: Annotated[str, typer.Option(metavar="DIR", help="What the scheduler remembers.")] = ".dagster",
    host: Annotated[str, typer.Option(help="Address of its web pages.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of its web pages.")] = 3000,
) -> None:
    """Train on a schedule: starts the scheduler's web server and daemon and runs until Ctrl-C."""
    from pipelines.configuration import roles
    from pipelines.scheduling import run_schedule

    settings = {
        "data": data,
        "freq": freq,
        "horizon": horizon,
        "season": tuple(season) if season else None,
        "name": name,
        "cron": cron,
        "time_zone": time_zone,
        "config": config,
        "max_minutes": max_minutes,
        "seed": seed,
        "windows": windows,
        "step": step,
        "margin": margin,
        "tracking_uri": tracking_uri,
    }
    given = {key: value for key, value in settings.items() if value is not None}
    covariates = [f"{key}={value}" for key, value in roles(known, past, static).items()]
    raise typer.Exit(run_schedule(given, [*covariates, *(overrides or [])], home=home, host=host, port=port))


app.add_typer(bench)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Parameters
    ----------
    arguments
        Without the program's name; by default those of the process.

    Returns
    -------
    int
        Exit status: 0 done, 1 failed, 2 bad input, 130 ended by Ctrl-C, 143 by SIGTERM.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = os.environ.get("FORECASTER_DEBUG", "") not in ("", "0")
    if not (sys.warnoptions or debug):
        warnings.simplefilter("ignore")  # meant for developers, and standard error is the user's
    with interruptible() as asked:
        try:
            status = int(app(arguments or ["--help"], prog_name="forecaster", standalone_mode=False) or OK)
        except TyperException as error:
            message = error.format_message()  # none after the help of a group of commands
            return complain(message, BAD_INPUT) if message else BAD_INPUT
        except (KeyboardInterrupt, Abort):
            status = INTERRUPTED
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read our output has left
            return FAILED
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):
                return FAILED
            if debug:
                traceback.print_exc()
            if not asked:
                return complain(*explain(error))
            status = INTERRUPTED
    return complain(*ended(asked)) if status == INTERRUPTED else status


def explain(error: BaseException) -> tuple[str, int]:
    """One line and an exit status for an error."""
    from forecaster import ArtifactError, ForecasterError, InputError

    if isinstance(error, InputError | ArtifactError):
        return str(error), BAD_INPUT
    if isinstance(error, ForecasterError):
        return str(error), FAILED
    if isinstance(error, SystemExit):
        return f"ended with status {error.code}", FAILED
    if isinstance(error, ModuleNotFoundError):
        return f"package {error.name} is not installed; an extra of forecaster, such as [schedule], brings it", FAILED
    if isinstance(error, OSError) and error.errno in DISK:
        return f"{error.strerror}{'' if error.filename is None else f': {error.filename}'}", FAILED
    detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"unexpected {detail} (FORECASTER_DEBUG=1 shows where)", FAILED


def complain(text: str, status: int) -> int:
    """Write one line on standard error; return the status."""
    sys.stderr.write("forecaster: " + " ".join(text.split()) + "\n")
    sys.stderr.flush()
    return status
