"""Training on a GPU: the same mathematics, the same rules. `pytest -m gpu` on a machine that has one."""

from __future__ import annotations

import copy
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule

from forecaster import Calendar, Config, Panel
from forecaster.network import ForecastNetwork
from forecaster.training import fit
from forecaster.training.data import ChunkDataModule
from forecaster.training.graph import ChunkGraph
from forecaster.training.module import TrainingModule
from forecaster.training.preparing import Preparation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here"),
]


def config_of(**changes: Any) -> Config:
    made: dict[str, Any] = {
        "freq": "h",
        "horizon": 24,
        "seasonality": [24],
        "transform": "log",
        "network": {"hidden_size": 32, "members": 1, "dropout": 0.0},
        "training": {"lanes": 16, "chunk_length": 40, "imagined": "off", "updates": 60, "epoch_updates": 20},
        "covariates": {"calendar": [], "holidays": ""},
    }
    return Config.from_dict({**made, **changes})


def panel_of(counts: bool) -> Panel:
    generator, steps = np.random.default_rng(0), np.arange(600)
    values = [
        10 + 5 * np.sin(2 * np.pi * (steps + row) / 24) + generator.standard_normal(len(steps)) for row in range(40)
    ]
    return Panel.from_series(
        Calendar("h"), [(f"series {row}", 0, np.round(y).clip(min=0) if counts else y) for row, y in enumerate(values)]
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"network": {"hidden_size": 32, "members": 3, "dropout": 0.0}},
        {"head": "student_t"},
        {"head": "negative_binomial"},
        {"covariates": {"calendar": ["day", "week"], "holidays": "DE"}},
        {"network": {"hidden_size": 32, "members": 1, "cell": "gru", "dropout": 0.0}},
    ],
)
def test_a_graph_has_the_losses_gradients_and_carries_of_the_same_chunks_on_the_processor(
    changes: dict[str, Any],
) -> None:
    config = config_of(**changes)
    panel = panel_of(config.counts).with_covariates(config.covariates)
    lanes = ChunkDataModule(panel, config).lanes
    torch.manual_seed(0)
    network = ForecastNetwork(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    preparation = Preparation(network, lanes.generator, fixed=True)
    here = TrainingModule(network, updates=10, max_seconds=None)
    there = TrainingModule(copy.deepcopy(network).cuda(), updates=10, max_seconds=None).cuda()

    carry, graph = None, None
    for batch in (preparation.finish(draft) for draft in islice(preparation.drafts(lanes), 12)):
        network.zero_grad()
        loss, carry = here.score(carry, batch)
        loss.backward()
        if graph is None:
            moved = LightningModule.transfer_batch_to_device(there, batch, torch.device("cuda"), 0)
            graph = ChunkGraph(there.network, there.score, moved)
        found = float(graph.run(batch))

        assert found == pytest.approx(float(loss.detach()), rel=1e-3)
        for one, two in zip(network.parameters(), there.network.parameters(), strict=True):
            if one.grad is not None and one.grad.norm() > 1e-4:
                assert two.grad is not None
                assert (one.grad - two.grad.cpu()).norm() < 0.02 * one.grad.norm()  # products in TF32


def test_what_was_trained_on_a_gpu_is_served_by_the_processor_and_leaves_no_trace() -> None:
    panel = panel_of(counts=False)
    here, there = torch.random.get_rng_state(), torch.cuda.get_rng_state()

    trained = fit(panel, config_of())
    alike = fit(panel, config_of(training={**config_of().to_dict()["training"], "accelerator": "cpu"}))

    assert torch.equal(torch.random.get_rng_state(), here)
    assert torch.equal(torch.cuda.get_rng_state(), there)
    assert any(torch.cuda.get_device_name() in reason for reason in trained.reasons)
    assert not any(torch.cuda.get_device_name() in reason for reason in alike.reasons)
    one, two = ([row["val_loss"] for row in found.history if "val_loss" in row] for found in (trained, alike))
    assert one == pytest.approx(two, rel=0.1)
    state = trained.forecaster.warm_up_panel(panel)
    assert np.isfinite(trained.forecaster.forecast(state)).all()
    assert not any(parameter.is_cuda for parameter in trained.forecaster._network.parameters())
