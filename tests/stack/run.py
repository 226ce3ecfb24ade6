"""``make stack-test``: the container stack, for real, from nothing to a forecast that survives its container.

A one-minute schedule trains and promotes by itself, twice, and the service takes the models up; observations are
streamed; the service's container is killed and started again; nothing acknowledged may be lost. Ends with the stack
taken down, exit status 0 if everything held.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import pandas as pd
from vega_datasets import data as vega

from tests.stack.compose import Stack, readable_folder

HISTORY_STEPS = 24 * 28
STREAMED_STEPS = 48
HORIZON = 24
PROMOTIONS = 2
SETTINGS = {
    "FORECASTER_SCHEDULE_FREQ": "h",
    "FORECASTER_SCHEDULE_HORIZON": str(HORIZON),
    "FORECASTER_SCHEDULE_SEASON": "[24]",
    "FORECASTER_SCHEDULE_NAME": "temperatures",
    "FORECASTER_SCHEDULE_CRON": "* * * * *",
    "FORECASTER_SCHEDULE_MAX_MINUTES": "1",
    # The second model is as good as the first; the gate shall let it in all the same.
    "FORECASTER_SCHEDULE_MARGIN": "-1",
    "FORECASTER_SCHEDULE_OVERRIDES": json.dumps(
        {"network.hidden_size": "16", "network.members": "1", "training.updates": "100"}
    ),
}

Series = dict[str, pd.DataFrame]


def main() -> None:
    """Run the test."""
    known, to_come = temperatures()
    with TemporaryDirectory(prefix="forecaster-stack-") as folder:
        frame = pd.concat(known.values())
        frame.to_parquet(readable_folder(Path(folder)) / "temperatures.parquet", index=False)
        say("building the images and starting the stack (minutes, the first time)")
        with (
            TemporaryDirectory(prefix="forecaster-stack-") as secret,
            Stack({**SETTINGS, "FORECASTER_DATA_FOLDER": folder}, readable_folder(Path(secret))) as stack,
            httpx.Client(
                base_url=stack.url("FORECASTER_PORT"), headers=stack.headers, timeout=60, trust_env=False
            ) as service,
        ):
            exercise(stack, service, known, to_come)
    say("the stack test passed, and nothing is left of the stack")


def exercise(stack: Stack, service: httpx.Client, known: Series, to_come: Series) -> None:
    """Do to the stack what its users and its accidents will do to it."""
    wait_until("the service is alive", lambda: answers(service, "/healthz"), minutes=5)
    keyless = httpx.get(f"{stack.url('FORECASTER_PORT')}/v1/streams", trust_env=False)
    expect(keyless.status_code == 401, "without a key nothing is answered")
    expect(not answers(service, "/readyz"), "without a champion the service says that it is not ready")
    wait_until("the schedule has trained and promoted by itself", lambda: answers(service, "/readyz"), minutes=10)
    wait_until(f"promotion {PROMOTIONS} has come too", lambda: champion(stack) >= PROMOTIONS, minutes=10)
    wait_until("Dagster counts them as successful runs", lambda: finished_runs(stack) >= PROMOTIONS, minutes=2)
    # From here on the models shall stay as they are, so that forecasts can be compared.
    stack.run("stop", "pipeline-daemon", "pipeline-code")
    wait_until("the service serves the champion", lambda: served(service) == champion(stack), minutes=2)

    for unique_id, history in known.items():
        put = service.put(f"/v1/streams/{unique_id}", json=columns(history))
        put.raise_for_status()
    half = STREAMED_STEPS // 2
    before = {unique_id: stream(service, unique_id, rows[:half]) for unique_id, rows in to_come.items()}
    say(f"{half} observations of {len(to_come)} series acknowledged one by one; now the container is killed")
    stack.run("kill", "-s", "SIGKILL", "forecaster")
    expect(not answers(service, "/healthz"), "the service is gone")
    stack.run("start", "forecaster")
    wait_until("the service is ready again", lambda: answers(service, "/readyz"), minutes=3)

    for unique_id, acknowledged in before.items():
        description = get(service, f"/v1/streams/{unique_id}")
        forecast = get(service, f"/v1/streams/{unique_id}/forecast")
        expect(description["version"] == acknowledged["version"], f"{unique_id}: every acknowledged change is there")
        expect(description["cutoff"] == acknowledged["cutoff"], f"{unique_id}: the cutoff is {description['cutoff']}")
        expect(same(forecast, acknowledged, 1e-6), f"{unique_id}: the forecast is the one from before the kill")
        repeated = stream(service, unique_id, to_come[unique_id][half - 1 : half])
        expect(repeated["version"] == acknowledged["version"], f"{unique_id}: a repeated observation changes nothing")
    after = {unique_id: stream(service, unique_id, rows[half:]) for unique_id, rows in to_come.items()}
    for unique_id, streamed in after.items():
        whole = pd.concat([known[unique_id], to_come[unique_id]])
        body = {"series": [{"unique_id": unique_id, **columns(whole)}]}
        answer = service.post("/v1/forecasts", json=body)
        answer.raise_for_status()
        expect(same(answer.json()["forecasts"][0], streamed, 1e-4), f"{unique_id}: streamed equals computed in one go")


def temperatures() -> tuple[Series, Series]:
    """Two cities' hourly temperatures, with some weather: four weeks that are known, and two days to come."""
    known, to_come = {}, {}
    rng = np.random.default_rng(0)
    for unique_id, read in (("seattle", vega.seattle_temps), ("san-francisco", vega.sf_temps)):
        raw = read()
        series = pd.DataFrame(
            {"unique_id": unique_id, "ds": pd.to_datetime(raw["date"]), "y": raw["temp"].astype(float)}
        )
        # One hour lacks and one repeats where the clocks change; the weeks taken here have neither.
        series = series.sort_values("ds").tail(HISTORY_STEPS + STREAMED_STEPS)
        # Averages of thirty years are too smooth for anything to beat the seasonal naive; the weather is ours.
        series["y"] += rng.normal(0, 3, len(series)).round(1)
        known[unique_id], to_come[unique_id] = series.head(HISTORY_STEPS), series.tail(STREAMED_STEPS)
    return known, to_come


