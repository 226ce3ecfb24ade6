"""The commands under `forecaster bench`: options in, rows and tables out."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipelines.console import Reporter, emit, result_reporter

__all__ = ["bench"]

bench = typer.Typer(name="bench", help="Measure speed and accuracy.", invoke_without_command=True)

Quick = Annotated[bool, typer.Option("--quick", help="Shorter measurements, for a first look.")]
Only = Annotated[str | None, typer.Option(help="training or service.", show_default="both")]
DataFolder = Annotated[
    str, typer.Option("--data", metavar="FOLDER", help="The data sets' parquet files.", show_default=False)
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
TrackingUri = Annotated[
    str | None, typer.Option(help="MLflow store.", show_default="MLFLOW_TRACKING_URI, else sqlite:///mlflow.db")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


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
    out: Out = None,
    tracking_uri: TrackingUri = None,
    json: Json = False,
) -> None:
    """Train the default configuration on each public data set and score it by the set's own protocol.

    One MLflow run per set and seed, and one table. The data sets are not shipped: FOLDER holds their parquet files.
    """
    from pipelines.benchmarks.accuracy import AccuracyRequest, run_accuracy
    from pipelines.benchmarks.protocols import choose
    from pipelines.benchmarks.report import accuracy_table, check_report, write
    from pipelines.benchmarks.setting import notes
    from pipelines.configuration import parse_overrides

    check_report(out)
    reporter = Reporter()
    request = AccuracyRequest(
        folder=data,
        protocols=choose(split(sets)),
        seeds=[whole(text) for text in split(seeds)],
        minutes=minutes,
        overrides=parse_overrides(overrides or []),
        tracking_uri=tracking_uri,
    )
    rows: list[dict[str, Any]] = []
    for row in run_accuracy(request, reporter):
        rows.append(row)
        table = accuracy_table(rows)
        if out is not None:  # after every set, so that an hour's work survives what ends the run
            write(out, "Accuracy", table, rows, notes(request))
    result_reporter(json=json).table("Accuracy", *table)
    emit(json, {"command": "bench accuracy", "rows": rows})


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

    check_report(out)
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
