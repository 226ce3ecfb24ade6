"""Wraps an artifact folder as an MLflow pyfunc model: signature, input example, requirements, the library's code.

Nothing is pickled: MLflow stores the text of `pipelines/model.py`, the source of the `forecaster` package and the
artifact folder, which lies at ``artifacts/forecaster`` inside the model. A loading machine needs the few pinned
packages and nothing of this repository.
"""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd

import forecaster
from forecaster import Config, Forecaster, Panel
from forecaster.calendar import INTEGER_FREQ
from forecaster.forecaster import DEFAULT_LEVELS
from forecaster.marginals import level_name
from pipelines.connection import mlflow_errors

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

__all__ = ["input_example", "log_forecaster", "requirements", "signature"]

# What loading and forecasting import; Lightning, plotting and the command line stay at home.
NEEDED = ("holidays", "mlflow", "numba", "numpy", "pandas", "pyarrow", "safetensors", "torch")
EXAMPLE_SEASONS = 2
LONGEST_EXAMPLE = 200


def log_forecaster(
    model: Forecaster, panel: Panel, *, name: str = "forecaster", params: dict[str, Any] | None = None
) -> str:
    """Log a model to the active MLflow run.

    Parameters
    ----------
    model
        The fitted model.
    panel
        Where the input example is taken from.
    name
        Name of the logged model.
    params
        Parameters shown with the logged model.

    Returns
    -------
    str
        Its URI, ``models:/<model id>``.
    """
    from mlflow.pyfunc import log_model

    with mlflow_errors("the model cannot be logged"), TemporaryDirectory(prefix="forecaster-") as folder:
        # MLflow keeps the base name of an artifact's path, so this name decides where the artifact lies in the model.
        artifact = Path(folder) / "forecaster"
        model.save(artifact)
        code = Path(folder) / "code" / "forecaster"
        shutil.copytree(Path(forecaster.__file__).parent, code, ignore=shutil.ignore_patterns("__pycache__"))
        info = log_model(
            name=name,
            python_model=str(Path(__file__).with_name("model.py")),
            artifacts={"forecaster": str(artifact)},
            code_paths=[str(code)],
            signature=signature(model.config),
            input_example=input_example(panel, model.config),
            pip_requirements=requirements(),
            params=params,
        )
    return str(info.model_uri)


def signature(config: Config) -> ModelSignature:
    """Columns in and out, and the parameters with their defaults.

    What comes in may be of any type that `Panel.from_frame` reads, which also tells what is wrong with it, and where:
    MLflow's own types refuse whole numbers, truth values, categories and time zones that the model forecasts from.
    Timestamps with a time zone go out as ISO 8601 text, because MLflow's column types know no time zones.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    columns = dict.fromkeys(("unique_id", "ds", "y", *config.covariates.columns))
    ds = DataType.long if config.freq == INTEGER_FREQ else DataType.datetime
    if config.time_zone is not None:
        ds = DataType.string
    levels = list(DEFAULT_LEVELS)
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), name) for name in columns]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "unique_id"),
                ColSpec(ds, "ds"),
                *(ColSpec(DataType.double, level_name(level)) for level in levels),
            ]
        ),
        params=ParamSchema(
            [
                ParamSpec("horizon", DataType.long, config.horizon),
                ParamSpec("quantile_levels", DataType.double, levels, shape=(-1,)),
            ]
        ),
    )


def input_example(panel: Panel, config: Config) -> pd.DataFrame | None:
    """The last seasons of the panel's first series, as the logged model expects them.

    Where covariates are known in the future, the example ends a horizon earlier and tells the rest as future; there is
    none where no series is longer than that.
    """
    steps = min(max(EXAMPLE_SEASONS * max(config.seasonality), config.horizon), LONGEST_EXAMPLE)
    panel = panel.with_covariates(config.covariates)
    tail = (panel.drop_last(config.horizon) if config.covariates.known else panel).tail(steps)
    if not len(tail):
        return None
    frame = tail.to_frame()
    frame = frame[frame["unique_id"] == tail.unique_ids[0]].reset_index(drop=True)
    frame["unique_id"] = frame["unique_id"].astype(str)
    if config.time_zone is not None:
        frame["ds"] = [stamp.isoformat() for stamp in frame["ds"]]
    return frame


def requirements() -> list[str]:
    """Pinned packages that a machine needs to load the model.

    The local part of a version (``+cpu``) is left out: it names a build that the public index does not have.
    """
    return [f"{package}=={version(package).partition('+')[0]}" for package in NEEDED]
