"""The demo's acts with a live server: replay, crash and recovery, model swap.

Whatever an act claims, it has checked; a claim that does not hold is an error.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import httpx
import numpy as np
import pandas as pd

from forecaster import ForecasterError, Panel
from pipelines.connection import connect
from pipelines.demo.board import Board, running_board
from pipelines.demo.stage import MODEL, Stage, request
from pipelines.demo.stream import Observation
from pipelines.loading import load_model
from pipelines.registry import promote
from pipelines.train import train

__all__ = ["check_state", "crash", "replay", "swap"]

TOLERANCE = 1e-4
SECOND_MINUTES = 0.4
SWAP_SECONDS = 60.0


def replay(stage: Stage, observations: Sequence[Observation], board: Board) -> None:
    """Stream observations and keep the board up to date."""
    for observation in observations:
        stage.client.observe(observation)
        board.update(observation.ds)


def crash(stage: Stage, observations: Sequence[Observation]) -> None:
    """Kill the server under load, restart it, and check that every acknowledged observation is still there.

    Raises
    ------
    ForecasterError
        One was lost, or the server would not come back.
    """
    gone = threading.Event()

    def send() -> None:
        try:
            stage.client.observe_all(observations)
        except httpx.TransportError:
            gone.set()

    before = len(stage.client.acknowledged)
    sender = threading.Thread(target=send, name="sender")
    sender.start()
    time.sleep(0.3)
    pid = stage.server.pid
    stage.server.kill()
    sender.join()
    if not gone.is_set():
        raise ForecasterError("the server was killed too late: all observations had been sent")
    known = len(stage.client.acknowledged)
    stage.reporter.notice(
        f"killed process {pid} with {known} observations acknowledged, {known - before} of them in the last 0.3 s"
    )
    seconds = stage.server.start()
    for name in stage.cities.names:
        last = max(o.ds for o in stage.client.acknowledged if o.unique_id == name)
        cutoff = stage.client.forecast(name)["cutoff"]
        # One more may be there: the observation whose acknowledgement the kill cut off.
        if pd.Timestamp(cutoff) < pd.Timestamp(last):
            raise ForecasterError(
                f"observations of {name} were lost: acknowledged up to {last}, the server knows them up to {cutoff}"
            )
    stage.results["crash"] = {"acknowledged": known, "restart_seconds": round(seconds, 2), "lost": 0}
    stage.reporter.notice(f"restarted in {seconds:.1f} s; nothing acknowledged was lost")


def check_state(stage: Stage) -> None:
    """Compare the service's forecasts with a batch recompute from the log that the client kept.

    Raises
    ------
    ForecasterError
        They differ.
    """
    live = {name: stage.client.forecast(name) for name in stage.cities.names}
    version = next(iter(live.values()))["model"]["version"]
    model = load_model(f"models:/{MODEL}/{version}", stage.tracking_uri).forecaster
    log = pd.concat([stage.cities.history, stage.cities.replay], ignore_index=True)
    cutoffs = pd.to_datetime(log["unique_id"].map({name: forecast["cutoff"] for name, forecast in live.items()}))
    known = log[log["ds"] <= cutoffs].sort_values(["unique_id", "ds"], kind="stable")
    batch = model.forecast_frame(Panel.from_frame(known, "h"))
    worst = 0.0
    for name, forecast in live.items():
        rows = batch[batch["unique_id"] == name]
        for level, values in forecast["quantiles"].items():
            expected = rows[level].to_numpy(dtype=float)
            worst = max(worst, float(np.max(np.abs(np.array(values) - expected) / np.maximum(np.abs(expected), 1e-9))))
    if not worst <= TOLERANCE:
        raise ForecasterError(
            f"live forecasts differ from a batch recompute by {worst:.2g} relative, more than {TOLERANCE:g}"
        )
    stage.results.setdefault("batch_difference", []).append(worst)
    stage.reporter.notice(
        f"forecasts equal a batch recompute with version {version}: largest relative difference {worst:.1e}"
    )


def swap(stage: Stage, observations: Sequence[Observation]) -> None:
    """Train and promote a second version, and stream on until replies name it, without one failed request.

    Raises
    ------
    ForecasterError
        A request failed, or the new version did not appear in time.
    """
    result = train(request(stage.folder, stage.tracking_uri, minutes=SECOND_MINUTES, seed=1), stage.reporter)
    stage.reporter.notice(
        f"version {result.version}: the gate says {'yes' if result.promoted else 'no'}, {result.reason}"
    )
    if not result.promoted:
        promote(connect(stage.tracking_uri), MODEL, result.version, force=True)
        stage.reporter.notice("promoted by hand, to show the swap")
    started, sent, asked = time.monotonic(), 0, 0
    with running_board(stage.reporter, stage.scoreboard) as board:
        while stage.client.versions[-1] != result.version or sent < len(observations):
            if time.monotonic() - started > SWAP_SECONDS:
                raise ForecasterError(
                    f"the service still answers with version {stage.client.versions[-1]} after {SWAP_SECONDS:g} s"
                )
            if sent < len(observations):
                stage.client.observe(observations[sent])
                board.update(observations[sent].ds)
                sent += 1
                time.sleep(0.02)  # spreads the last days over the seconds that the swap takes
            else:
                version = str(stage.client.forecast(stage.cities.names[asked % 2])["model"]["version"])
                stage.client.versions.append(version)
                asked += 1
                time.sleep(0.05)
    changes = sum(a != b for a, b in zip(stage.client.versions, stage.client.versions[1:], strict=False))
    if changes != 1:
        raise ForecasterError(f"replies changed between model versions {changes} times, expected once")
    stage.results["swap"] = {
        "version": result.version,
        "requests": sent + asked,
        "failed_requests": 0,  # the first one would have ended the demo
        "second_model": result.to_dict(),
    }
    stage.reporter.notice(
        f"replies name version {result.version}; {sent + asked} requests during the swap, none failed, "
        "none went back to the old version"
    )
