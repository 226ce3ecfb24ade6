"""The door to MLflow: which server, quietly, and with its errors in our words.

Everything that talks to MLflow comes through here. Importing this module does not import MLflow (it takes seconds);
opening a connection does. Reading never creates a store: a database file that is not there is an error, not a new file.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from forecaster import ForecasterError, InputError
from pipelines.interruption import undisturbed

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "ARTIFACTS",
    "DEFAULT_TRACKING_URI",
    "RegistryError",
    "artifact_root",
    "connect",
    "mlflow_errors",
    "shorten",
    "tracking_uri_or_default",
    "unless_there",
    "without_password",
]

DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"
SQLITE = "sqlite:///"
POSTGRESQL = "postgresql"
CONNECT_SECONDS = 5
ARTIFACTS = "mlartifacts"
"""Folder beside a SQLite store that holds its artifacts."""

# MLflow reads its settings from the environment only. What a user has set stays.
QUIET_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
MISSING_CODES = frozenset({"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE"})


class RegistryError(ForecasterError):
    """MLflow could not be reached or refused a request."""


def tracking_uri_or_default(uri: str | None = None) -> str:
    """Choose the given URI, else `MLFLOW_TRACKING_URI`, else a local SQLite file; a SQLite path comes back absolute.

    Absolute, because MLflow keeps stores by their URI and would go on using one of an earlier working folder.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_TRACKING_URI
    if not uri.startswith(SQLITE):
        return uri
    return SQLITE + str(Path(uri.removeprefix(SQLITE)).absolute())


def connect(uri: str | None = None, *, create: bool = False) -> MlflowClient:
    """Open a client.

    Parameters
    ----------
    uri
        Tracking URI; None takes the environment's or the default.
    create
        Whether a SQLite database may be created. Commands that only read leave this off.

    Raises
    ------
    InputError
        The URI names a SQLite file (or, with `create`, a folder) that does not exist, no file at all, or a kind of
        store that MLflow does not open.
    RegistryError
        MLflow cannot open it.
    """
    uri = tracking_uri_or_default(uri)
    if uri.startswith(SQLITE):
        database = Path(uri.removeprefix(SQLITE))
        if "?" in uri:
            raise InputError(f"the MLflow store {uri} has options after the ?, expected sqlite:///FILE without any")
        if not create and not database.exists():
            raise InputError(f"there is no MLflow store at {uri}; train a model first, or set --tracking-uri")
        if not database.parent.is_dir():
            raise InputError(f"there is no folder {database.parent} for the MLflow store {uri}")
        if database.is_dir():
            raise InputError(f"the MLflow store {uri} is a folder, expected a file")
    elif uri == "sqlite://":
        raise InputError("the MLflow store sqlite:// is gone when the command ends, expected sqlite:///FILE")
    with quiet_import():
        import mlflow

        # Downloads of models:/ references look at MLflow's process-wide settings, not at the client's.
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        unknown = (
            f"MLflow opens no store like {without_password(uri)}, expected sqlite:///FILE, postgresql:// or http(s)://"
        )
        with mlflow_errors(f"MLflow at {uri} cannot be opened", unknown), _alone(uri):
            if uri.startswith(POSTGRESQL):
                _reach(uri)
            if uri.startswith(SQLITE) and not database.exists():
                _make(database)
            try:
                return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
            except ModuleNotFoundError as error:  # MLflow brings no drivers of databases
                raise InputError(
                    f"package {error.name} is needed for the MLflow store {without_password(uri)}"
                ) from error


def _reach(uri: str) -> None:
    """Connect to a database server once: MLflow would try for 100 s."""
    from sqlalchemy import create_engine

    engine = create_engine(uri, connect_args={"connect_timeout": CONNECT_SECONDS})
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _make(database: Path) -> None:
    """Make the tables in a folder of their own, then move the file: half of them make a store that never opens."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = database.with_name(f".{database.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    folder.mkdir()
    try:
        partial = folder / database.name
        SqlAlchemyStore(f"{SQLITE}{partial}", str(database.parent / ARTIFACTS)).engine.dispose()
        partial.replace(database)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Open a SQLite database one process at a time: of two that make MLflow's tables at once, one fails."""
    if not uri.startswith(SQLITE):
        yield
        return
    folder = os.open(Path(uri.removeprefix(SQLITE)).parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def artifact_root(uri: str) -> str | None:
    """Where artifacts of a local store go: `mlartifacts` beside the database; None lets a server decide."""
    if not uri.startswith(SQLITE):
        return None
    return str(Path(uri.removeprefix(SQLITE)).resolve().parent / ARTIFACTS)


@contextmanager
def quiet_import() -> Iterator[None]:
    """Import MLflow without its warnings about itself and without its log lines about database migrations."""
    for name, value in QUIET_SETTINGS.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It prints the traceback of what it raises, which is told in one line here.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


@contextmanager
def mlflow_errors(doing: str, missing: str | None = None) -> Iterator[None]:
    """Translate MLflow's errors, keep its warnings about itself away, and let Ctrl-C wait for what is under way.

    Parameters
    ----------
    doing
        Starts the sentence of a `RegistryError`.
    missing
        If given, MLflow's "no such thing" becomes an `InputError` with this text.

    Raises
    ------
    InputError
        MLflow knows no such thing and `missing` is given.
    RegistryError
        Anything else that MLflow complains about.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with undisturbed(), warnings.catch_warnings():
            # What MLflow's insides do that newer libraries advise against is not our users' concern.
            warnings.filterwarnings("ignore", module="mlflow")
            yield
    except OSError as error:  # artifacts go to the disk without MLflow's errors around them
        raise RegistryError(shorten(without_password(f"{doing}: {error}"))) from error
    except (MlflowException, SQLAlchemyError) as error:
        if missing is not None and getattr(error, "error_code", None) in MISSING_CODES:
            raise InputError(missing) from error
        said = str(getattr(error, "orig", error)).partition("[SQL:")[0]
        text = " ".join(said.split()) or type(error).__name__
        raise RegistryError(shorten(without_password(f"{doing}: {text}"))) from error


def without_password(text: str) -> str:
    """A text without the users and passwords of the URIs in it."""
    return re.sub(r"//[^/@\s]+@", "//", text)


@contextmanager
def unless_there() -> Iterator[None]:
    """Make something that another process may have made in the meantime."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def shorten(text: str, limit: int = 400) -> str:
    """A text that is no longer than a reader's patience."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