def columns(series: pd.DataFrame) -> dict[str, list[Any]]:
    """Timestamps and values as the service takes them."""
    return {"ds": [stamp.isoformat() for stamp in series["ds"]], "y": series["y"].tolist()}


def stream(service: httpx.Client, unique_id: str, rows: pd.DataFrame) -> dict[str, Any]:
    """Send observations one by one; return the last answer."""
    for ds, y in zip(*columns(rows).values(), strict=True):
        answer = service.post(f"/v1/streams/{unique_id}/observations", json={"observations": [{"ds": ds, "y": y}]})
        answer.raise_for_status()
    return dict(answer.json())


def same(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> bool:
    """Whether two forecasts agree: model, times, and every quantile."""
    quantiles = [
        np.array([answer["quantiles"][level] for level in sorted(one["quantiles"])]) for answer in (one, other)
    ]
    facts = [[answer[key] for key in ("model", "cutoff", "ds")] for answer in (one, other)]
    return facts[0] == facts[1] and bool(np.allclose(*quantiles, rtol=tolerance, atol=0))


def served(service: httpx.Client) -> int:
    """Version of the model that answers."""
    body = {"series": [{"unique_id": "probe", "ds": ["2010-01-01T00:00:00"], "y": [1.0]}], "horizon": 1}
    answer = service.post("/v1/forecasts", json=body)
    return int(answer.json()["forecasts"][0]["model"]["version"]) if answer.is_success else 0


def champion(stack: Stack) -> int:
    """Version of the champion in MLflow; 0 if there is none."""
    address = f"{stack.url('MLFLOW_PORT')}/api/2.0/mlflow/registered-models/alias"
    answer = httpx.get(
        address, params={"name": SETTINGS["FORECASTER_SCHEDULE_NAME"], "alias": "champion"}, timeout=30, trust_env=False
    )
    return int(answer.json()["model_version"]["version"]) if answer.is_success else 0


def finished_runs(stack: Stack) -> int:
    """Successful runs, as Dagster's own interface counts them."""
    query = "{ runsOrError(filter: {statuses: [SUCCESS]}) { ... on Runs { results { runId } } } }"
    answer = httpx.post(
        f"{stack.url('DAGSTER_PORT')}/graphql", json={"query": query}, timeout=30, trust_env=False
    ).raise_for_status()
    return len(answer.json()["data"]["runsOrError"]["results"])


def get(service: httpx.Client, path: str) -> dict[str, Any]:
    """Fetch JSON."""
    return dict(service.get(path).raise_for_status().json())


def answers(service: httpx.Client, path: str) -> bool:
    """Whether a probe is answered with success."""
    try:
        return service.get(path).is_success
    except httpx.TransportError:
        return False


def wait_until(what: str, holds: Callable[[], bool], *, minutes: float) -> None:
    """Ask every second until it holds."""
    started = time.monotonic()
    while not holds():
        if time.monotonic() - started > 60 * minutes:
            raise SystemExit(f"not after {minutes:g} minutes: {what}")
        time.sleep(1)
    say(f"{what} ({time.monotonic() - started:.0f} s)")


def expect(holds: bool, what: str) -> None:
    """Stop the test if something does not hold."""
    if not holds:
        raise SystemExit(f"does not hold: {what}")
    say(what)


def say(text: str) -> None:
    """Tell how far the test is."""
    sys.stderr.write(f"stack-test: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
