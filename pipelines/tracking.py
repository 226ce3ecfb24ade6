"""One training run in MLflow: parameters, curves, data fingerprint, environment, backtest, plots and the model.

A run is opened for the length of a ``with`` block and ends as finished, failed or killed, whatever happens inside.
Knows what is worth writing down and under which names; nothing of files, gates or command lines.
"""

from __future__ import annotations

import json
import platform
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import pandas as pd

from forecaster import Backtest, Config, Forecaster, InputError, Panel
from pipelines.configuration import flatten
from pipelines.connection import RegistryError, artifact_root, mlflow_errors, tracking_uri_or_default, unless_there
from pipelines.loading import JUDGED
from pipelines.packaging import log_forecaster
from pipelines.plots import backtest_page, learning_curve, page

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["TrainingRun", "backtest_metrics", "choices_of", "model_uri_of", "resume_run", "start_run"]

MODEL_URI = "model.uri"
BACKTEST = "backtest/"
CHOICE = "choice."

# What MLflow's pages look for: on a run, its description; on an experiment, whether it is of models or of prompts.
NOTE = "mlflow.note.content"
KIND = {"mlflow.experimentKind": "custom_model_development"}
TABLES = ("by_window", "by_step", "by_series")
PAUSE = 60.0
"""Seconds between two tries to log an epoch while the server is away."""

TAGGED_PACKAGES = ("torch", "lightning", "pandas", "numpy", "mlflow")


