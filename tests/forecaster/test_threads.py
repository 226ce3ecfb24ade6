"""Threads that follow lanes: the gradients of one that follows all, for every model, and the same ones every time."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from forecaster import Calendar, Config, Panel
from forecaster.network import ForecastNetwork
from forecaster.recurrent import RecurrentState
from forecaster.training import fit
from forecaster.training.data import ChunkDataModule
from forecaster.training.module import TrainingModule
from forecaster.training.preparing import Preparation, Prepared
from forecaster.training.threads import FEWEST_LANES, ChunkThreads

LANES = 3 * FEWEST_LANES + 1


@pytest.fixture(autouse=True)
def _several_threads() -> Iterator[None]:
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


def config_of(**changes: Any) -> Config:
    made: dict[str, Any] = {
        "freq": "h",
        "horizon": 5,
        "seasonality": [4],
        "transform": "linear",
        "network": {"hidden_size": 8, "members": 1, "dropout": 0.0},
        "training": {"lanes": LANES, "chunk_length": 12, "imagined": "off", "updates": 9, "epoch_updates": 3},
        "covariates": {"calendar": [], "holidays": ""},
    }
    return Config.from_dict({**made, **changes})


def panel_of(config: Config) -> Panel:
    """More series than lanes, of unlike length, some missing over many steps."""
    generator = np.random.default_rng(0)
    values = [generator.poisson(4, 40 + row).astype(float) for row in range(LANES + 20)]
    for y in values[::3]:
        y[10:30] = np.nan
    series = [(f"series {row}", 0, y) for row, y in enumerate(values)]
    return Panel.from_series(Calendar("h"), series).with_covariates(config.covariates)


def module_of(config: Config) -> tuple[TrainingModule, list[Prepared]]:
    """With weights that are all at work, and some chunks that follow each other."""
    torch.manual_seed(0)
    network = ForecastNetwork(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    lanes = ChunkDataModule(panel_of(config), config).lanes
    preparation = Preparation(network, lanes.generator)
    chunks = [preparation.finish(draft) for draft in islice(preparation.drafts(lanes), 8)]
    return TrainingModule(network, updates=10, max_seconds=None), chunks


MODELS: list[dict[str, Any]] = [
    {},
    {"network": {"hidden_size": 8, "members": 3, "dropout": 0.0}},
    {"network": {"hidden_size": 8, "members": 1, "dropout": 0.0, "cell": "gru"}},
    {"head": "student_t"},
    {"head": "negative_binomial"},
    {"covariates": {"calendar": ["day", "week"], "holidays": "DE"}},
]


@pytest.mark.parametrize("changes", MODELS)
def test_threads_have_the_losses_gradients_and_carries_of_one(changes: dict[str, Any]) -> None:
    module, chunks = module_of(config_of(**changes))
    threads = ChunkThreads(module.network, module.score, 3)

    alone: RecurrentState | None = None
    together: RecurrentState | None = None
    for batch in chunks:
        module.network.zero_grad()
        loss, alone = module.score(alone, batch)
        loss.backward()
        expected = [copy.copy(own.grad) for own in module.network.parameters()]
        judged, judged_carry = threads.run(together, batch, learn=False)
        found, together = threads.run(together, batch)
        torch.testing.assert_close((judged, judged_carry), (found, together), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found, loss.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
        for own, gradient in zip(module.network.parameters(), expected, strict=True):
            torch.testing.assert_close(own.grad, gradient, rtol=1e-4, atol=1e-6)
    threads.close()


@pytest.mark.parametrize("changes", MODELS)
def test_lanes_apart_are_what_they_are_together(changes: dict[str, Any]) -> None:
    _, chunks = module_of(config_of(**changes))

    for batch in chunks:
        parts = [batch.of_lanes(slice(start, start + 10)) for start in range(0, LANES, 10)]
        whole = {(kept % LANES, kept // LANES): row for row, kept in enumerate(batch.kept.tolist())}
        for start, part in zip(range(0, LANES, 10), parts, strict=True):
            rows = len(part.features)
            torch.testing.assert_close(part.features, batch.features[start : start + rows], rtol=0, atol=0)
            own = [whole.pop((start + kept % rows, kept // rows)) for kept in part.kept.tolist()]
            for name in ("anchors", "target", "weight", "frame"):
                mine, theirs = getattr(part, name), getattr(batch, name)
                expected = theirs.at(own) if name == "frame" else theirs[own]
                torch.testing.assert_close(mine, expected, rtol=0, atol=0, equal_nan=True)
        assert not whole, "an origin of the chunk is in no part"


def test_few_lanes_are_followed_by_few_threads_and_a_chunk_without_targets_counts_nothing() -> None:
    module, (batch, *_) = module_of(config_of())
    met: list[int] = []

    def score(carry: RecurrentState | None, part: Prepared) -> tuple[torch.Tensor, RecurrentState]:
        met.append(len(part.features))
        assert torch.get_num_threads() == 1  # an operation shared out within a thread takes a multiple of the time
        return module.score(carry, part)

    threads = ChunkThreads(module.network, score, 3)
    loss, _ = threads.run(None, batch.of_lanes(slice(0, FEWEST_LANES + 3)))
    assert met == [FEWEST_LANES + 3]
    assert loss > 0

    unknown = batch._replace(target=torch.full_like(batch.target, torch.nan))
    loss, _ = threads.run(None, unknown)
    assert sorted(met[1:]) == [FEWEST_LANES, FEWEST_LANES, FEWEST_LANES + 1]
    assert loss == 0
    assert all(own.grad is None or not own.grad.any() for own in module.network.parameters())
    threads.close()


def test_the_same_seed_trains_the_same_weights_and_leaves_no_thread_behind() -> None:
    config = config_of(network={"hidden_size": 8, "members": 2, "dropout": 0.3})

    one, two = (fit(panel_of(config), config).forecaster for _ in range(2))

    assert one.fingerprint() == two.fingerprint()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("lanes")]
    assert torch.get_num_threads() == 3


def test_threads_end_with_a_training_that_is_interrupted() -> None:
    def interrupted(row: dict[str, float]) -> None:
        raise InterruptedError

    config = config_of()
    with pytest.raises(InterruptedError):
        fit(panel_of(config), config, on_epoch=interrupted)

    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("lanes")]


def test_a_training_leaves_no_thread_behind_for_the_garbage_collector_to_end() -> None:
    """It waits for them in whichever thread it runs; in one that is just starting, nothing would ever go on."""
    config, before = config_of(), set(threading.enumerate())

    fit(panel_of(config), config)

    assert set(threading.enumerate()) <= before
