"""Benchmarks: training updates against bare PyTorch loops of the same shapes, then the service's own benchmark.

Ours and the bare loops take turns within one run, so that a busy machine slows all of them alike; medians count. Each
result is one JSON line on standard output. The service's part runs in a process of its own (`service.benchmark`).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from forecaster import InputError
from pipelines.console import Reporter, plain_json

__all__ = ["benchmark_training", "run_benchmarks"]

PARTS = ("training", "service")


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a training update: lanes, steps per chunk, hidden width, layers, horizon."""

    lanes: int = 128
    chunk_length: int = 56
    hidden_size: int = 64
    num_layers: int = 2
    horizon: int = 48
    season: int = 24


def run_benchmarks(reporter: Reporter, *, quick: bool = False, only: str | None = None) -> int:
    """Run all benchmarks, or one part.

    Parameters
    ----------
    reporter
        Gets the table at the end.
    quick
        Shorter measurements.
    only
        ``training`` or ``service``.

    Returns
    -------
    int
        Exit status: 0, or 1 if the service's benchmark failed.

    Raises
    ------
    InputError
        `only` names no part.
    """
    if only is not None and only not in PARTS:
        raise InputError(f"--only is {only!r}, expected one of {', '.join(PARTS)}")
    rows: list[dict[str, Any]] = []
    status = 0
    if only in (None, "training"):
        for shape in training_shapes():
            for row in benchmark_training(shape, rounds=2 if quick else 5, seconds=2.0 if quick else 6.0):
                rows.append(row)
                write_line(plain_json(row))
    if only in (None, "service"):
        status = relay_service_benchmark(rows, quick=quick)
    columns = ["benchmark", "value", "unit", "ratio", "target", "of", "reference", "p50 ms", "p99 ms"]
    keys = ["benchmark", "value", "unit", "ratio", "target", "reference", "reference_is", "p50_ms", "p99_ms"]
    reporter.table("Benchmarks", columns, [[row.get(key) for key in keys] for row in rows])
    return status


def training_shapes() -> list[Shape]:
    """Shapes of an update to measure: the default's, and on a GPU one with more for it to do."""
    import torch

    return [Shape(), Shape(lanes=512)] if torch.cuda.is_available() else [Shape()]


