"""The commands under `forecaster bench`: options in, rows and tables out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.console import Reporter, emit, result_reporter
from pipelines.options import Json, TrackingUri

if TYPE_CHECKING:
    from pipelines.benchmarks.accuracy import AccuracyRequest

__all__ = ["bench"]

bench = typer.Typer(name="bench", help="Measure speed and accuracy.", invoke_without_command=True)

Quick = Annotated[bool, typer.Option("--quick", help="Shorter measurements, for a first look.")]
Only = Annotated[str | None, typer.Option(help="training or service.", show_default="both")]
DataFolder = Annotated[
    str,
    typer.Option(
        "--data", metavar="FOLDER", envvar="FORECASTER_DATA", help="The data sets' parquet files.", show_default=False
    ),
]
Sets = Annotated[str, typer.Option(metavar="NAME,…", help="Which data sets.", show_default="all")]
Minutes = Annotated[float, typer.Option(help="Time box of each training.")]
Seeds = Annotated[str, typer.Option(metavar="N,…", help="Seeds; one training each.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; repeat for several.", show_default=False),
]
Out = Annotated[
    str | None, typer.Option(metavar="FILE", help="Also write the table (.md) or all rows (.json).", show_default=False)
]


@bench.callback()
def default(context: typer.Context, quick: Quick = False, only: Only = None) -> None:
    """Measure training and serving against bare loops; the same as `bench speed`, unless another one is named."""
    if context.invoked_subcommand is None:
        speed(quick, only)


@bench.command()
def speed(quick: Quick = False, only: Only = None) -> None:
    """Measure training and serving against bare loops; JSON lines on standard output, a table on standard error."""
    from pipelines.benchmarks.speed import run_benchmarks

    raise typer.Exit(run_benchmarks(Reporter(), quick=quick, only=only))


@bench.command()
def accuracy(
    data: DataFolder,
    sets: Sets = "",
    minutes: Minutes = 10.0,
    seeds: Seeds = "0",
    overrides: Overrides = None,
    milestones: Annotated[
        bool, typer.Option("--milestones", help="Also score every epoch: how soon is the seasonal naive's WQL reached?")
    ] = False,
    rivals: Annotated[
        str | None,
        typer.Option(
            "--rivals", metavar="FILE", help="JSON lines of bench peers: milestones against the best of them."
        ),
    ] = None,
    out: Out = None,
    tracking_uri: TrackingUri = None,
    json: Json = False,
) -> None:
    """Train the default configuration on each public data set and score it by the set's own protocol.

    One MLflow run per set and seed, and one table. The data sets are not shipped: FOLDER holds their parquet files.
    """
    from pipelines.benchmarks.accuracy import run_accuracy
    from pipelines.benchmarks.peers import best_wql, read_lines
    from pipelines.benchmarks.report import accuracy_table, check_report, markdown, milestones_table, write
    from pipelines.benchmarks.setting import notes

    check_report(out)
    reporter = Reporter()
    lines = [] if rivals is None else read_lines(rivals)
    request = replace(
        requested(data, sets, seeds, minutes, overrides, tracking_uri),
        milestones=milestones or rivals is not None,
        rivals=best_wql(lines),
    )
    rows: list[dict[str, Any]] = []
    for row in run_accuracy(request, reporter):
        rows.append(row)
        table = accuracy_table(rows)
        reached = milestones_table(rows, lines)
        if out is not None:  # after every set, so that an hour's work survives what ends the run
            more = [markdown(reached), ""] if request.milestones else []
            write(out, "Accuracy", table, rows, [*more, *notes(request)])
    result_reporter(json=json).table("Accuracy", *table)
    if request.milestones:
        result_reporter(json=json).table("Time to accuracy", *reached)
    emit(json, {"command": "bench accuracy", "rows": rows})


@bench.command()
def ablation(
    data: DataFolder,
    sets: Sets = "",
    variants: Annotated[str, typer.Option(metavar="NAME,…", help="Which variants.", show_default="all")] = "",
    minutes: Minutes = 3.0,
    seeds: Seeds = "0",
    overrides: Overrides = None,
    out: Out = None,
    tracking_uri: TrackingUri = None,
    json: Json = False,
) -> None:
    """Train variants of the default configuration, which shows what each part of the method is worth."""
    from pipelines.benchmarks.ablation import choose_variants, run_ablation
    from pipelines.benchmarks.report import ablation_table, check_report, write
    from pipelines.benchmarks.setting import notes

    check_report(out)
    request = requested(data, sets, seeds, minutes, overrides, tracking_uri)
    rows: list[dict[str, Any]] = []
    for row in run_ablation(request, choose_variants(split(variants)), Reporter()):
        rows.append(row)
        table = ablation_table(rows)
        if out is not None:
            write(out, "Ablation", table, rows, notes(request))
    result_reporter(json=json).table("Ablation", *table)
    emit(json, {"command": "bench ablation", "rows": rows})


@bench.command()
def streams(
    data: DataFolder,
    sets: Annotated[str, typer.Option(metavar="NAME,…", help="Which data sets.")] = "europe-load",
    minutes: Minutes = 3.0,
    overrides: Overrides = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Measure forecasts against the age of the stream, 1 to 25 times the training length, and after cold starts.

    Two trainings per set: on the first twenty-fifth of it, and on all before its test part.
    """
    from pipelines.benchmarks.report import check_report, write
    from pipelines.benchmarks.setting import notes
    from pipelines.benchmarks.streams import run_streams, streams_table

    check_report(out)
    request = requested(data, sets, "0", minutes, overrides, None)
    rows = list(run_streams(request, Reporter()))
    table = streams_table(rows)
    if out is not None:
        write(out, "Age of the stream and cold starts", table, rows, notes(request))
    result_reporter(json=json).table("Age of the stream and cold starts", *table)
    emit(json, {"command": "bench streams", "rows": rows})


