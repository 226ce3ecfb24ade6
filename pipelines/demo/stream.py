"""The demo's client: streams observations to the service over HTTP and keeps its own log of what was acknowledged."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pandas as pd

from forecaster import ForecasterError
from pipelines.demo.scoreboard import Scoreboard

__all__ = ["Client", "Observation"]


@dataclass(frozen=True, slots=True)
class Observation:
    """One value at one time."""

    unique_id: str
    ds: str
    y: float


class Client:
    """Speaks to one service and remembers what it acknowledged.

    Parameters
    ----------
    url
        Of the service.
    scoreboard
        Told about every acknowledged observation and the forecast that came with it.
    """

    def __init__(self, url: str, scoreboard: Scoreboard) -> None:
        self._http = httpx.Client(base_url=url, timeout=30.0, trust_env=False)
        self._scoreboard = scoreboard
        self.acknowledged: list[Observation] = []
        self.versions: list[str] = []

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def create(self, unique_id: str, history: pd.DataFrame) -> None:
        """Create a stream with its history, and remember the first forecast."""
        stamps = [stamp.isoformat() for stamp in history["ds"]]
        values = [None if np.isnan(y) else y for y in history["y"]]
        self._checked(self._http.put(f"/v1/streams/{quote(unique_id, safe='')}", json={"ds": stamps, "y": values}))
        self._scoreboard.add_forecast(unique_id, self.forecast(unique_id)["quantiles"])

    def observe(self, observation: Observation) -> dict[str, Any]:
        """Send one observation; returns the new forecast.

        Raises
        ------
        httpx.TransportError
            The service is gone: nobody knows whether the observation was kept, so it has to be sent again.
        ForecasterError
            The service refused it.
        """
        started = time.perf_counter()
        reply = self._http.post(
            f"/v1/streams/{quote(observation.unique_id, safe='')}/observations",
            json={"observations": [{"ds": observation.ds, "y": observation.y}]},
        )
        seconds = time.perf_counter() - started
        forecast = self._checked(reply)
        self.acknowledged.append(observation)
        self.versions.append(str(forecast["model"]["version"]))
        self._scoreboard.add_observation(observation.unique_id, observation.y, seconds)
        self._scoreboard.add_forecast(observation.unique_id, forecast["quantiles"])
        return forecast

    def observe_all(self, observations: Iterable[Observation]) -> None:
        """Send observations one by one, each after the one before was acknowledged."""
        for observation in observations:
            self.observe(observation)

    def forecast(self, unique_id: str) -> dict[str, Any]:
        """The present forecast of a stream."""
        return self._checked(self._http.get(f"/v1/streams/{quote(unique_id, safe='')}/forecast"))

    def _checked(self, reply: httpx.Response) -> dict[str, Any]:
        body = reply.json()
        if reply.is_error:
            raise ForecasterError(
                f"the service answered {reply.status_code}: {body.get('detail') or body.get('title')}"
            )
        return dict(body)
