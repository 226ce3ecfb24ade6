"""Compiled loops: the same numbers from a process that compiles them as from one that finds them in the cache.

Test processes of one fresh checkout do some of each, and a service is not to change its forecasts when it restarts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from itertools import product
from pathlib import Path

import numpy as np
import torch

from forecaster.scaling import Transform, advance
from forecaster.state import StateLayout
from tests.forecaster.kit import TINY, forecaster_of

ROOT = Path(__file__).parents[2]

KINDS: tuple[Transform, ...] = ("log", "linear")


def digest() -> str:
    """Of every state on the way through a few series, and of all that is forecast and said from there."""
    told = sha256()
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    y = torch.from_numpy(np.abs(generator.normal(20, 6, (3, 40))))
    y[1, 20:27] = torch.nan
    for width, kind in product((4, 6, 7, 24, 28), KINDS):
        history, state = advance(
            StateLayout(1, 1, 1, width, 4).initial(torch.tensor([0, 5, 9])), y, seasonality=(4,), kind=kind
        )
        parts = (*history.frame, history.table, history.difference)
        told.update(b"".join([part.numpy().tobytes() for part in parts] + state.to_bytes()))
    forecaster = forecaster_of(TINY)
    state = forecaster.initial_state([0, 5, 9])
    for values in y.T.contiguous():
        ahead = forecaster.ahead(state)
        told.update(forecaster.place(ahead, values).tobytes())
        told.update(forecaster.forecast(state).tobytes())
        state.assign(torch.arange(3), forecaster.change(state, torch.arange(3), values))
        told.update(b"".join(state.to_bytes()))
    told.update(b"".join(forecaster.fold(forecaster.initial_state([0, 5, 9]), y).to_bytes()))
    return told.hexdigest()


def digest_elsewhere(cache: Path) -> str:
    """Of another process, with this folder of compiled loops."""
    code = "from tests.forecaster.test_kernels import digest; print(digest())"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_loops_that_are_compiled_and_loops_that_are_read_give_the_same_numbers(tmp_path: Path) -> None:
    compiled = digest_elsewhere(tmp_path)
    loops = list(tmp_path.rglob("*.nbc"))
    read = digest_elsewhere(tmp_path)

    assert len(loops) > 8
    assert read == compiled
