"""What tests of training share: a small configuration, series, chunks, and a short fit."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from forecaster import Calendar, Config, CovariatesConfig, NetworkConfig, Panel, TrainingConfig
from forecaster.chunks import Chunk
from forecaster.network import ForecastNetwork
from forecaster.training import Fitted, fit
from forecaster.training.data import ChunkDataModule
from forecaster.training.module import TrainingModule
from forecaster.training.preparing import Preparation, Prepared
from tests.forecaster.kit import Float, network_of

CONFIG = Config(
    "1",
    horizon=4,
    seasonality=(4,),
    transform="linear",
    calibration="off",  # of what training leads to, not of what is made of it afterwards
    network=NetworkConfig(hidden_size=8, members=1, num_layers=2, dropout=0.1),
    training=TrainingConfig(
        lanes=6,
        chunk_length=12,
        updates=12,
        epoch_updates=4,
        averaging=0.5,
        learning_rate=5e-3,
        finish=0.0,
        imagined="off",
        start="regression",
    ),
    covariates=CovariatesConfig(calendar=()),
)


def with_training(**training: Any) -> Config:
    return dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, **training))


def histories(count: int = 8, length: int = 90) -> list[Float]:
    generator = np.random.default_rng(2)
    made = [
        10 + 3 * np.sin(np.arange(length + 3 * i) * np.pi / 2 + i) + generator.normal(0, 1, length + 3 * i)
        for i in range(count)
    ]
    made[-1][20:25] = np.nan
    return made


def panel_of(values: list[Float]) -> Panel:
    return Panel.from_series(Calendar("1"), [(f"s{i}", 50 * i, y) for i, y in enumerate(values)])


def updates_of_an_epoch() -> int:
    """One pass over the panel of `histories` under CONFIG."""
    return ChunkDataModule(panel_of(histories()), with_training(updates=1000)).epoch_updates


def module_of(config: Config = CONFIG) -> TrainingModule:
    network = ForecastNetwork(config)
    network.load_state_dict(network_of(config).state_dict())
    return TrainingModule(network, updates=10, max_seconds=None).eval()


def chunk_of(
    y: Float, future: Float, reset: tuple[int, ...] = (), start: tuple[int, ...] = (), prefix: Float | None = None
) -> Chunk:
    return Chunk(
        y=torch.from_numpy(y),
        future=torch.from_numpy(future),
        scored=torch.ones(y.shape, dtype=torch.bool),
        reset=torch.tensor(reset, dtype=torch.int64),
        prefix=torch.from_numpy(np.full((len(reset), 16), np.nan) if prefix is None else prefix),
        start=torch.tensor(start, dtype=torch.int64),
        step=torch.tensor(start, dtype=torch.int64),
        static=torch.empty(len(reset), 0, dtype=torch.float64),
        covariates=torch.empty(len(y), future.shape[1] + 1, 0, dtype=torch.float64),
    )


def noisy_chunk(rows: int = 3, seed: int = 0, **options: Any) -> Chunk:
    generator = np.random.default_rng(seed)
    return chunk_of(generator.normal(10, 2, (rows, 12)), generator.normal(10, 2, (rows, 15)), **options)


def first_chunk(rows: int = 3) -> Chunk:
    return noisy_chunk(rows, reset=tuple(range(rows)), start=(0,) * rows)


def ready(module: TrainingModule, *chunks: Chunk, generator: np.random.Generator | None = None) -> list[Prepared]:
    """Chunks that follow each other."""
    preparation = Preparation(module.network, generator)
    return [preparation.finish(draft) for draft in preparation.drafts(chunks)]


def fitted(config: Config = CONFIG, values: list[Float] | None = None, **options: Any) -> Fitted:
    return fit(panel_of(histories() if values is None else values), config, **options)
