"""The commands that hand over to the service's own programs: `serve`, `streams`, `keys`.

They know options and environment variables, and import nothing of the service: the program takes this process's place,
so its output and exit status are the command's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from json import dumps
from typing import Annotated, NoReturn

import typer

from pipelines.options import Json, TrackingUri

__all__ = ["keys", "serve", "streams"]


def serve(
    model: Annotated[
        str | None,
        typer.Option(help="Artifact folder or models:/NAME@ALIAS.", show_default="models:/forecaster@champion"),
    ] = None,
    named: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL",
            help="A further model, a service of its own below /models/NAME; can be repeated. With such and without "
            "--model there is none at the root.",
            show_default=False,
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Observation log, a SQLAlchemy URL.", show_default="sqlite:///forecaster.db"),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.", show_default="8000")] = None,
    api_keys_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Hashes of API keys; needed unless the host is this machine.", show_default=False
        ),
    ] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Start the forecast service in place of this process.

    Everything else that it can be told are environment variables, FORECASTER_*: see service/SETTINGS.md.
    """
    given = {
        "MODEL": model,
        "MODELS": _models(named),
        "STORE": store,
        "HOST": host,
        "PORT": port,
        "API_KEYS_FILE": api_keys_file,
        "TRACKING_URI": tracking_uri,
    }
    variables = {f"FORECASTER_{key}": str(value) for key, value in given.items() if value is not None}
    if tracking_uri is not None:
        variables["MLFLOW_TRACKING_URI"] = tracking_uri
    _become("serve", [], variables)


def _models(named: list[str] | None) -> str | None:
    from forecaster import InputError

    pairs = [pair.partition("=") for pair in named or ()]
    for name, _, reference in pairs:
        if not name or not reference:
            raise InputError(f"--named is {name!r}, expected NAME=MODEL, such as bikes=models:/bikes@champion")
    models = {name: reference for name, _, reference in pairs}
    if len(models) < len(pairs):
        raise InputError("--named has the same name twice")
    return dumps(models) if models else None


streams = typer.Typer(help="Backups of a store's streams, as Parquet files.", no_args_is_help=True)

Folder = Annotated[str, typer.Argument(metavar="FOLDER", help="Of the Parquet files.", show_default=False)]
StoreUrl = Annotated[
    str | None,
    typer.Option("--store", metavar="URL", help="A SQLAlchemy URL.", show_default="sqlite:///forecaster.db"),
]
Named = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Of the model that is served under this name.", show_default=False),
]


@streams.command("export")
def export_streams(
    folder: Folder,
    store: StoreUrl = None,
    named: Named = None,
    until: Annotated[
        str | None, typer.Option(metavar="DS", help="Leave out what has a later ds.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Write the streams of a store, which may be in use, to a new folder: observations, states, checksums.

    The file of observations is a long frame, ready to train on.
    """
    _backup("export", folder, store, named, json, [] if until is None else [f"--until={until}"])


@streams.command("import")
def import_streams(
    folder: Folder,
    store: StoreUrl = None,
    named: Named = None,
    replace: Annotated[bool, typer.Option("--replace", help="Streams of the same names give way.")] = False,
    json: Json = False,
) -> None:
    """Bring the streams of such a folder into a store, all of them or none."""
    _backup("import", folder, store, named, json, ["--replace"] if replace else [])


def _backup(command: str, folder: str, store: str | None, named: str | None, json: bool, more: list[str]) -> NoReturn:
    chosen = {"store": store, "named": named}
    given = [*more, *(f"--{name}={value}" for name, value in chosen.items() if value is not None)]
    given += [*(["--json"] if json else []), "--", folder]
    _become("streams", [command, *given])


keys = typer.Typer(help="API keys of the service.", no_args_is_help=True)


@keys.command()
def new(
    name: Annotated[str | None, typer.Argument(help="How its holder is called.", show_default="a random name")] = None,
    scopes: Annotated[str, typer.Option(help="Of read, write and admin, separated by commas.")] = "read,write",
    rate: Annotated[float | None, typer.Option(help="Requests per second.", show_default="no limit")] = None,
    models: Annotated[
        str | None,
        typer.Option(help="It is valid for, separated by commas; / is the one at the root.", show_default="all models"),
    ] = None,
    json: Json = False,
) -> None:
    """Make a key. It is shown this once; its line, a hash, goes to standard output, for the file of --api-keys-file."""
    chosen = {"scopes": scopes, "rate": rate, "models": models}
    given = [
        *([name] if name else []),
        *(f"--{option}={value}" for option, value in chosen.items() if value is not None),
    ]
    _become("keys", ["new", *given, *(["--json"] if json else [])])


def _become(program: str, arguments: Sequence[str], variables: Mapping[str, str] | None = None) -> NoReturn:
    """Let a program take this process's place, with further environment variables."""
    sys.stdout.flush()
    os.execve(
        sys.executable,
        [sys.executable, "-m", "service.programs", program, *arguments],
        {**os.environ, **(variables or {})},
    )
