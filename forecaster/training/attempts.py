"""Attempts: a run whose validation loss rises at last is followed by one with fewer lanes, and the better one is kept.

A schedule passes over few series many times, and what the passes have in common is learnt by heart. As many updates of
fewer lanes are fewer passes, through longer segments. No look at the data tells which is better, so where there are
signs of it, both are tried. Invariant: all attempts are judged by the same loss on the same windows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from forecaster.config import Config
from forecaster.network import ForecastNetwork
from forecaster.panel import Panel
from forecaster.training.clock import Clock
from forecaster.training.data import FEWEST_JUDGED, ChunkDataModule, judged
from forecaster.training.stage import Weights, train_stage
from forecaster.training.starting import start

__all__ = ["Attempt", "best_attempt", "fresh"]

FEWER = 4
"""Times as few lanes in the next attempt."""

RISEN = 0.05
"""Share of the least validation loss by which that of the last weights exceeds it where much is learnt by heart."""

CLEAR = 0.01
"""Share of the validation loss by which the next attempt must lower it; less is chance."""

NEEDED = 0.6
"""Seconds that an attempt may take, per second of the one before it: a quarter of the lanes takes half as long."""


class Attempt(NamedTuple):
    """One run, with the weights that were best on the validation part."""

    network: ForecastNetwork
    data: ChunkDataModule
    weights: Weights


def fresh(config: Config, data: ChunkDataModule) -> ForecastNetwork:
    """New weights, with the scales of covariates as the part to learn from has them."""
    network = ForecastNetwork(config)
    if network.covariates is not None:
        network.covariates.standardise(data.lanes.panel)
    if config.training.start == "regression":
        start(network, data.sources)
    return network


def best_attempt(
    network: ForecastNetwork, data: ChunkDataModule, panel: Panel, clock: Clock, *, again: bool
) -> tuple[Attempt, tuple[str, ...]]:
    """Train in place, and if that calls for it and there is time, others with fewer lanes.

    Parameters
    ----------
    network, data
        Of the first attempt.
    panel
        That the data are of.
    clock
        Of the stage that ends with the last attempt.
    again
        Whether others may follow at all.

    Returns
    -------
    best
        Of the least validation loss, or an earlier one where that is as good.
    reasons
        Why it has as many lanes as it has, if there was more than one.
    """
    updates, began = data.updates, clock.elapsed
    best = Attempt(network, data, train_stage(network, data, updates, clock))
    tried = [f"{best.weights.loss:.4g} with {data.lanes.lanes}, after {best.weights.updates} updates"]
    again = again and judged(panel, data.held_out) >= FEWEST_JUDGED
    while again and _has_risen(best.weights) and data.lanes.lanes >= FEWER:
        if clock.remaining < NEEDED * (clock.elapsed - began):
            break
        began = clock.elapsed
        lanes = data.lanes.lanes // FEWER
        config = replace(network.config, training=replace(network.config.training, lanes=lanes))
        data = ChunkDataModule(panel, config, data.held_out, data.blocks)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # what is not taken leaves no trace
            torch.manual_seed(config.training.seed)
            network = fresh(config, data)
            weights = train_stage(network, data, updates, clock.until(clock.share))
        tried.append(f"{weights.loss:.4g} with {lanes}, after {weights.updates}")
        again = best.weights.loss - weights.loss > CLEAR * abs(best.weights.loss)
        if again:
            best = Attempt(network, data, weights)
    because = f"lanes {best.data.lanes.lanes}: least validation losses of {updates} updates were {'; '.join(tried)}"
    return best, (because,) if len(tried) > 1 else ()


def _has_risen(weights: Weights) -> bool:
    return weights.last - weights.loss > RISEN * abs(weights.loss)