def benchmark_training(shape: Shape, *, rounds: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Measure our training updates, of one network and of an ensemble, and two bare loops by turns.

    Parameters
    ----------
    shape
        Sizes that all of them share.
    rounds
        Turns of each.
    seconds
        Length of a turn.

    Yields
    ------
    dict
        Updates per second, ours against a bare `nn.LSTM`, and against one with a linear quantile decoder at every
        step, which is the work that a forking-sequences loss cannot avoid; and an ensemble, as the default is on a
        panel of this size, against the one bare `nn.LSTM`. A bare loop has one thread or all, as suits it best, and
        keeps the memory that it frees.
    """
    import torch

    from forecaster.training.choosing import ENSEMBLES

    threads = torch.get_num_threads()
    turns: dict[tuple[str, int], Callable[[float], float]] = {
        ("ours", threads): ours(shape),
        ("ensemble", threads): ours(shape, members=ENSEMBLES[0]),
    }
    for name, decoder in (("lstm", False), ("lstm_decoder", True)):
        turns |= {(name, count): bare(shape, decoder=decoder) for count in (1, threads)}
    rates: dict[tuple[str, int], list[float]] = {key: [] for key in turns}
    for _ in range(rounds):
        for key, turn in turns.items():
            torch.set_num_threads(key[1])
            rates[key].append(turn(seconds))
    torch.set_num_threads(threads)
    median: dict[str, float] = {}
    for (name, _), values in rates.items():
        median[name] = max(median.get(name, 0.0), statistics.median(values))
    sizes = {
        "lanes": shape.lanes,
        "chunk_length": shape.chunk_length,
        "hidden_size": shape.hidden_size,
        "num_layers": shape.num_layers,
        "horizon": shape.horizon,
    }
    lstm = "bare nn.LSTM: forward, backward, clip, AdamW"
    for benchmark, subject, rival, target, reference in (
        ("training", "ours", "lstm", 0.7, lstm),
        ("training", "ours", "lstm_decoder", None, "bare nn.LSTM with a linear quantile decoder at every step"),
        ("training_ensemble", "ensemble", "lstm", None, f"one {lstm}; here an update trains {ENSEMBLES[0]} networks"),
    ):
        yield {
            "benchmark": benchmark,
            "value": round(median[subject], 2),
            "unit": "updates/s",
            "ratio": round(median[subject] / median[rival], 3),
            "target": target,
            "reference": round(median[rival], 2),
            "reference_is": reference,
            "rounds": rounds,
            "threads": threads,
            **sizes,
        }


def ours(shape: Shape, members: int = 1) -> Callable[[float], float]:
    """Return a turn of our training: updates per second of `fit` on a made-up panel."""
    import numpy as np

    from forecaster import Calendar, Config, Panel
    from forecaster.training import fit

    generator = np.random.default_rng(0)
    steps = shape.chunk_length * 16  # as long as M4's hourly series
    time_steps = np.arange(steps)
    series = []
    for lane in range(shape.lanes):
        wave = 10 + np.sin(2 * np.pi * (time_steps + lane) / shape.season) + 0.1 * generator.standard_normal(steps)
        series.append((f"series {lane}", 0, wave))
    panel = Panel.from_series(Calendar("1"), series)
    config = Config.from_dict(
        {
            "freq": "1",
            "horizon": shape.horizon,
            "seasonality": [shape.season, 7 * shape.season],
            "network": {"hidden_size": shape.hidden_size, "num_layers": shape.num_layers, "members": members},
            "training": {
                "lanes": shape.lanes,
                "chunk_length": shape.chunk_length,
                "updates": 1_000_000,  # never reached: a turn ends by time
                "epoch_updates": 20,  # many turns of an epoch, as in a real run, but several in the time at hand
                "validation_horizons": 0,
            },
        }
    )

    def turn(seconds: float) -> float:
        fitted = fit(panel, config, max_minutes=seconds / 60)
        rates = [row["updates_per_second"] for row in fitted.history]
        return statistics.median(rates[1:] or rates)  # the first epoch pays for starting up

    return turn


def bare(shape: Shape, *, decoder: bool) -> Callable[[float], float]:
    """Return a turn of a plain loop: forward, backward, clip, AdamW, on inputs of the same shapes."""
    import torch
    from torch import nn

    from forecaster import Config
    from forecaster.features import feature_size
    from forecaster.training.memory import keep_freed

    config = Config(freq="1", horizon=shape.horizon, seasonality=(shape.season, 7 * shape.season))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    levels = torch.tensor(config.quantile_levels, device=device)
    torch.manual_seed(0)
    lstm = nn.LSTM(feature_size(config.ring_length), shape.hidden_size, shape.num_layers, dropout=0.1, batch_first=True)
    lstm = lstm.to(device)
    head = nn.Linear(shape.hidden_size, shape.horizon * len(levels)).to(device) if decoder else None
    parameters = [*lstm.parameters(), *(head.parameters() if head is not None else ())]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    inputs = torch.randn(shape.lanes, shape.chunk_length, lstm.input_size, device=device)
    targets = torch.randn(shape.lanes, shape.chunk_length, shape.horizon, 1, device=device)

    def update(carry: tuple[torch.Tensor, torch.Tensor] | None) -> tuple[torch.Tensor, torch.Tensor]:
        output, (hidden, cell) = lstm(inputs, carry)
        if head is None:
            loss = output.square().mean()
        else:
            error = targets - head(output).unflatten(-1, (shape.horizon, len(levels)))
            loss = torch.maximum(levels * error, (levels - 1) * error).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return hidden.detach(), cell.detach()

    def turn(seconds: float) -> float:
        keep_freed(of_any_size=True)  # as in our training; its blocks are of the whole batch, and larger
        carry = update(None)
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            carry = update(carry)
            done += 1
        float(carry[0].sum())  # a GPU is done when this is known
        return done / (time.perf_counter() - started)

    return turn


def relay_service_benchmark(rows: list[dict[str, Any]], *, quick: bool) -> int:
    """Run the service's benchmark as a process and pass its JSON lines on; returns its exit status as 0 or 1."""
    command = [sys.executable, "-m", "service.benchmark", "--json-lines"]
    if quick:
        command += ["--seconds", "1", "--rounds", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            write_line(line.rstrip("\n"))
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                rows.append(row)
    return 0 if process.returncode == 0 else 1


def write_line(line: str) -> None:
    """Write one line on standard output at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
