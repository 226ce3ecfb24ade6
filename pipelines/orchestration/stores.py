"""What lies between two assets: JSON. No pickles.

A step can therefore be repeated alone, in another process, from what the step before it left behind. Only the latest
value of an asset is kept, which is enough because runs of the schedule never overlap.
"""

import json
from pathlib import Path
from typing import Any

import dagster as dg

__all__ = ["JsonStore", "json_store", "storage_folder"]


class JsonStore(dg.IOManager):
    """Text, numbers, and tables of them, one file per asset.

    Parameters
    ----------
    folder
        Where the files lie; created when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Write an asset's value."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path(context.asset_key).write_text(json.dumps(obj), encoding="utf-8")

    def load_input(self, context: dg.InputContext) -> Any:
        """Read the value of the asset that another one needs."""
        return json.loads(self._path(context.asset_key).read_text(encoding="utf-8"))

    def _path(self, key: dg.AssetKey) -> Path:
        return self._folder / f"{'.'.join(key.path)}.json"


@dg.io_manager
def json_store(context: dg.InitResourceContext) -> JsonStore:
    """Keep values in the instance's storage folder."""
    return JsonStore(storage_folder(context.instance))


def storage_folder(instance: dg.DagsterInstance | None) -> Path:
    """Where an instance keeps what lies between assets."""
    if instance is None:
        raise dg.DagsterInvariantViolationError("values between assets need a Dagster instance to be kept in")
    return Path(instance.storage_directory())
