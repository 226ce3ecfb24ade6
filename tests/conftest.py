"""Fixtures that every test folder shares, and how property tests run."""

from __future__ import annotations

import gc
import os

# Tiny tensors gain nothing from threads, and test processes share few cores. `torch.set_num_threads` is no help to
# threads that PyTorch has not met yet: their first layers take every core, unless PyTorch was told at its import.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from hypothesis import HealthCheck, settings

from forecaster import Forecaster
from tests.forecaster.kit import TINY, TINY_LINEAR, forecaster_of

# Every run draws the same examples; `--hypothesis-profile=explore` looks for new ones. Timing never decides a test.
settings.register_profile(
    "house",
    derandomize=True,
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("explore", settings.get_profile("house"), derandomize=False, max_examples=500)
settings.load_profile("house")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """A process per core for the whole suite; none but this one for chosen files, which are done sooner so."""
    return None if config.args_source is pytest.Config.ArgsSource.TESTPATHS else 0


def pytest_configure(config: pytest.Config) -> None:
    """PyTorch says once that it runs projected LSTMs on its own kernels; nothing to act on."""
    config.addinivalue_line("filterwarnings", "ignore:LSTM with projections is not supported with oneDNN")


def pytest_collection_finish() -> None:
    """What has been imported and collected stays: looking for garbage in it took a fifth of the tests' time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_forecaster() -> Forecaster:
    """Hourly, horizon 6, season 4, hidden size 8, for positive series; random weights, none of them zero."""
    return forecaster_of(TINY)


@pytest.fixture(scope="session")
def tiny_linear_forecaster() -> Forecaster:
    """The same for series of any sign."""
    return forecaster_of(TINY_LINEAR)
