"""Imports point one way, and importing a module does nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.house.tree import ROOT, modules

# Third parties come first: what they do when they are imported is not ours to promise.
PROBE = """
import importlib, json, logging, os, signal, sys, threading, warnings
third_parties, ours = json.loads(sys.argv[1])
for name in third_parties:
    importlib.import_module(name)

def world():
    return {
        "environment": dict(os.environ),
        "folder": sorted(os.listdir(".")),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "log handlers": [str(handler) for handler in logging.getLogger().handlers],
        "log level": logging.getLogger().level,
        "warning filters": len(warnings.filters),
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
        "search path": list(sys.path),
        "working folder": os.getcwd(),
    }

before = world()
for name in ours:
    importlib.import_module(name)
after = world()
print(json.dumps({key: [before[key], after[key]] for key in before if before[key] != after[key]}))
"""
THIRD_PARTIES = [
    "torch",
    "numba",
    "pandas",
    "pyarrow",
    "lightning.pytorch",
    "mlflow.pyfunc",
    "dagster",
    "fastapi",
    "sqlalchemy",
    "rich",
]


def test_the_import_contracts_hold():
    """In a process of its own: import-linter configures logging and thereby mutes every logger that exists."""
    call = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = run_python("-c", call, "--no-cache", folder=ROOT)

    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_any_module_does_nothing(tmp_path):
    """No file, no thread, no output, no change to logging, environment, signals or warnings."""
    done = run_python("-c", PROBE, json.dumps([THIRD_PARTIES, modules()]), folder=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1, f"an import printed: {done.stdout}"
    assert json.loads(done.stdout) == {}


def test_the_library_is_importable_alone(tmp_path):
    """No part of training, serving or scheduling comes along with it."""
    heavy = ["lightning", "mlflow", "fastapi", "sqlalchemy", "dagster", "typer", "plotly", "service", "pipelines"]
    done = run_python(
        "-c", f"import forecaster, sys; print([name for name in {heavy} if name in sys.modules])", folder=tmp_path
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_asking_for_help_does_not_import_the_heavy_packages(tmp_path):
    """The command line answers before PyTorch's friends are awake."""
    script = (
        "import pipelines.cli, sys; print([name for name in ('mlflow', 'lightning', 'dagster') if name in sys.modules])"
    )
    done = run_python("-c", script, folder=tmp_path)

    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def run_python(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(folder)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
