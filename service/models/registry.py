"""The model registry: which version a reference names, and its artifact folder.

It knows MLflow's client and where a registered model holds the artifact; nothing of who serves it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sqlalchemy import create_engine

from service.errors import ModelError

__all__ = ["MlflowRegistry", "Reference", "Registry", "parse_reference"]

_SQLITE = "sqlite:///"
_POSTGRESQL = "postgresql"
_CONNECT_SECONDS = 5
_MISSING = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})  # the latter of an alias
_REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))")


class Reference(NamedTuple):
    """A registered model by alias or by version."""

    name: str
    alias: str | None
    version: str | None


def parse_reference(text: str) -> Reference | None:
    """The registered model that `text` names; None if it names a folder.

    Raises
    ------
    ModelError
        It begins like a registered model and is none.
    """
    if not text.startswith("models:"):
        return None
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise ModelError(
            f"model reference {text!r} is not understood; expected models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    return Reference(match["name"], match["alias"], match["version"])


class Registry(Protocol):
    """Where versions are looked up and fetched."""

    def version_of(self, reference: Reference) -> str:
        """The version behind a reference.

        Raises
        ------
        ModelError
            The registry answers, and has no such model.
        """

    def fetch(self, name: str, version: str, target: Path) -> Path:
        """Download a version below `target`; returns its artifact folder."""


class MlflowRegistry:
    """An MLflow tracking server or database.

    Parameters
    ----------
    tracking_uri
        Where it is.
    """

    def __init__(self, tracking_uri: str) -> None:
        self._database = None
        if tracking_uri.startswith(_SQLITE):
            self._database = Path(tracking_uri.removeprefix(_SQLITE)).absolute()
            tracking_uri = f"{_SQLITE}{self._database}"
        self._uri = tracking_uri
        self._client: Any = None

    def _connect(self) -> Any:
        if self._database is not None and not self._database.exists():
            # MLflow would create it.
            raise FileNotFoundError(
                f"there is no MLflow store at {self._uri}; train a model first, or set --tracking-uri"
            )
        if self._client is None:
            # Imported here: it takes seconds, and a model from a folder does not need it.
            # By itself the client would retry a dead server for minutes before saying so.
            if self._uri.startswith(_POSTGRESQL):
                engine = create_engine(self._uri, connect_args={"connect_timeout": _CONNECT_SECONDS})
                try:
                    engine.connect().close()
                finally:
                    engine.dispose()
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
            os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
            import mlflow

            # Downloads of models:/ references follow the process-wide settings, whatever the call says.
            mlflow.set_tracking_uri(self._uri)
            mlflow.set_registry_uri(self._uri)
            self._client = mlflow.MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
        return self._client

    def version_of(self, reference: Reference) -> str:
        """The version behind a reference."""
        if reference.version is not None:
            return reference.version
        client = self._connect()
        from mlflow.exceptions import MlflowException

        try:
            return str(client.get_model_version_by_alias(reference.name, reference.alias).version)
        except MlflowException as error:
            if error.error_code not in _MISSING:
                raise
            raise ModelError(
                f"model {reference.name!r} has no version with alias {reference.alias!r} in this registry"
            ) from error

    def fetch(self, name: str, version: str, target: Path) -> Path:
        """Download a version below `target`; returns its artifact folder."""
        self._connect()
        from mlflow.artifacts import download_artifacts

        root = Path(
            download_artifacts(
                artifact_uri=f"models:/{name}/{version}",
                dst_path=str(target),
                tracking_uri=self._uri,
                registry_uri=self._uri,
            )
        )
        for folder in (root / "artifacts" / "forecaster", root):
            if (folder / "manifest.json").exists():
                return folder
        found = sorted(root.rglob("manifest.json"))
        if not found:
            raise ModelError(f"model {name} {version} holds no forecaster artifact")
        return found[0].parent
