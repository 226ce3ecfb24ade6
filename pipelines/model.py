"""The model as MLflow serves it: a `PythonModel` that reads the artifact folder and answers with quantiles.

This file is logged as "model from code": MLflow stores the text of it and runs it when the model is loaded, so nothing
is pickled. It may import only what a loading machine has: MLflow, pandas, and the `forecaster` package that travels
with the model.
"""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from forecaster import Forecaster, Panel


class ForecastModel(PythonModel):
    """Forecasts every series of a long frame from its last row onwards."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the artifact folder."""
        self._forecaster = Forecaster.load(context.artifacts["forecaster"])

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002 - the signature is MLflow's
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Forecast.

        Parameters
        ----------
        context
            Unused; the artifact is already loaded.
        model_input
            Long frame `unique_id`, `ds`, `y`, and the model's covariates. The known ones of the steps to forecast stand
            in rows without `y` after a series' last.
        params
            `horizon` (steps) and `quantile_levels`; both have defaults in the model's signature.

        Returns
        -------
        pd.DataFrame
            `unique_id`, `ds` and one column per quantile level, named by the level.
        """
        config = self._forecaster.config
        columns = dict.fromkeys(("unique_id", "ds", "y", *config.covariates.columns))
        frame = model_input[list(columns)].copy()
        if config.time_zone is not None:
            # MLflow's schema knows no time zones, so zoned timestamps travel as ISO 8601 text.
            frame["ds"] = pd.to_datetime(frame["ds"], format="ISO8601", utc=True).dt.tz_convert(config.time_zone)
        wanted = params or {}
        forecast = self._forecaster.forecast_frame(
            Panel.from_frame(frame, config.freq, config.covariates),
            wanted.get("horizon"),
            wanted.get("quantile_levels"),
        )
        if config.time_zone is not None:
            forecast["ds"] = [stamp.isoformat() for stamp in forecast["ds"]]
        return forecast


# The one line that has an effect on import, because it is how "models from code" names the object to load.
mlflow.models.set_model(ForecastModel())