@bench.command()
def anomalies(
    data: DataFolder,
    minutes: Minutes = 2.0,
    seeds: Seeds = "0",
    overrides: Overrides = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Measure surprise as an alarm on the recordings of the Numenta Anomaly Benchmark that FOLDER holds.

    Three trainings per seed, on the rows of each recording that the benchmark does not judge.
    """
    from pipelines.benchmarks.anomalies import AnomalyRequest, anomalies_table, run_anomalies
    from pipelines.benchmarks.report import check_report, write
    from pipelines.benchmarks.setting import machine
    from pipelines.configuration import parse_overrides

    check_report(out)
    request = AnomalyRequest(data, [whole(text) for text in split(seeds)], minutes, parse_overrides(overrides or []))
    rows = list(run_anomalies(request, Reporter()))
    table = anomalies_table(rows)
    if out is not None:
        write(out, "Surprise as an alarm", table, rows, [machine(), f"At most {minutes:g} minutes of training each."])
    result_reporter(json=json).table("Surprise as an alarm", *table)
    emit(json, {"command": "bench anomalies", "rows": rows})


@bench.command()
def peers(
    data: DataFolder,
    python: Annotated[
        str, typer.Option(metavar="FILE", help="Interpreter of the environment that holds the libraries.")
    ] = ".venv-peers/bin/python",
    sets: Sets = "",
    libraries: Annotated[
        str, typer.Option("--peers", metavar="NAME,…", help="Which libraries.", show_default="all")
    ] = "",
    steps: Annotated[int, typer.Option(help="Training steps of each trained library.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of each trained library.")] = 0,
    lines: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Append rows here as JSON lines; the table shows all rows in it."),
    ] = None,
    accuracy_rows: Annotated[
        str | None,
        typer.Option(
            "--ours", metavar="FILE", help="A .json of bench accuracy, shown in the table.", show_default=False
        ),
    ] = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Put other libraries on the same tasks, in an environment of their own, and score them by the same metrics."""
    from pipelines.benchmarks.peers import PEERS, PeersRequest, ours, peers_table, read_lines, require_some, run_peers
    from pipelines.benchmarks.protocols import choose
    from pipelines.benchmarks.report import append_line, check_report, read_rows, write
    from pipelines.benchmarks.setting import machine
    from pipelines.data import check_folder

    check_report(out)
    if lines is not None:
        check_folder(Path(lines).parent, f"cannot write {lines}")
    own = [] if accuracy_rows is None else ours(read_rows(accuracy_rows))
    rows = [] if lines is None else read_lines(lines)
    request = PeersRequest(data, choose(split(sets)), split(libraries) or PEERS, python, steps=steps, seed=seed)
    new: list[dict[str, Any]] = []
    for row in run_peers(request, Reporter()):
        new.append(row)
        rows.append(row)
        append_line(lines, row)
        table = peers_table([*own, *rows])
        if out is not None:
            write(out, "Beside other libraries", table, rows, [machine(), f"Trained libraries took {steps:,} steps."])
    result_reporter(json=json).table("Beside other libraries", *table)
    require_some(new)
    emit(json, {"command": "bench peers", "rows": new})


def requested(
    data: str, sets: str, seeds: str, minutes: float, overrides: list[str] | None, tracking_uri: str | None
) -> AccuracyRequest:
    """The request that these options make."""
    from pipelines.benchmarks.accuracy import AccuracyRequest
    from pipelines.benchmarks.protocols import choose
    from pipelines.configuration import parse_overrides

    return AccuracyRequest(
        folder=data,
        protocols=choose(split(sets)),
        seeds=[whole(text) for text in split(seeds)],
        minutes=minutes,
        overrides=parse_overrides(overrides or []),
        tracking_uri=tracking_uri,
    )


def split(text: str) -> list[str]:
    """Parts between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def whole(text: str) -> int:
    """A seed.

    Raises
    ------
    InputError
        It is no whole number.
    """
    from forecaster import InputError

    if not text.isdecimal():
        raise InputError(f"--seeds holds {text!r}, expected whole numbers such as 0,1,2")
    return int(text)
