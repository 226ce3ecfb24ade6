"""Other libraries on the same tasks: their data written out, their program run, their forecasts scored by our metrics.

Each library runs in a process of an environment of its own (`peer_process.py`), so that the pinned environment stays
clean; what passes between is one folder per run. Their times are processor times on the same machine; ours of training
is wall-clock time, which is no less on one thread.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from forecaster import ForecasterError, InputError
from pipelines.benchmarks import peer_process
from pipelines.benchmarks.protocols import PROTOCOLS, Protocol, Task, check_files, load
from pipelines.benchmarks.report import WORDS, Row, Table, group, number, spread
from pipelines.benchmarks.scores import LEVELS, score_batches
from pipelines.console import Reporter

__all__ = ["PEERS", "PeersRequest", "best_wql", "ours", "peers_table", "read_lines", "require_some", "run_peers"]

Float = npt.NDArray[np.float64]

SELF_CHECK = "plain-naive"
PEERS = tuple(name for name in peer_process.PEERS if name != SELF_CHECK)
"""Who is compared by default."""

CONTEXT = {"m4-hourly": 168, "m4-weekly": 52, "nn5-daily": 28, "exchange-rate": 60}
"""Window that the libraries encode, in steps; elsewhere two of the longest season."""

CALENDAR = {"m4-hourly": "h", "m4-weekly": "W", "exchange-rate": "D"}
"""Frequency named to those that want one, where the set itself has only integer steps."""

SLOW = {"gluonts-deepar": 28, "darts-rnn": 28, "statsforecast": 28}
"""Most origins of those that draw 100 paths or refit for each; taken evenly from the protocol's."""

SCORED_AT_ONCE = 2**24


@dataclass(frozen=True, slots=True)
class PeersRequest:
    """What to compare.

    Parameters
    ----------
    folder
        With the parquet files of the data sets.
    protocols
        Which of them.
    peers
        Names from `PEERS`.
    python
        Interpreter of the environment that holds the libraries.
    steps
        Training steps of each trained library.
    seed
        Of each trained library.
    """

    folder: str
    protocols: Sequence[Protocol]
    peers: Sequence[str]
    python: str
    steps: int = 1000
    seed: int = 0

    def check(self) -> None:
        """Refuse before the work starts.

        Raises
        ------
        InputError
            Files, the interpreter or a library are unknown or missing.
        """
        check_files(self.protocols, self.folder)
        for name in self.peers:
            if name not in peer_process.PEERS:
                raise InputError(f"peer {name!r} is unknown, expected some of {', '.join(PEERS)}")
        if not Path(self.python).is_file():
            raise InputError(f"there is no interpreter {self.python}; make bench-peers builds the environment")
        if self.steps < 1:
            raise InputError(f"--steps must be at least 1, not {self.steps}")


def run_peers(request: PeersRequest, reporter: Reporter | None = None) -> Iterator[dict[str, Any]]:
    """Run library after library on set after set.

    Yields
    ------
    dict
        `set`, `peer`, `steps`, `origins`, all metrics, `fit_seconds`, `predict_seconds` (all origins), `update_seconds`
        (one more forecast of one series after one new value), `settings`, `versions`; or `set`, `peer`, `steps` and
        `problem` if the library failed.

    Raises
    ------
    InputError
        As in `PeersRequest.check`.
    """
    reporter = reporter or Reporter(quiet=True)
    request.check()
    for protocol in request.protocols:
        whole = load(protocol, request.folder)
        for peer in request.peers:
            task = replace(whole, protocol=thinned(protocol, most_origins(peer)))
            reporter.notice(f"{protocol.name}: {peer}, {len(task.protocol.origins)} origins")
            yield {"set": protocol.name, "peer": peer, "steps": request.steps, **run_peer(task, peer, request)}


