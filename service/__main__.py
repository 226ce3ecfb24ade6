"""``python -m service``: serve until told to stop. Bad settings, store or model: one line on stderr, exit status 2."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from pydantic import ValidationError
from pydantic_settings import SettingsError

from service import serving
from service.app import create_app
from service.connections import Bounds
from service.errors import ServiceError
from service.hosting import Host
from service.logs import LogWriter
from service.settings import Settings, misnamed

__all__ = ["main"]

_SHAPES = "128"
"""Shapes of folds that oneDNN keeps its machine code for. Each length of a stretch is one, takes half a megabyte, and
1.4 ms to make anew; oneDNN's own bound of 1,024 is what a process grew by that had met enough lengths."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse arguments, open everything, serve; returns the exit status if that does not come about, and else ends."""
    parser = argparse.ArgumentParser(prog="python -m service", description="Serve forecasts from durable streams.")
    parser.add_argument("--model", help="artifact folder, models:/NAME@ALIAS or models:/NAME/VERSION")
    parser.add_argument("--store", help="URL of the observation log, sqlite:///FILE or postgresql://…")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--api-keys-file", help="hashes of the API keys; see `forecaster keys new`")
    parser.add_argument("--log-level", choices=("critical", "error", "warning", "info", "debug"))
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _SHAPES)
    log = None
    try:
        settings = Settings(**given)
        log = LogWriter(sys.stderr, settings.log_level, as_json=settings.log_format == "json")
        log.open()
        for line in misnamed(os.environ):
            logging.getLogger("service").warning(line)
        host = Host.open(settings)
    except ValidationError as error:
        first = error.errors()[0]
        where, said = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        return _refuse(log, f"setting {where}: {said}, found {first['input']!r}")
    except SettingsError as error:
        return _refuse(log, f"settings cannot be read: {error}: {error.__cause__}")
    except ServiceError as error:
        return _refuse(log, str(error))
    wanted = settings.access_log and settings.log_level in ("info", "debug")
    serving.run(
        create_app(settings, host, log.request if wanted else None),
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        drain_seconds=settings.drain_seconds,
        farewell_seconds=settings.farewell_seconds,
        leaving=host.leave,
        bounds=Bounds(
            settings.head_seconds,
            settings.body_seconds,
            settings.read_seconds,
            settings.max_connections,
            settings.max_body_bytes,
        ),
    )
    log.close()
    with suppress(AttributeError, OSError):  # standard output may be closed
        sys.stdout.flush()
    # All is told and stored. A store that hangs would keep the interpreter waiting for its threads for ever, and if one
    # that folds were within PyTorch when the interpreter ends, it would abort.
    os._exit(0 if host.ended else 1)


def _refuse(log: LogWriter | None, message: str) -> int:
    if log is not None:
        log.close()
    sys.stderr.write(f"forecaster: {message}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
