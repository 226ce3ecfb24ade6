"""What lies between two assets: a panel as Parquet, everything else as JSON. No pickles.

A step can therefore be repeated alone, in another process, from what the step before it left behind. Only the latest
value of an asset is kept, which is enough because runs of the schedule never overlap.
"""

import json
from typing import Any

import dagster as dg
import pandas as pd
from upath import UPath

from forecaster import Panel

__all__ = ["JsonStore", "PanelStore", "json_store", "panel_store"]


class JsonStore(dg.UPathIOManager):
    """Numbers, text, lists and tables of them."""

    extension = ".json"

    def dump_to_path(self, context: dg.OutputContext, obj: Any, path: UPath) -> None:
        """Write the value."""
        path.write_text(json.dumps(obj), encoding="utf-8")

    def load_from_path(self, context: dg.InputContext, path: UPath) -> Any:
        """Read it back."""
        return json.loads(path.read_text(encoding="utf-8"))


class PanelStore(dg.UPathIOManager):
    """A panel as a long frame; its frequency travels in the frame's attributes."""

    extension = ".parquet"

    def dump_to_path(self, context: dg.OutputContext, obj: Panel, path: UPath) -> None:
        """Write the frame."""
        frame = obj.to_frame()
        frame.attrs = {"freq": obj.calendar.freq}
        frame.to_parquet(path.path, index=False)

    def load_from_path(self, context: dg.InputContext, path: UPath) -> Panel:
        """Read and validate it again."""
        frame = pd.read_parquet(path.path)
        return Panel.from_frame(frame, frame.attrs["freq"])


@dg.io_manager
def json_store(context: dg.InitResourceContext) -> JsonStore:
    """Keep values in the instance's storage folder."""
    return JsonStore(UPath(_folder(context)))


@dg.io_manager
def panel_store(context: dg.InitResourceContext) -> PanelStore:
    """Keep panels in the instance's storage folder."""
    return PanelStore(UPath(_folder(context)))


def _folder(context: dg.InitResourceContext) -> str:
    if context.instance is None:
        raise dg.DagsterInvariantViolationError("values between assets need a Dagster instance to be kept in")
    return context.instance.storage_directory()