class TrainingRun:
    """Writes to one open run.

    Parameters
    ----------
    client
        An open connection.
    run_id
        The run.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self.run_id = run_id
        self._rows: list[Mapping[str, float]] = []  # of epochs, not logged yet
        self._again = 0.0

    def log_config(self, config: Config) -> None:
        """Every hyper-parameter, under its dotted key."""
        import mlflow

        with mlflow_errors("parameters cannot be logged"):
            mlflow.log_params({key: str(value) for key, value in flatten(config.to_dict()).items()})

    def log_chosen(self, given: Config, chosen: Config, reasons: Sequence[str]) -> None:
        """What `given` left open, as it was chosen: so that runs can be compared and searched by it; and why."""
        import mlflow

        before, after = (flatten(config.to_dict()) for config in (given, chosen))
        with mlflow_errors("choices cannot be logged"):
            mlflow.log_params({f"chosen.{key}": str(value) for key, value in after.items() if value != before.get(key)})
            mlflow.set_tags({CHOICE + reason.split(maxsplit=1)[0]: reason for reason in reasons})

    def log_panel(self, panel: Panel, *, source: str, context: str) -> None:
        """Fingerprint, size and source of the data, as an MLflow data set.

        Parameters
        ----------
        panel
            The validated series.
        source
            Path they came from.
        context
            What they are used for, such as ``training``.
        """
        import mlflow
        from mlflow.data.pandas_dataset import from_pandas

        with warnings.catch_warnings(), mlflow_errors("the data set cannot be logged"):
            # MLflow warns that integer columns could hold missing values; ours are checked by the panel.
            warnings.simplefilter("ignore")
            frame = panel.to_frame()
            named = partial(
                from_pandas,
                source=source,
                targets="y",
                name=Path(source).name or source,
                digest=panel.fingerprint()[:36],
            )
            data = named(frame)
            # MLflow looks at every value, one by one: 5 s per million rows. Types are told by the first row, and what
            # may be missing by the first that misses it.
            telling = [frame.head(1), *(frame[frame[column].isna()].head(1) for column in frame)]
            data.schema = named(pd.concat(telling)).schema
            mlflow.log_input(data, context=context)
            mlflow.set_tags(
                {f"data.{context}.fingerprint": panel.fingerprint(), f"data.{context}.series": str(len(panel))}
            )

    def log_environment(self) -> None:
        """Python, platform, packages and the code's commit."""
        import mlflow

        packages = {found.metadata["Name"]: found.version for found in distributions() if found.metadata["Name"]}
        tags = {f"environment.{name}": packages[name] for name in TAGGED_PACKAGES if name in packages}
        tags |= {"environment.python": platform.python_version(), "environment.platform": platform.platform()}
        commit = git_commit(Path(__file__).parent)
        if commit is not None:
            tags["mlflow.source.git.commit"] = commit
        with mlflow_errors("the environment cannot be logged"):
            mlflow.set_tags(tags)
            mlflow.log_dict(
                {"python": platform.python_version(), "packages": dict(sorted(packages.items()))}, "environment.json"
            )

    def log_epoch(self, row: Mapping[str, float]) -> None:
        """Metrics of one epoch: losses, learning rate, gradient norm, share of clipped updates, speed.

        A server that is away does not end a training: what it misses is logged later, with `log_rest` at the latest.
        """
        self._rows.append(row)
        if time.monotonic() < self._again:
            return
        try:
            self.log_rest()
        except RegistryError:
            self._again = time.monotonic() + PAUSE

    def log_rest(self) -> None:
        """What `log_epoch` could not log."""
        import mlflow

        with mlflow_errors("an epoch cannot be logged"):
            while self._rows:
                row = self._rows[0]
                values = {key: float(value) for key, value in row.items() if key != "epoch"}
                mlflow.log_metrics(values, step=int(row["epoch"]))
                del self._rows[0]

    def log_model(self, model: Forecaster, panel: Panel) -> str:
        """The artifact as a pyfunc model; returns its URI and remembers it on the run."""
        model_uri = log_forecaster(
            model, panel, params={key: str(value) for key, value in flatten(model.config.to_dict()).items()}
        )
        self.tag({MODEL_URI: model_uri})
        return model_uri

    def log_judged(self, model: Forecaster) -> None:
        """The model as the backtest judges it, before it was finished on all of the data."""
        with mlflow_errors("the judged model cannot be logged"), TemporaryDirectory(prefix="forecaster-") as folder:
            model.save(Path(folder) / JUDGED)
            self._client.log_artifacts(self.run_id, folder)

    def log_backtest(self, result: Backtest, *, model_uri: str) -> None:
        """Metrics (also on the logged model), tables per window, step and series, and every forecast."""
        import mlflow

        with mlflow_errors("the backtest cannot be logged"):
            metrics = {BACKTEST + key: float(value) for key, value in result.metrics.items()}
            mlflow.log_metrics(metrics, model_id=model_uri.removeprefix("models:/"))
            for name in TABLES:
                table: pd.DataFrame = getattr(result, name)
                # A table that is there already would be appended to; a repeated step writes a fresh one.
                text = table.astype({column: str for column in table.select_dtypes(["datetime", "datetimetz"])})
                mlflow.log_dict(
                    json.loads(text.to_json(orient="split", index=False, double_precision=10)), f"{BACKTEST}{name}.json"
                )
            # What `mlflow.log_table` writes, so that the UI offers them as tables.
            tables = [{"path": f"{BACKTEST}{name}.json", "type": "table"} for name in TABLES]
            self.tag({"mlflow.loggedArtifacts": json.dumps(tables)})
            with TemporaryDirectory(prefix="forecaster-") as folder:
                path = Path(folder) / "forecasts.parquet"
                result.forecasts.to_parquet(path, index=False)
                mlflow.log_artifact(str(path), BACKTEST.rstrip("/"))

    def log_metrics(self, metrics: Mapping[str, float], prefix: str) -> None:
        """Metrics that belong to the whole run, under names that start with `prefix`."""
        import mlflow

        with mlflow_errors(f"metrics {prefix} cannot be logged"):
            mlflow.log_metrics({f"{prefix}{key}": float(value) for key, value in metrics.items()})

    def log_learning_curve(self, history: list[dict[str, float]]) -> None:
        """Losses, gradient norm and clipped share by epoch, as a page that needs no network."""
        if history:
            self._log_page("learning_curve", page("Learning curve", [learning_curve(history)]))

    def log_backtest_plots(self, result: Backtest, panel: Panel, config: Config) -> None:
        """Error by step and example forecasts, as a page that needs no network."""
        self._log_page("backtest", backtest_page(result, panel, config))

    def _log_page(self, name: str, html: str) -> None:
        # Not `mlflow.log_figure`: its pages fetch plotly from elsewhere for every figure.
        with mlflow_errors("the plots cannot be logged"):
            self._client.log_text(self.run_id, html, f"plots/{name}.html")

    def tag(self, tags: Mapping[str, str]) -> None:
        """Write tags on the run."""
        import mlflow

        with mlflow_errors("tags cannot be written"):
            mlflow.set_tags(dict(tags))

    def describe(self, text: str) -> None:
        """Give the run its description, Markdown for people."""
        self.tag({NOTE: text})


