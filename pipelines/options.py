"""Options that several files of commands share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Json", "TrackingUri"]

TrackingUri = Annotated[
    str | None, typer.Option(help="MLflow store.", show_default="MLFLOW_TRACKING_URI, else sqlite:///mlflow.db")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
