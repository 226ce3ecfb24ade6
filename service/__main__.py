"""``python -m service``: serve until told to stop. Bad settings, store or model: one line on stderr, exit status 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pydantic import ValidationError

from service import serving
from service.app import create_app
from service.errors import ServiceError
from service.runtime import Service
from service.settings import Settings

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse arguments, open everything, serve; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m service", description="Serve forecasts from durable streams.")
    parser.add_argument("--model", help="artifact folder, models:/NAME@ALIAS or models:/NAME/VERSION")
    parser.add_argument("--store", help="URL of the observation log, sqlite:///FILE or postgresql://…")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--api-keys-file", help="hashes of the API keys; see `forecaster keys new`")
    parser.add_argument("--log-level", choices=("critical", "error", "warning", "info", "debug"))
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    try:
        settings = Settings(**given)
        service = Service.open(settings)
    except ValidationError as error:
        first = error.errors()[0]
        return _refuse(f"setting {'.'.join(map(str, first['loc']))}: {first['msg']}, found {first['input']!r}")
    except ServiceError as error:
        return _refuse(str(error))
    serving.run(
        create_app(settings, service),
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        drain_seconds=settings.drain_seconds,
    )
    return 0


def _refuse(message: str) -> int:
    sys.stderr.write(f"error: {message}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
