"""From a model reference to a `Forecaster`: an artifact folder, a registered name with alias or version, a run's model.

Reads only; the registry's aliases and decisions are `pipelines.registry`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from forecaster import ArtifactError, Forecaster, InputError
from pipelines.connection import RegistryError, connect, mlflow_errors
from pipelines.registry import known_instead, version_of_alias

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["JUDGED", "LoadedModel", "is_logged_model", "load_as_judged", "load_judged", "load_model"]

ARTIFACT_PATH = "artifacts/forecaster"
JUDGED = "judged"
"""Folder of a run's artifacts with the model as it was judged, before it was finished on all of the data."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model and where it came from; `name` and `version` are None for a folder."""

    forecaster: Forecaster
    reference: str
    name: str | None = None
    version: str | None = None


def load_model(reference: str | Path, tracking_uri: str | None = None) -> LoadedModel:
    """Load a model from a folder or from the registry.

    Parameters
    ----------
    reference
        An artifact folder, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
    tracking_uri
        Where the registry is; None takes the environment's or the default.

    Raises
    ------
    InputError
        There is no such folder, name, alias or version.
    ArtifactError
        The artifact is damaged, of another format, or gone from the registry's files.
    RegistryError
        MLflow cannot be reached.
    """
    text = str(reference)
    if not text.startswith("models:/"):
        folder = Path(reference)
        if not folder.is_dir():
            raise InputError(f"model {text!r} is neither a folder nor of the form models:/NAME@ALIAS")
        nested = folder / ARTIFACT_PATH  # a downloaded MLflow model carries the artifact folder inside
        return LoadedModel(Forecaster.load(nested if nested.is_dir() else folder), text)
    client = connect(tracking_uri)
    if is_logged_model(text):
        return LoadedModel(_download(text), text)
    name, version = _parse(text)
    if version.startswith("@"):
        number = version_of_alias(client, name, version[1:])
        if number is None:
            raise InputError(f"model {name!r} has no version with alias {version[1:]!r}{known_instead(client, name)}")
        version = number
    missing = f"model {name!r} has no version {version!r}{known_instead(client, name)}"
    with mlflow_errors(f"model {text} cannot be found", missing):
        client.get_model_version(name, version)
    return LoadedModel(_download(f"models:/{name}/{version}"), text, name, version)


def load_as_judged(client: MlflowClient, name: str, version: str, tracking_uri: str | None = None) -> Forecaster:
    """Load the judged twin of a registered version, or the version itself where no whole twin is left or ever was.

    Raises
    ------
    InputError, ArtifactError, RegistryError
        See `load_model`.
    """
    with mlflow_errors(f"model {name!r} cannot be read", f"model {name!r} has no version {version!r}"):
        run_id = client.get_model_version(name, version).run_id  # none where it was brought from elsewhere
    try:
        judged = load_judged(client, run_id) if run_id else None
    except (InputError, ArtifactError):
        judged = None
    return judged or load_model(f"models:/{name}/{version}", tracking_uri).forecaster


def load_judged(client: MlflowClient, run_id: str) -> Forecaster | None:
    """Load the judged twin of a run's model; None if the run kept none.

    Raises
    ------
    InputError
        There is no such run.
    ArtifactError
        The artifact is damaged or of another format.
    RegistryError
        MLflow cannot be reached.
    """
    missing = f"there is no run {run_id}"
    with mlflow_errors(f"run {run_id} cannot be read", missing), TemporaryDirectory(prefix="forecaster-") as folder:
        if not any(found.path == JUDGED for found in client.list_artifacts(run_id)):
            return None
        return _read(Path(client.download_artifacts(run_id, JUDGED, folder)), f"{JUDGED} of run {run_id}")


def is_logged_model(reference: str) -> bool:
    """Whether a reference is a logged model's id, ``models:/m-…``, rather than a registered name."""
    rest = reference.removeprefix("models:/")
    return rest.startswith("m-") and len(rest) == len("m-") + 32 and "@" not in rest


def _download(uri: str) -> Forecaster:
    from mlflow.artifacts import download_artifacts, list_artifacts

    # MLflow takes a path below a registered version, but reads one below a logged model's id as NAME/STAGE.
    below = "" if is_logged_model(uri) else f"/{ARTIFACT_PATH}"
    with TemporaryDirectory(prefix="forecaster-") as folder:
        try:
            with mlflow_errors(f"model {uri} cannot be downloaded"):
                path = Path(download_artifacts(artifact_uri=uri + below, dst_path=folder))
        except RegistryError:
            with mlflow_errors(f"model {uri} cannot be downloaded"):
                if list_artifacts(artifact_uri=uri + below):
                    raise
                others = list_artifacts(artifact_uri=uri)
            what = "holds no artifact of forecaster" if others else "is registered, but its files are gone"
            raise ArtifactError(f"model {uri} {what}") from None
        return _read(path if below else path / ARTIFACT_PATH, uri)


def _read(folder: Path, name: str) -> Forecaster:
    """Load from a folder that is gone when anyone could look: what is said of it is said of where it came from."""
    try:
        return Forecaster.load(folder)
    except ArtifactError as error:
        raise ArtifactError(str(error).replace(str(folder), name)) from error


def _parse(reference: str) -> tuple[str, str]:
    rest = reference.removeprefix("models:/")
    name, at, alias = rest.partition("@")
    if at and name and alias and "/" not in name:
        return name, f"@{alias}"
    name, slash, version = rest.partition("/")
    if slash and name and version.isdecimal():
        return name, version
    raise InputError(f"model {reference!r} is not of the form models:/NAME@ALIAS or models:/NAME/VERSION")
