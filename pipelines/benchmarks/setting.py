"""Where and how figures were measured, as notes below their table."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from pipelines.benchmarks.accuracy import AccuracyRequest
from pipelines.tracking import git_commit

__all__ = ["machine", "notes"]


def machine() -> str:
    """Processor, cores, day, and the versions that matter."""
    model = platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = information.read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    commit = (git_commit(Path(__file__).parent) or "unknown")[:10]
    return (
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores of {model}; Python "
        f"{platform.python_version()}, torch {version('torch')}, commit {commit}."
    )


def notes(request: AccuracyRequest) -> list[str]:
    """What a reader has to know about an accuracy table."""
    changes = ", ".join(f"{key}={value}" for key, value in request.overrides.items())
    return [
        machine(),
        f"At most {request.minutes:g} minutes of training each"
        + (f", with {changes}." if changes else ", default configuration.")
        + " Several seeds: mean and range.",
        "MSE and MAE are those of the median, which is served as the point, on z-scored values.",
    ]