def run_peer(task: Task, peer: str, request: PeersRequest) -> dict[str, Any]:
    """One library on one task."""
    with tempfile.TemporaryDirectory(prefix="forecaster-peer-") as name:
        folder = Path(name)
        hand_over(task, folder, steps=request.steps, seed=request.seed)
        # -P: the folder of the program must not become a place to import from.
        # Absolute, for the process starts in FOLDER; not resolved, or the link would lead out of the environment.
        command = [str(Path(request.python).absolute()), "-P", peer_process.__file__, peer, str(folder)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode or not (folder / "result.json").is_file():
            lines = done.stderr.strip().splitlines()
            return {"problem": lines[-1] if lines else f"status {done.returncode}"}
        result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        quantiles = np.load(folder / "quantiles.npy", mmap_mode="r", allow_pickle=False)
        origins = task.protocol.origins
        size = max(1, SCORED_AT_ONCE // int(np.prod(quantiles.shape[1:])))
        batches = (
            (origins[at : at + size], np.asarray(quantiles[at : at + size], dtype=np.float64))
            for at in range(0, len(origins), size)
        )
        return {"origins": len(origins), **score_batches(task, batches), **result}


def hand_over(task: Task, folder: Path, *, steps: int, seed: int) -> None:
    """Write a task for `peer_process`: gaps filled, because most libraries take none."""
    protocol, panel = task.protocol, task.panel
    parts = [
        pd.DataFrame({"unique_id": name, "y": without_gaps(y, len(y) - protocol.test)})
        for name, y in zip(panel.unique_ids, panel.values, strict=True)
    ]
    pd.concat(parts, ignore_index=True).to_parquet(folder / "series.parquet", index=False)
    ds = panel.calendar.to_index(panel.first_steps[:1])
    described = {
        "horizon": protocol.horizon,
        "period": protocol.period,
        "seasonality": list(protocol.seasonality),
        "context": CONTEXT.get(protocol.name, 2 * max(protocol.seasonality)),
        "calendar": CALENDAR.get(protocol.name, protocol.freq),
        "start": "2000-01-01" if protocol.freq == "1" else str(ds[0]),
        "test": protocol.test,
        "origins": list(protocol.origins),
        "levels": list(LEVELS),
        "steps": steps,
        "seed": seed,
    }
    (folder / "task.json").write_text(json.dumps(described), encoding="utf-8")


def without_gaps(y: Float, known: int) -> Float:
    """Gaps interpolated among the first `known` values, and later filled with the last value, which looks at no future.

    Missing values at the very beginning are left out.

    Examples
    --------
    >>> without_gaps(np.array([np.nan, 1.0, np.nan, 3.0, np.nan, 5.0]), 4)
    array([1., 2., 3., 3., 5.])
    """
    filled = pd.Series(y)
    filled[:known] = filled[:known].interpolate().to_numpy()
    return np.array(filled.ffill().dropna(), dtype=np.float64)


def most_origins(peer: str) -> int | None:
    """Most origins that a library is asked for; None for all."""
    return next((most for name, most in SLOW.items() if peer.startswith(name)), None)


def thinned(protocol: Protocol, most: int | None) -> Protocol:
    """The protocol with at most so many of its origins, evenly spaced from the first on."""
    count = len(protocol.origins)
    return protocol if most is None or count <= most else replace(protocol, step=protocol.step * -(-count // most))


def peers_table(rows: Iterable[Row]) -> Table:
    """One line per set and library, ours among them if its rows are."""
    columns = ["set", "method", "metric", "result", "WQL", "80 % coverage", "origins"]
    columns += ["fit", "all forecasts", "one more forecast"]
    lines = []
    for (name, peer), found in group(rows, "set", "peer").items():
        metrics = own_metrics(name)
        line = [str(name), str(peer), ", ".join(WORDS[metric] for metric in metrics)]
        if "problem" in found[0]:
            lines.append([*line, f"failed: {found[0]['problem']}"[:120], *(["-"] * (len(columns) - 4))])
            continue
        line += [", ".join(spread(found, metric) for metric in metrics)]
        line += [spread(found, "wql"), spread(found, "coverage_80")]
        line += [spread(found, "origins"), f"{spread(found, 'fit_seconds')} s", f"{spread(found, 'predict_seconds')} s"]
        lines.append([*line, f"{number(1000 * found[0]['update_seconds'], 3)} ms"])
    return columns, lines


def ours(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Rows of `run_accuracy` in the form of this comparison."""
    return [
        {
            **row,
            "peer": "forecaster",
            "fit_seconds": row["seconds"],
            "predict_seconds": row["seconds_to_score"],
            "update_seconds": row["forecast_us_single"] / 1e6,
        }
        for row in rows
        if row.get("label") == "default"
    ]


def own_metrics(name: str) -> list[str]:
    """Names of a set's own metrics."""
    return [target.metric for target in PROTOCOLS[name].targets] or ["mase"]


def read_lines(path: str) -> list[dict[str, Any]]:
    """Rows of a file of JSON lines, as earlier comparisons left them; none if there is no file yet.

    Raises
    ------
    InputError
        It cannot be read.
    """
    if not Path(path).exists():
        return []
    try:
        return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} holds no rows of a comparison: {error}") from error


def best_wql(rows: Iterable[Row]) -> dict[str, tuple[str, float]]:
    """For every set, the trained or fitted library with the lowest WQL."""
    best: dict[str, tuple[str, float]] = {}
    for row in rows:
        score = row.get("wql")
        if score is not None and score < best.get(row["set"], ("", float("inf")))[1]:
            best[row["set"]] = (str(row["peer"]), float(score))
    return best


def require_some(rows: Sequence[Row]) -> None:
    """Refuse to call it a success if every library failed.

    Raises
    ------
    ForecasterError
        With what they said.
    """
    if rows and all("problem" in row for row in rows):
        said = "; ".join(f"{row['peer']} on {row['set']}: {row['problem']}" for row in rows)
        raise ForecasterError(f"no library ran: {said}")
