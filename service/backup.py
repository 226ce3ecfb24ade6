"""Backups: streams of a store as a folder of Parquet files, as of now or as of a ds, and back into a store.

``python -m service.backup export|import FOLDER``. A folder holds ``observations.parquet`` (a long frame, ready to train
on), ``streams.parquet``, ``snapshots.parquet`` (what trimmed logs begin after) and ``manifest.json`` with their
checksums. Invariant: a folder appears as a whole, and is checked as a whole before any of it goes into a store.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy.exc import SQLAlchemyError

from forecaster import Calendar, ForecasterError, InputError
from service.errors import ServiceError, StoreError
from service.naming import check_model_name, file_of, store_of
from service.store import Store
from service.store.copying import LogRow, SnapshotRow, StreamRow

__all__ = ["export_streams", "import_streams", "main"]

FORMAT = 1
"""Of the folder; a higher one is refused."""

_STREAMS = pa.schema(
    [
        ("unique_id", pa.string()),
        *((name, pa.int64()) for name in StreamRow._fields[1:6]),
        ("static", pa.string()),
        ("retained_step", pa.int64()),
    ]
)
_SNAPSHOTS = pa.schema(
    [("unique_id", pa.string()), ("model_key", pa.string()), ("step", pa.int64()), ("state", pa.binary())]
)
_LOG = [("step", pa.int64()), ("y", pa.float64()), ("covariates", pa.string())]
_COUNTED = ("streams", "observations", "snapshots")
_FILES = tuple(f"{name}.parquet" for name in _COUNTED)
_T = TypeVar("_T", StreamRow, LogRow, SnapshotRow)


def export_streams(store: Store, folder: Path, until: str | None = None) -> dict[str, Any]:
    """Write the streams of a store to a new folder; the store may be in use.

    Parameters
    ----------
    store
        Opened.
    folder
        Does not exist yet.
    until
        Leave out what has a later ds; None: nothing. What was corrected before it since stays corrected.

    Returns
    -------
    The manifest.

    Raises
    ------
    StoreError
        The folder exists, the store is new, or a log has been trimmed beyond `until`.
    InputError
        `until` is no ds of the store's calendar.
    """
    if folder.exists():
        raise StoreError(f"{folder} exists already")
    claimed = store.calendar()
    if claimed is None:
        raise StoreError("the store has never been served from, so there is nothing to export")
    calendar = Calendar(*claimed)
    step = None if until is None else _step(calendar, until)
    ds = calendar.to_index(np.array([0], dtype=np.int64))
    log_schema = pa.schema([("unique_id", pa.string()), ("ds", pa.Array.from_pandas(ds).type), *_LOG])

    def log_table(rows: Sequence[LogRow]) -> pa.Table:
        names, steps, y, covariates = zip(*rows, strict=True)
        index = calendar.to_index(np.array(steps, dtype=np.int64))
        return pa.table([names, pa.Array.from_pandas(index), steps, y, covariates], schema=log_schema)

    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with store.dump(step) as dump:
            counts = {
                "streams": _write(partial / _FILES[0], _STREAMS, [_table(dump.streams, _STREAMS)]),
                "observations": _write(partial / _FILES[1], log_schema, map(log_table, dump.log)),
                "snapshots": _write(
                    partial / _FILES[2], _SNAPSHOTS, (_table(rows, _SNAPSHOTS) for rows in dump.snapshots)
                ),
            }
        manifest = {
            "format": FORMAT,
            "freq": calendar.freq,
            "time_zone": calendar.time_zone,
            "until": until,
            "covariates": sorted(store.add_covariates(())),
            **counts,
            "files": {name: _digest(partial / name) for name in _FILES},
        }
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        partial.chmod(0o755)
        os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def import_streams(store: Store, folder: Path, *, replace: bool = False) -> dict[str, Any]:
    """Bring the streams of a folder into a store, all of them or none.

    Parameters
    ----------
    store
        Opened; new, or of the same calendar.
    folder
        Written by `export_streams`.
    replace
        Whether streams of the same names give way; otherwise they make it fail.

    Returns
    -------
    The manifest.

    Raises
    ------
    StoreError
        The folder is incomplete, damaged or of a newer format, or its streams do not fit the store.
    """
    manifest = _checked_manifest(folder)
    store.claim_calendar(manifest["freq"], manifest["time_zone"])
    store.add_covariates(manifest.get("covariates", ()))
    streams = [row for part in _read(folder / _FILES[0], StreamRow) for row in part]
    store.load(streams, _read(folder / _FILES[1], LogRow), _read(folder / _FILES[2], SnapshotRow), replace=replace)
    return manifest


def _step(calendar: Calendar, ds: str) -> int:
    if not calendar.is_integer:
        return int(calendar.parse([ds])[0])
    try:
        return int(ds)
    except ValueError as error:
        raise InputError(f"until is {ds!r}, expected the number of a step") from error


def _table(rows: Sequence[StreamRow] | Sequence[SnapshotRow], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([row._asdict() for row in rows], schema=schema)


def _write(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    count = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
            count += len(table)
    return count


def _read(path: Path, kind: type[_T]) -> Iterator[list[_T]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(20_000, columns=list(kind._fields)):
            yield [kind(*row) for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)]


def _digest(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        number = int(manifest["format"])
        _ = [manifest["files"][name] for name in _FILES], [manifest[name] for name in ("until", *_COUNTED)]
        Calendar(manifest["freq"], manifest["time_zone"])
        if not all(isinstance(name, str) for name in manifest.get("covariates", [])):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError, ForecasterError) as error:
        raise StoreError(f"{folder} is no export of streams: manifest.json is missing or damaged") from error
    if number > FORMAT:
        raise StoreError(f"{folder} has format {number}, newer than {FORMAT}, the newest this code knows")
    return manifest


def _checked_manifest(folder: Path) -> dict[str, Any]:
    manifest = _manifest(folder)
    for name in _FILES:
        digest = manifest["files"][name]
        if not (folder / name).is_file() or _digest(folder / name) != digest:
            raise StoreError(f"{folder} is damaged: {name} is not what the manifest says")
    return manifest


def main(arguments: Sequence[str] | None = None) -> int:
    """``export`` or ``import``; returns the exit status."""
    parser = argparse.ArgumentParser(prog="forecaster streams", description="Backups of a store's streams.")
    commands = parser.add_subparsers(dest="command", required=True)
    out = commands.add_parser("export", help="write the streams of a store, which may be in use, to a new folder")
    out.add_argument("--until", metavar="DS", help="leave out what has a later ds")
    back = commands.add_parser("import", help="bring the streams of such a folder into a store, all or none")
    back.add_argument("--replace", action="store_true", help="streams of the same names give way")
    for command in (out, back):
        command.add_argument("folder", type=Path)
        command.add_argument("--store", default=os.environ.get("FORECASTER_STORE") or "sqlite:///forecaster.db")
        command.add_argument("--named", metavar="NAME", help="the streams of the model that is served under this name")
        command.add_argument("--json", action="store_true", help="one JSON object as the last line")
    given = parser.parse_args(arguments)
    try:
        name = None if given.named is None else check_model_name(given.named)
        url = store_of(given.store, name)
        file = file_of(url)
        if given.command == "export" and file is not None and not file.exists():
            raise StoreError(f"there is no store {file}")  # opening it would make one
        if given.command == "import":
            _manifest(given.folder)  # likewise
        with closing(Store.open(url)) as store:
            if given.command == "export":
                manifest = export_streams(store, given.folder, given.until)
            else:
                manifest = import_streams(store, given.folder, replace=given.replace)
    except (ServiceError, ForecasterError, ValueError) as error:
        sys.stderr.write(f"forecaster: {error}\n".replace("\n", " ").strip() + "\n")
        return 2
    except (SQLAlchemyError, OSError, pa.ArrowException) as error:
        sys.stderr.write(f"forecaster: {error}".splitlines()[0] + "\n")
        return 1
    counts = {name: manifest[name] for name in _COUNTED}
    said = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    sys.stderr.write(f"{said} {'to' if given.command == 'export' else 'from'} {given.folder}\n")
    if given.json:
        result = {"command": f"streams {given.command}", "folder": str(given.folder), "until": manifest["until"]}
        sys.stdout.write(json.dumps(result | counts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
