"""Engine updates per second against a bare `nn.LSTM` step, both on one thread.

Subject: what the engine does with a micro-batch between request and forecast. From rows of the slab and one observation
each it makes new states (scaling, features, recurrent layers, calibration, scores), and then writes them over the rows;
"placed" says that it also finds where each observation lay in what was forecast for it, and forecasts the next step.
Reference: one step of a bare `nn.LSTM` with the same input size, hidden size, layers and batch, given its input and
state ready-made: no scaling, no features, no slab.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch

from forecaster import Forecaster
from service.engine.slab import Slab

__all__ = ["measure_steps"]

_BATCHES = (1, 32, 512, 4096)


def measure_steps(forecaster: Forecaster, seconds: float) -> Iterator[dict[str, object]]:
    """One result per batch size."""
    config = forecaster.config
    torch.set_num_threads(1)
    with torch.inference_mode():
        inputs = _input_size(forecaster)
        lstm = torch.nn.LSTM(inputs, config.network.hidden_size, config.network.num_layers).eval()
        for batch in _BATCHES:
            slab = Slab(forecaster, 2 * batch)
            rows = torch.randperm(2 * batch)[:batch]
            history = torch.rand(batch, 2 * config.ring_length, dtype=torch.float64) + 10
            slab.scatter(rows, forecaster.fold(slab.gather(rows), history))
            y = torch.rand(batch, dtype=torch.float64) + 10
            x = torch.randn(1, batch, inputs)
            state = (torch.zeros(config.network.num_layers, batch, config.network.hidden_size),) * 2

            def update(slab: Slab = slab, rows: torch.Tensor = rows, y: torch.Tensor = y) -> None:
                slab.scatter(rows, slab.change(rows, y))

            def placed(slab: Slab = slab, rows: torch.Tensor = rows, y: torch.Tensor = y) -> None:
                forecaster.place(slab.ahead(rows), y)
                change = slab.change(rows, y)
                slab.scatter(rows, change, slab.foretell(change))

            def bare(x: torch.Tensor = x, state: tuple[torch.Tensor, torch.Tensor] = state) -> None:
                lstm(x, state)

            for name, subject in (("updates", update), ("placed_updates", placed)):
                ours, reference = interleave(subject, bare, seconds / 2)
                yield {
                    "benchmark": f"engine_{name}_batch_{batch}",
                    "value": round(batch / ours),
                    "unit": "updates/s",
                    "reference": round(batch / reference),
                    "reference_is": "bare nn.LSTM step, input and state ready-made",
                    "ratio": round(reference / ours, 3),
                    "input_size": inputs,
                }


def interleave(subject: Callable[[], None], reference: Callable[[], None], seconds: float) -> tuple[float, float]:
    """Median seconds of both, run in turns for `seconds` in all."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(3):
        subject()
        reference()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for function, kept in zip((subject, reference), times, strict=True):
            started = time.perf_counter()
            function()
            kept.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def _input_size(forecaster: Forecaster) -> int:
    from forecaster.features import feature_size

    return feature_size(forecaster.config.ring_length)
