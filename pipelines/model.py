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

from forecaster import Forecaster, InputError, Panel
from forecaster.calendar import INTEGER_FREQ


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
            in rows without `y` after a series' last. `ds` may be ISO 8601 text.
        params
            `horizon` (steps) and `quantile_levels`; both have defaults in the model's signature.

        Returns
        -------
        pd.DataFrame
            `unique_id`, `ds` and one column per quantile level, named by the level.

        Raises
        ------
        InputError
            As `Panel.from_frame` and `Forecaster.forecast_frame`, or a `ds` is text and no timestamp.
        """
        config = self._forecaster.config
        columns = dict.fromkeys(("unique_id", "ds", "y", *config.covariates.columns))
        frame = model_input[list(columns)].convert_dtypes()  # MLflow makes objects of whole numbers with gaps
        frame["ds"] = self._timestamps(frame["ds"])
        wanted = params or {}
        forecast = self._forecaster.forecast_frame(
            Panel.from_frame(frame, config.freq, config.covariates),
            wanted.get("horizon"),
            wanted.get("quantile_levels"),
        )
        if config.time_zone is not None:
            forecast["ds"] = [stamp.isoformat() for stamp in forecast["ds"]]
        return forecast

    def _timestamps(self, ds: pd.Series[Any]) -> pd.Series[Any]:
        """Text, as JSON has it, as timestamps; those that name an instant in the model's zone."""
        config = self._forecaster.config
        if config.freq == INTEGER_FREQ or pd.api.types.is_numeric_dtype(ds.dtype):
            return ds
        if not pd.api.types.is_datetime64_any_dtype(ds.dtype):
            try:
                ds = pd.to_datetime(ds, format="ISO8601", utc=config.time_zone is not None)
            except (ValueError, TypeError) as error:
                raise InputError(f"ds cannot be read as ISO 8601 timestamps: {str(error).splitlines()[0]}") from error
        return ds if config.time_zone is None or ds.dt.tz is None else ds.dt.tz_convert(config.time_zone)


# The one line that has an effect on import, because it is how "models from code" names the object to load.
mlflow.models.set_model(ForecastModel())
