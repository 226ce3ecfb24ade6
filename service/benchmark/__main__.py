"""``python -m service.benchmark [--json-lines]``: measure engine and HTTP against references."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forecaster import Config, Forecaster
from service.benchmark.bulk import measure_bulk
from service.benchmark.overload import measure_overload
from service.benchmark.steps import measure_steps
from service.benchmark.streams import measure_streams
from service.benchmark.swaps import measure_swaps
from service.benchmark.web import measure_histories, measure_singles

__all__ = ["main"]

_SHOWN = (
    *("arrived_per_second", "sent_per_second", "refused_per_second", "recovery_seconds", "lost", "doubled"),
    *("swaps", "requests", "failed_requests", "replies_of_several_versions", "worst_p99_ms"),
    *("p95_ms", "max_of_first_ms", "max_of_others_ms", "warm_p50_ms", "warm_p99_ms"),
    *("log_bytes", "snapshot_bytes", "backup_bytes", "load_seconds", "snapshot_seconds"),
    *("cap", "resident", "touched", "megabytes_before", "restored_per_second", "streams", "load"),
)
"""Figures of a measurement that a terminal shows as well."""

_MORE_CLIENTS = 4
"""Carried states gain from more clients, histories do not: both are measured with so many times as many, too."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all measurements and print each as it is known."""
    parser = argparse.ArgumentParser(prog="python -m service.benchmark", description=__doc__)
    parser.add_argument("--json-lines", action="store_true", help="one JSON object per line")
    parser.add_argument(
        "--model", type=Path, help="artifact folder; default: fresh weights, hourly, horizon 48, 2 x 64"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=3, help="of each HTTP measurement")
    parser.add_argument("--clients", type=int, default=32, help="of single observations")
    parser.add_argument("--only", choices=("engine", "singles", "histories", "bulk", "streams", "swaps", "overload"))
    parser.add_argument("--minutes", type=float, default=10.0, help="of model swaps, or of overload")
    parser.add_argument("--every", type=float, default=30.0, help="seconds from model swap to model swap")
    parser.add_argument("--streams", type=int, default=20_000, help="how many the part of that name has in its store")
    parser.add_argument("--crowd", type=int, default=2000, help="clients of the overload, and streams that they share")
    parser.add_argument("--places", type=int, help="for waiting requests during overload; default: the service's own")
    parser.add_argument(
        "--backup", action=argparse.BooleanOptionalAction, default=True, help="export and import them as well"
    )
    parser.add_argument("--folder", type=Path, help="where to put what is measured; default: a temporary one")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="forecaster-bench-", dir=given.folder) as name:
        folder = Path(name)
        model = given.model or folder / "model"
        if given.model is None:
            Forecaster.create(Config(freq="h", horizon=48)).save(model)
        forecaster = Forecaster.load(model)
        if given.only in (None, "engine"):
            for result in measure_steps(forecaster, given.seconds):
                _print(result, json_lines=given.json_lines)
        options = {"seconds": given.seconds, "rounds": given.rounds, "clients": given.clients}
        if given.only in (None, "singles"):
            horizon = forecaster.config.horizon
            for result in measure_singles(model, folder, horizon, **options):
                _print(result, json_lines=given.json_lines)
        if given.only in (None, "histories"):
            for clients in (given.clients, _MORE_CLIENTS * given.clients):
                for result in measure_histories(model, folder, **options | {"clients": clients}):
                    _print(result, json_lines=given.json_lines)
        if given.only in (None, "bulk"):
            for result in measure_bulk(model, folder, rounds=given.rounds):
                _print(result, json_lines=given.json_lines)
        if given.only == "streams":
            for result in measure_streams(model, folder, given.streams, backup=given.backup):
                _print(result, json_lines=given.json_lines)
        if given.only == "swaps":
            options = {"minutes": given.minutes, "every": given.every, "clients": given.clients}
            for result in measure_swaps(model, folder, **options):
                _print(result, json_lines=given.json_lines)
        if given.only == "overload":
            options |= {
                "minutes": given.minutes,
                "clients": given.crowd,
                "streams": given.crowd,
                "places": given.places,
            }
            for result in measure_overload(model, folder, **options):
                _print(result, json_lines=given.json_lines)
    return 0


def _print(result: dict[str, Any], *, json_lines: bool) -> None:
    if json_lines:
        text = json.dumps(result)
    else:
        text = (
            f"{result['benchmark']:28} {result['value']:>10,} {result['unit']}   "
            f"{result['ratio']:.2f} of {result['reference']:,} ({result['reference_is']})"
        )
        if "p50_ms" in result:
            text += f"   p50 {result['p50_ms']} ms, p99 {result['p99_ms']} ms"
        more = [f"{name} {result[name]:,}" for name in _SHOWN if result.get(name) is not None]
        if more:
            text += "   " + ", ".join(more)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