@contextmanager
def start_run(
    client: MlflowClient, experiment: str, name: str | None = None, *, tracking_uri: str | None = None
) -> Iterator[TrainingRun]:
    """Open a run; it ends with the block: finished, failed on an error, killed on Ctrl-C.

    Parameters
    ----------
    client
        An open connection.
    experiment
        Name of the experiment; created if there is none.
    name
        Of the run, for people; None: MLflow draws one.
    tracking_uri
        Where the store is, to place the artifacts of a local one beside it.

    Raises
    ------
    InputError
        The experiment is deleted.
    RegistryError
        MLflow cannot open a run.
    """
    import mlflow

    with mlflow_errors(f"experiment {experiment!r} cannot be opened"):
        if client.get_experiment_by_name(experiment) is None:
            root = artifact_root(tracking_uri_or_default(tracking_uri))
            with unless_there():
                client.create_experiment(experiment, artifact_location=root, tags=KIND)
        found = cast(Any, client.get_experiment_by_name(experiment))
        if found.lifecycle_stage != "active":
            raise InputError(
                f"experiment {experiment!r} is deleted in MLflow; expected another name, or one that is there again "
                f"(mlflow experiments restore -x {found.experiment_id})"
            )
        run = mlflow.start_run(experiment_id=found.experiment_id, run_name=name)
    with _ending(run.info.run_id):
        yield TrainingRun(client, run.info.run_id)


@contextmanager
def resume_run(client: MlflowClient, run_id: str) -> Iterator[TrainingRun]:
    """Open a run again that has ended, to add to it."""
    import mlflow

    with mlflow_errors(f"run {run_id} cannot be opened", f"there is no run {run_id}"):
        mlflow.start_run(run_id=run_id)
    with _ending(run_id):
        yield TrainingRun(client, run_id)


def model_uri_of(client: MlflowClient, run_id: str) -> str:
    """URI of the model that a run logged.

    Raises
    ------
    InputError
        There is no such run, or it logged no model.
    """
    with mlflow_errors(f"run {run_id} cannot be read", f"there is no run {run_id}"):
        uri = client.get_run(run_id).data.tags.get(MODEL_URI)
    if uri is None:
        raise InputError(f"run {run_id} has logged no model")
    return str(uri)


def backtest_metrics(client: MlflowClient, run_id: str) -> dict[str, float] | None:
    """Backtest metrics of a run, None if it has none."""
    with mlflow_errors(f"run {run_id} cannot be read", f"there is no run {run_id}"):
        metrics = client.get_run(run_id).data.metrics
    return {key.removeprefix(BACKTEST): value for key, value in metrics.items() if key.startswith(BACKTEST)} or None


def choices_of(client: MlflowClient, run_id: str) -> list[str]:
    """What a run's data chose, and why, a sentence each."""
    with mlflow_errors(f"run {run_id} cannot be read", f"there is no run {run_id}"):
        tags = client.get_run(run_id).data.tags
    return [tags[key] for key in sorted(tags) if key.startswith(CHOICE)]


@contextmanager
def _ending(run_id: str) -> Iterator[None]:
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        yield
    except BaseException as error:
        with suppress(MlflowException, OSError):  # why it ended matters more than where that is written
            mlflow.end_run("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    with mlflow_errors(f"run {run_id} cannot be closed"):
        mlflow.end_run("FINISHED")


def git_commit(folder: Path) -> str | None:
    """Commit of the repository around a folder, or None outside of any."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
