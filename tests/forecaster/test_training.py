"""Training: what is carried, where the gradient is cut, what is clipped, what is kept, and that it learns at all."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import multiprocessing
import time
import warnings
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from forecaster import (
    Calendar,
    Config,
    CovariatesConfig,
    Forecaster,
    ForecasterError,
    InputError,
    NetworkConfig,
    Panel,
    PanelError,
    StreamState,
    TrainingConfig,
    backtest,
)
from forecaster.chunks import Chunk
from forecaster.heads.widening import LARGEST, UNSEEN
from forecaster.losses import pinball_loss
from forecaster.network import ForecastNetwork
from forecaster.recurrent import RecurrentState
from forecaster.scaling import transform
from forecaster.training import Fitted, choosing, fit
from forecaster.training.apart import MadeApart
from forecaster.training.calibrating import calibrate, drift_of
from forecaster.training.choosing import ENSEMBLES, choose, race_length
from forecaster.training.data import (
    IN_COMPANY,
    MOST_PASSES,
    SHORTEST_EPOCH,
    UPDATES,
    ChunkDataModule,
    held_out_steps,
)
from forecaster.training.module import TrainingModule, mixed_precision
from forecaster.training.preparing import Preparation, Prepared, ahead
from forecaster.training.windows import latest_blocks, windows_of
from tests.forecaster.kit import Float, Untimed, assert_identical_state, assert_same_state, network_of

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


# -- carry, detach, reset ------------------------------------------------------------------------------------------


def ready(module: TrainingModule, *chunks: Chunk, generator: np.random.Generator | None = None) -> list[Prepared]:
    """Chunks that follow each other."""
    preparation = Preparation(module.network, generator)
    return [preparation.finish(draft) for draft in preparation.drafts(chunks)]


def test_a_loss_reaches_the_carry_it_starts_from_and_the_carry_it_hands_on_is_cut() -> None:
    module = module_of()
    first, second = ready(module, first_chunk(), noisy_chunk(seed=1))
    _, carry = module.score(None, first)
    given = RecurrentState(*(part.clone().requires_grad_() for part in carry))

    loss, after = module.score(given, second)
    loss.backward()

    assert given.hidden.grad is not None
    assert given.hidden.grad.abs().max() > 0
    assert not any(part.requires_grad for part in (*carry, *after))


def test_the_gradient_of_a_chunk_does_not_reach_the_chunk_before() -> None:
    module = module_of()
    first, second = ready(module, first_chunk(), noisy_chunk(seed=1))
    _, carry = module.score(None, first)
    from_numbers = RecurrentState(*(torch.tensor(part.tolist()) for part in carry))

    gradients = []
    for state in (carry, from_numbers):
        module.zero_grad()
        module.score(state, second)[0].backward()
        gradients.append([p.grad.clone() for p in module.network.parameters() if p.grad is not None])

    for one, two in zip(*gradients, strict=True):
        assert torch.equal(one, two)


def scaling_of(state: StreamState) -> dict[str, torch.Tensor]:
    return {name: getattr(state, name) for name in ("ring", "statistics", "age", "silence", "last_step", "static")}


def test_without_a_reset_the_carry_is_the_state_of_an_unbroken_run() -> None:
    module, network = module_of(), network_of(CONFIG)
    chunks = [first_chunk(), noisy_chunk(seed=1), noisy_chunk(seed=2)]
    preparation = Preparation(module.network)

    carry = None
    for batch in ready(module, *chunks):
        _, carry = module.score(carry, batch)
    *_, latest = preparation.drafts([*chunks, noisy_chunk(seed=3)])

    assert carry is not None
    start = Forecaster(network).initial_state([0, 0, 0])
    unbroken = network.encode(start, torch.cat([chunk.y for chunk in chunks], 1))[1]
    hidden, cell = (part.transpose(0, 1) for part in carry)
    assert_same_state(unbroken.amended(hidden=hidden, cell=cell, **scaling_of(latest.begun)), unbroken)


def test_a_reset_lane_starts_afresh_and_no_other_lane_moves() -> None:
    module, preparation = module_of(), Preparation(network_of(CONFIG))
    prefix = np.full((1, 16), np.nan)
    prefix[0, -5:] = [9.0, 11.0, 10.0, 12.0, 9.5]
    chunks = [first_chunk(), noisy_chunk(seed=1, reset=(1,), start=(5,), prefix=prefix)]
    _, second = ready(module, *chunks)
    carry = RecurrentState(torch.randn(2, 3, 8), torch.randn(2, 3, 8))

    begun = module.begin(carry, second)

    for part, before in zip(begun, carry, strict=True):
        assert torch.equal(part[:, [0, 2]], before[:, [0, 2]])
        assert not part[:, 1].any()
    *_, latest = preparation.drafts(chunks)
    *_, alone = preparation.drafts([first_chunk(), noisy_chunk(seed=1)])
    assert_identical_state(latest.begun.select([0, 2]), alone.begun.select([0, 2]))
    assert latest.begun.age.tolist() == [12, 5, 12]


def test_a_lane_that_begins_late_has_the_scaling_state_of_the_values_before_it() -> None:
    network = network_of(CONFIG)
    y = histories(1)[0][:40]
    prefix = np.full((1, 48), np.nan)
    prefix[0, -40:] = y

    begun = Preparation(network).begin(None, noisy_chunk(1, reset=(0,), start=(40,), prefix=prefix))

    streamed = network.encode(Forecaster(network).initial_state([0]), torch.from_numpy(y[None]))[1]
    assert_same_state(streamed.amended(**scaling_of(begun)), streamed)


def test_a_chunk_that_resets_every_lane_does_not_depend_on_the_carry() -> None:
    module = module_of()
    before = noisy_chunk(seed=5, reset=(0, 1, 2), start=(0, 0, 0))
    first, later = ready(module, before, first_chunk())
    _, carry = module.score(None, first)

    with_carry, without = module.score(carry, later), module.score(None, *ready(module, first_chunk()))

    assert torch.equal(with_carry[0], without[0])
    for one, two in zip(with_carry[1], without[1], strict=True):
        assert torch.equal(one, two)


def test_prepared_by_many_threads_chunks_come_in_order_and_are_the_same() -> None:
    panel, network = panel_of(histories()), network_of(CONFIG)

    def chunks(workers: int) -> list[Prepared]:
        lanes = ChunkDataModule(panel, CONFIG).lanes
        preparation = Preparation(network, lanes.generator)
        return list(ahead(preparation.drafts(islice(lanes, 40)), preparation.finish, workers))

    one, several = chunks(1), chunks(3)

    assert len(one) == 40
    torch.testing.assert_close(one, several, rtol=0, atol=0, equal_nan=True)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize(("processes", "killed_after"), [(1, None), (1, 0), (3, None), (3, 7)])
def test_processes_of_their_own_make_the_same_chunks_and_so_does_whoever_takes_over(
    processes: int, killed_after: int | None
) -> None:
    panel, network = panel_of(histories()), network_of(CONFIG)
    lanes = ChunkDataModule(panel, CONFIG).lanes
    preparation = Preparation(network, lanes.generator, fixed=True)
    expected = [preparation.finish(draft) for draft in islice(preparation.drafts(lanes), 40)]
    again = ChunkDataModule(panel, CONFIG).lanes
    of_some = Preparation(network, again.generator, fixed=True)
    before = multiprocessing.active_children()

    def make(some: range) -> Iterator[Prepared]:
        return map(of_some.finish, of_some.drafts(again.chunks(some), again.lanes))

    made = MadeApart(make, 20, expected[0], processes)
    found, begun = [], []
    for _ in range(2):
        for chunk in made:
            begun = [child for child in multiprocessing.active_children() if child not in before] or begun
            if len(found) == killed_after:
                begun[-1].kill()
                begun[-1].join()
            found.append(copy.deepcopy(chunk))
    made.close()

    assert len(begun) == processes
    assert not any(child.is_alive() for child in begun)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_training_that_is_killed_leaves_no_process_behind() -> None:
    panel, network = panel_of(histories()), network_of(CONFIG)
    lanes = ChunkDataModule(panel, CONFIG).lanes
    preparation = Preparation(network, lanes.generator, fixed=True)
    like = preparation.finish(next(preparation.drafts(lanes)))
    ours, theirs = multiprocessing.Pipe()

    def train() -> None:
        made = MadeApart(lambda some: map(preparation.finish, preparation.drafts(lanes.chunks(some))), 1, like, 3)
        next(iter(made))
        theirs.send([child.pid for child in multiprocessing.active_children()])
        time.sleep(60)

    training = multiprocessing.get_context("fork").Process(target=train)
    training.start()
    begun = ours.recv() if ours.poll(60) else []
    training.kill()
    training.join()

    assert len(begun) == 3
    until = time.monotonic() + 30
    while any(_runs(process) for process in begun):
        assert time.monotonic() < until, "a process waits for chunks to be asked for by nobody"
        time.sleep(0.05)


def _runs(process: int) -> bool:
    """Whether a process is there, and not only its exit status, which its adoptive parent may not have read."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_what_a_gpu_learns_from_is_made_apart_and_ended_with_the_training() -> None:
    panel, network = panel_of(histories()), network_of(CONFIG)
    lanes = ChunkDataModule(panel, CONFIG).lanes
    preparation = Preparation(network, lanes.generator, fixed=True)
    before = multiprocessing.active_children()
    data = ChunkDataModule(panel, CONFIG).prepared_for(network, on_gpu=True)

    found = [copy.deepcopy(chunk) for _ in range(2) for chunk in data.train_dataloader()]
    begun = [child for child in multiprocessing.active_children() if child not in before]
    data.close()

    assert begun
    assert not any(child.is_alive() for child in begun)
    expected = [preparation.finish(draft) for draft in islice(preparation.drafts(lanes), 2 * data.epoch_updates)]
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_an_error_while_chunks_are_prepared_is_raised_where_they_are_used() -> None:
    chunks = ahead([2, 1, 0, 1], lambda number: 1 // number)

    assert [next(chunks), next(chunks)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(chunks)


@pytest.mark.parametrize("head", ["quantile", "student_t"])
def test_chunks_of_one_shape_have_the_loss_of_those_without_what_does_not_count(head: str) -> None:
    module = module_of(dataclasses.replace(CONFIG, head=head))
    lanes = ChunkDataModule(panel_of(histories()), CONFIG).lanes
    shapes = set()

    carry = None
    for chunk in islice(lanes, 30):
        ragged = Preparation(module.network)
        fixed = Preparation(module.network, fixed=True)
        begun = next(ragged.drafts([chunk]))
        one = module.score(carry, ragged.finish(begun))
        batch = fixed.finish(begun)
        two = module.score(carry, batch)
        shapes.add((batch.kept.shape, batch.target.shape, batch.features.shape, batch.fresh.shape))
        assert float(two[0].detach()) == pytest.approx(float(one[0].detach()), rel=1e-5)
        carry = one[1]

    assert len(shapes) == 1


# -- the loss ------------------------------------------------------------------------------------------------------


def test_steps_without_any_known_target_and_unscored_steps_count_nothing() -> None:
    module = module_of()
    chunk = first_chunk()
    scored = chunk.scored.clone()
    scored[:, 4:] = False
    cut_future = chunk.future.clone()
    cut_future[:, 7:] = torch.nan  # the last target of step 3

    by_mask = module.score(None, *ready(module, chunk._replace(scored=scored)))[0]
    by_missing = module.score(None, *ready(module, chunk._replace(future=cut_future, scored=scored)))[0]

    assert torch.equal(by_mask, by_missing)
    nothing = module.score(None, *ready(module, chunk._replace(scored=torch.zeros_like(scored))))[0]
    assert nothing == 0
    nothing.backward()


def test_where_only_last_origins_count_targets_of_others_do_not() -> None:
    module = module_of(with_training(origins="last"))
    generator = np.random.default_rng(0)  # as in training
    chunk = first_chunk()
    before, last = chunk.future.clone(), chunk.future.clone()
    before[:, :11] += 1  # step 11 is the last; its targets begin with future[11]
    last[:, 11:] += 1
    with torch.no_grad():
        losses = [
            float(module.score(None, *ready(module, chunk._replace(future=future), generator=generator))[0])
            for future in (chunk.future, before, last)
        ]

    assert losses[0] == losses[1] != losses[2]


def test_the_loss_is_the_pinball_loss_of_every_origin_in_its_own_coordinates() -> None:
    module, chunk = module_of(), first_chunk(2)
    network = module.network

    found, _ = module.score(None, *ready(module, chunk))

    encoded, _ = network.encode(Forecaster(network).initial_state([0, 0]), chunk.y)
    quantiles = network.decode(encoded)
    total = weights = 0.0
    for row in range(2):
        for k in range(12):
            frame = type(encoded.frame)(*(part[row, k] for part in encoded.frame))
            target = transform(chunk.future[row, k : k + 4], frame, "linear")
            unit, difference = float(frame.unit), float(encoded.difference[row, k])
            weight = min(5.0, unit / max(difference if difference > 0 else unit, 1e-3) ** 0.5)
            one = pinball_loss(quantiles[row, k], target, torch.tensor(CONFIG.quantile_levels), torch.tensor(1.0))
            total, weights = total + weight * float(one.detach()), weights + 1
    assert float(found.detach()) == pytest.approx(total / weights, rel=1e-5)


def test_changing_what_comes_after_the_held_out_cut_changes_no_training_chunk() -> None:
    values = histories()
    changed = [y.copy() for y in values]
    cut = CONFIG.horizon * CONFIG.training.validation_horizons
    for y in changed:
        y[-cut:] = 1e9

    def chunks(panel: Panel) -> list[Chunk]:
        stream = iter(ChunkDataModule(panel, CONFIG).lanes)
        return [next(stream) for _ in range(60)]

    for one, two in zip(chunks(panel_of(values)), chunks(panel_of(changed)), strict=True):
        for mine, theirs in zip(one, two, strict=True):
            if mine is not None:
                torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


def test_an_epoch_goes_on_where_the_last_one_stopped() -> None:
    data, whole = ChunkDataModule(panel_of(histories()), CONFIG), ChunkDataModule(panel_of(histories()), CONFIG)
    network = network_of(CONFIG)
    loader = data.prepared_for(network).train_dataloader()

    in_epochs = [batch for _ in range(3) for batch in loader]

    preparation = Preparation(network, whole.lanes.generator)
    unbroken = [preparation.finish(draft) for draft in islice(preparation.drafts(whole.lanes), len(in_epochs))]
    assert len(in_epochs) == 3 * data.epoch_updates
    torch.testing.assert_close(in_epochs, unbroken, rtol=0, atol=0, equal_nan=True)


# -- under the Trainer ---------------------------------------------------------------------------------------------


class Spy(pl.Callback):
    """Notes gradients around clipping, and carries around validation."""

    def __init__(self) -> None:
        self.before: list[dict[str, torch.Tensor]] = []
        self.after: list[dict[str, torch.Tensor]] = []
        self.carries: list[tuple[RecurrentState, RecurrentState]] = []
        self.carry: RecurrentState | None = None

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.before.append(gradients(pl_module))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.after.append(gradients(pl_module))

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.carry = copy.deepcopy(pl_module.carry)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.carries.append((self.carry, copy.deepcopy(pl_module.carry)))


def gradients(module: TrainingModule) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.network.named_parameters() if p.grad is not None}


def norm_of(parts: dict[str, torch.Tensor]) -> float:
    return float(torch.sqrt(sum((g.double() ** 2).sum() for g in parts.values())))  # type: ignore[arg-type]


@pytest.fixture
def _quiet() -> Iterator[None]:
    """Advice of Lightning about workers and intervals."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)


def trained(folder: Path, clip: float, updates: int = 12) -> tuple[Spy, TrainingModule]:
    torch.manual_seed(0)
    config = with_training(updates=updates)
    spy, module = Spy(), TrainingModule(ForecastNetwork(config), updates=updates, max_seconds=None)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=updates,
        gradient_clip_val=clip,
        callbacks=[spy],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=ChunkDataModule(panel_of(histories()), config).prepared_for(module.network))
    return spy, module


@pytest.mark.usefixtures("_quiet")
def test_gradients_are_clipped_by_their_global_norm(tmp_path: Path) -> None:
    clip = 0.05
    spy, _ = trained(tmp_path, clip)

    assert len(spy.before) == len(spy.after) == 12
    for before, after in zip(spy.before, spy.after, strict=True):
        norm = norm_of(before)
        assert norm > clip
        assert norm_of(after) == pytest.approx(clip, rel=1e-3)
        for name, gradient in before.items():
            torch.testing.assert_close(after[name], gradient * (clip / norm), rtol=1e-3, atol=1e-8)


@pytest.mark.usefixtures("_quiet")
def test_gradients_within_the_norm_are_left_alone(tmp_path: Path) -> None:
    spy, _ = trained(tmp_path, 1e6)

    for before, after in zip(spy.before, spy.after, strict=True):
        for name, gradient in before.items():
            torch.testing.assert_close(after[name], gradient, rtol=1e-6, atol=0)


@pytest.mark.usefixtures("_quiet")
def test_validation_has_a_carry_of_its_own(tmp_path: Path) -> None:
    spy, module = trained(tmp_path, 1.0, updates=3 * updates_of_an_epoch())

    assert len(spy.carries) == 3
    for before, after in spy.carries:
        assert torch.equal(before.hidden, after.hidden)
        assert torch.equal(before.cell, after.cell)
    assert module.validation_carry is not None
    assert not torch.equal(module.validation_carry.hidden, spy.carries[-1][1].hidden)


# -- fit -----------------------------------------------------------------------------------------------------------


def fitted(config: Config = CONFIG, values: list[Float] | None = None, **options: Any) -> Fitted:
    return fit(panel_of(histories() if values is None else values), config, **options)


def test_the_same_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others() -> None:
    torch.manual_seed(1)
    one = fitted().forecaster
    torch.manual_seed(2)
    two = fitted().forecaster
    other = fitted(with_training(seed=1)).forecaster

    assert one.fingerprint() == two.fingerprint()
    assert other.fingerprint() != one.fingerprint()
    chosen = dataclasses.replace(CONFIG.covariates, holidays="")
    assert other.config == dataclasses.replace(with_training(seed=1), support="nonnegative", covariates=chosen)


def test_training_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    random, level = torch.random.get_rng_state(), logging.getLogger("lightning.pytorch").level
    panel = panel_of(histories())
    fingerprint = panel.fingerprint()

    fit(panel, CONFIG)

    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.random.get_rng_state(), random)
    assert logging.getLogger("lightning.pytorch").level == level
    assert panel.fingerprint() == fingerprint


def test_the_history_has_a_row_per_epoch_as_it_was_told() -> None:
    told: list[dict[str, float]] = []

    history = fitted(with_training(updates=3 * updates_of_an_epoch()), on_epoch=told.append).history

    assert history == told
    assert [row["epoch"] for row in history] == [0, 1, 2]
    for row in history:
        assert set(row) == {
            "epoch", "train_loss", "val_loss", "learning_rate", "gradient_norm", "clipped_share", "updates_per_second",
            "seconds", "progress",
        }  # fmt: skip
        assert all(np.isfinite(value) for value in row.values())
        assert 0 <= row["clipped_share"] <= 1
        assert row["gradient_norm"] > 0
    assert [row["progress"] for row in history] == pytest.approx([1 / 3, 2 / 3, 1])


@pytest.mark.parametrize("averaging", [0.0, 0.5])
def test_the_weights_of_every_epoch_are_handed_out_as_they_would_be_served(averaging: float) -> None:
    config = with_training(averaging=averaging, updates=3 * updates_of_an_epoch(), pull="off")
    seen: list[tuple[float, Forecaster]] = []

    found = fitted(config, on_weights=lambda *one: seen.append(one))

    assert [seconds for seconds, _ in seen] == [row["seconds"] for row in found.history]
    losses = [row["val_loss"] for row in found.history]
    assert [validation_loss(weights, config) for _, weights in seen] == pytest.approx(losses, rel=1e-4)
    assert seen[int(np.argmin(losses))][1].fingerprint() == found.forecaster.fingerprint()


def test_every_stage_learns_in_training_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members of an ensemble learn one by one, with dropout, and from spreads as they are decoded."""
    step, modes = TrainingModule.training_step, []

    def spied(self: TrainingModule, batch: Prepared, batch_idx: int) -> torch.Tensor:
        modes.append({part.training for part in self.modules()})
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", spied)
    config = dataclasses.replace(with_training(finish=0.5), calibration="adaptive", transform="auto")

    found = fitted(config)

    stages = sum("val_loss" not in row for row in found.history)
    assert stages > 0
    assert len(modes) > 12
    assert all(mode == {True} for mode in modes)


@pytest.mark.parametrize("changes", [{"carry": False}, {"carry": False, "origins": "last"}])
def test_training_from_windows_makes_other_weights(changes: dict[str, Any]) -> None:
    assert fitted(with_training(**changes)).forecaster.fingerprint() != fitted().forecaster.fingerprint()


def test_the_share_of_clipped_updates_is_told() -> None:
    assert {row["clipped_share"] for row in fitted(with_training(gradient_clip_val=1e-6)).history} == {1.0}
    assert {row["clipped_share"] for row in fitted(with_training(gradient_clip_val=1e6)).history} == {0.0}


def validation_loss(forecaster: Forecaster, config: Config) -> float:
    """What the Trainer would log for these weights."""
    network = ForecastNetwork(config)
    network.load_state_dict(forecaster._network.state_dict())
    module = TrainingModule(network, updates=1, max_seconds=None).eval()
    carry, total, rows = None, 0.0, 0
    with torch.no_grad():
        for batch in ready(module, *ChunkDataModule(panel_of(histories()), config).validation):
            loss, carry = module.score(carry, batch)
            if len(batch.kept):
                total, rows = total + float(loss) * len(batch.fresh), rows + len(batch.fresh)
    return total / rows


@pytest.mark.parametrize("averaging", [0.0, 0.5, 0.9])
def test_the_weights_kept_are_those_of_the_best_validation(averaging: float) -> None:
    config = with_training(averaging=averaging, updates=5 * updates_of_an_epoch(), learning_rate=0.2, pull="off")

    forecaster, _, history, _ = fitted(config)

    losses = [row["val_loss"] for row in history]
    assert len(set(losses)) == 5
    assert validation_loss(forecaster, config) == pytest.approx(min(losses), rel=1e-4)


@pytest.mark.parametrize("updates", [12, 13, 18])
def test_every_update_is_validated_however_many_there_are(updates: int) -> None:
    data = ChunkDataModule(panel_of(histories()), with_training(updates=updates))

    history = fitted(with_training(updates=updates)).history

    assert data.epochs * data.epoch_updates >= updates
    assert len(history) == data.epochs == -(-updates // CONFIG.training.epoch_updates)
    assert len({row["val_loss"] for row in history}) == data.epochs
    assert history[-1]["progress"] == 1


def test_a_small_panel_is_passed_so_often_and_validated_the_more_often_with_the_same_patience() -> None:
    small = ChunkDataModule(panel_of(histories(2, 30)), with_training(updates=0, epoch_updates=75, patience=6))

    assert small.updates <= MOST_PASSES * small.lanes.chunks_per_pass + small.epoch_updates
    assert SHORTEST_EPOCH <= small.epoch_updates < 75
    assert small.patience * small.epoch_updates == pytest.approx(6 * 75, abs=small.epoch_updates)


def test_a_panel_that_is_not_small_is_learnt_from_for_twice_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    panel, config = panel_of(histories(2, 3200)), with_training(updates=0)

    monkeypatch.setattr("forecaster.training.data.SMALL_PANEL", panel.observed)
    small = ChunkDataModule(panel, config, held_out=0)
    monkeypatch.setattr("forecaster.training.data.SMALL_PANEL", panel.observed - 1)
    large = ChunkDataModule(panel, config, held_out=0)

    assert MOST_PASSES * small.lanes.chunks_per_pass >= 2 * UPDATES
    assert (small.updates, large.updates) == (UPDATES, 2 * UPDATES)


def test_a_very_large_panel_is_passed_once_if_that_is_not_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    panel, config = panel_of(histories(2, 3200)), with_training(updates=0)
    monkeypatch.setattr("forecaster.training.data.UPDATES", 4)
    a_pass = ChunkDataModule(panel, config, held_out=0).lanes.chunks_per_pass

    found = {}
    for longest in (1, a_pass):
        monkeypatch.setattr("forecaster.training.data.LARGEST_RUN", longest)
        found[longest] = ChunkDataModule(panel, with_training(updates=0, epoch_updates=1), held_out=0).updates

    assert a_pass > 2 * 4
    assert found == {1: 4, a_pass: a_pass}


def test_in_company_there_are_more_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forecaster.training.data.UPDATES", 10**6)
    monkeypatch.setattr("forecaster.training.data.LARGEST_RUN", 0)
    alone, together = (
        ChunkDataModule(panel_of(histories(2, 30)), with_training(updates=0, imagined=imagined))
        for imagined in ("off", "on")
    )

    assert IN_COMPANY > MOST_PASSES
    assert alone.updates == pytest.approx(MOST_PASSES * alone.lanes.chunks_per_pass, abs=alone.epoch_updates)
    assert together.updates == pytest.approx(IN_COMPANY * together.lanes.chunks_per_pass, abs=together.epoch_updates)


def test_training_stops_when_validation_no_longer_improves() -> None:
    config = with_training(updates=400, patience=2, learning_rate=0.5)

    history = fitted(config).history

    losses = [row["val_loss"] for row in history]
    assert len(history) < 100
    assert len(losses) - 1 - int(np.argmin(losses)) == 2


def test_without_validation_the_last_weights_are_kept() -> None:
    forecaster, _, history, _ = fitted(with_training(validation_horizons=0))

    assert all("val_loss" not in row for row in history)
    assert forecaster.fingerprint() != Forecaster.create(with_training(validation_horizons=0)).fingerprint()


def test_a_validation_part_in_which_nothing_was_observed_judges_nothing() -> None:
    silent = histories()
    for y in silent:
        y[-3 * CONFIG.horizon :] = np.nan
    first_only = [np.concatenate([[float(number)], np.full(89, np.nan)]) for number in range(8)]

    for values in (silent, first_only):
        forecaster, _, history, _ = fitted(values=values)
        assert all("val_loss" not in row for row in history)
        assert np.isfinite(forecaster.forecast_frame(panel_of(values)).iloc[:, 2:]).all(axis=None)


FINISHING = {"finish": 0.5, "validation_horizons": 1}


def test_the_judged_weights_know_nothing_of_what_is_held_out_and_the_served_ones_do() -> None:
    values = histories()
    changed = [np.concatenate([y[:-6], y[-6:] + 3.0]) for y in values]

    one, two = (fitted(with_training(**FINISHING), y, held_out=6) for y in (values, changed))

    assert one.judged.fingerprint() == two.judged.fingerprint()
    assert one.forecaster.fingerprint() != two.forecaster.fingerprint()
    assert one.judged.fingerprint() == fitted(with_training(**FINISHING), [y[:-6] for y in values]).judged.fingerprint()


def test_finishing_goes_on_for_its_share_of_the_run_without_validation() -> None:
    history = fitted(with_training(**FINISHING, updates=3 * updates_of_an_epoch()), held_out=6).history

    judging = [row for row in history if "val_loss" in row]
    assert [row["epoch"] for row in history] == list(range(len(history)))
    assert history[: len(judging)] == judging
    assert 0 < len(history) - len(judging) <= len(judging)
    assert [row["progress"] for row in judging] == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert history[-1]["progress"] == 1
    assert max(row["learning_rate"] for row in history[len(judging) :]) <= 0.5 * CONFIG.training.learning_rate


@pytest.mark.parametrize("length", [90, 360])
def test_the_less_is_new_the_more_carefully_weights_are_finished(length: int) -> None:
    """What validation has chosen is unsettled by no more than what it has not seen."""
    values, config = histories(length=length), with_training(**FINISHING, updates=60)
    panel = panel_of(values)
    known = panel.drop_last(6 + ChunkDataModule(panel.drop_last(6), config).held_out)
    new = 1 - known.observed / panel.observed

    history = fitted(config, values, held_out=6).history

    finishing = max(row["learning_rate"] for row in history if "val_loss" not in row)
    assert 0.1 < finishing / (3 * new * CONFIG.training.learning_rate) <= 1


def test_without_held_out_steps_there_is_nothing_to_finish_with() -> None:
    forecaster, judged, *_ = fitted(with_training(**(FINISHING | {"validation_horizons": 0})))

    assert forecaster is judged


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by ten milliseconds whenever it is looked at: how busy the machine is does not count."""
    looks = count()
    monkeypatch.setattr(time, "monotonic", lambda: next(looks) / 100)


@pytest.mark.usefixtures("ticking")
def test_a_boxed_run_keeps_a_share_of_its_box_for_finishing() -> None:
    config = with_training(**FINISHING, updates=10**6, epoch_updates=10, patience=10**6)

    history = fitted(config, held_out=6, max_minutes=4 / 60).history

    assert "val_loss" not in history[-1]
    assert history[-1]["seconds"] < 5


def test_a_box_too_short_for_all_stages_still_makes_a_model() -> None:
    found = fitted(with_training(**FINISHING, updates=1_000_000), max_minutes=1e-6)

    assert len(found.history) >= 1
    assert np.isfinite(found.forecaster.forecast(found.forecaster.warm_up(histories()[:1], [0]))).all()


@pytest.mark.parametrize(
    ("count", "length", "horizons"),
    [(200, 9000, 1), (4, 9000, 32), (1, 9000, 128), (1, 640, 10), (1, 60, 1), (3, 11, 0)],
)
def test_few_series_are_judged_by_more_horizons_as_far_as_they_can_spare_them(
    count: int, length: int, horizons: int
) -> None:
    panel = Panel.from_series(Calendar("1"), [(f"s{i}", 0, np.ones(length)) for i in range(count)])

    assert held_out_steps(panel, CONFIG) == horizons * CONFIG.horizon
    assert held_out_steps(panel, with_training(validation_horizons=0)) == 0


def test_weights_are_judged_by_the_longest_season_as_far_as_series_can_spare_it() -> None:
    weekly = dataclasses.replace(CONFIG, seasonality=(4, 28))

    for length, horizons in (9000, 7), (320, 5), (80, 1):
        panel = Panel.from_series(Calendar("1"), [(f"s{i}", 0, np.ones(length)) for i in range(200)])

        assert held_out_steps(panel, weekly) == horizons * CONFIG.horizon


def test_held_out_steps_that_leave_nothing_are_refused() -> None:
    with pytest.raises(PanelError, match="before the 500 steps held out"):
        fitted(held_out=500)


def test_weights_that_are_not_finite_are_no_forecaster(monkeypatch: pytest.MonkeyPatch) -> None:
    score = TrainingModule.score
    monkeypatch.setattr(TrainingModule, "score", lambda *args: (score(*args)[0] * torch.nan, score(*args)[1]))

    with pytest.raises(
        ForecasterError, match=r"training diverged: after \d+ updates, weights are not finite; .* 0.005"
    ):
        fitted()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_missed_in_one_line() -> None:
    with pytest.raises(InputError, match="accelerator is gpu, but PyTorch finds no CUDA device here"):
        fitted(with_training(accelerator="gpu"))


def test_the_learning_rate_rises_then_falls_to_a_fiftieth() -> None:
    module = TrainingModule(network_of(CONFIG), updates=100, max_seconds=None)

    factors = [module._factor(update) for update in range(101)]

    peak = int(np.argmax(factors))
    assert peak == 5
    assert factors[peak] == pytest.approx(1.0)
    assert (np.diff(factors[: peak + 1]) > 0).all()
    assert (np.diff(factors[peak:]) < 0).all()
    assert factors[-1] == pytest.approx(0.02)
    assert factors[0] > 0


@pytest.mark.usefixtures("ticking")
def test_a_boxed_run_ends_with_its_box_and_a_usable_model() -> None:
    forecaster, _, history, _ = fitted(
        with_training(updates=10**6, epoch_updates=10, patience=10**6), max_minutes=2 / 60
    )

    assert history[-1]["seconds"] < 3
    assert np.isfinite(forecaster.forecast(forecaster.warm_up([histories(1)[0]], [0]))).all()


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_mixed_precision_trains_to_about_the_same_weights_and_serves_in_full_precision(cell: str) -> None:
    def trained(precision: str) -> Forecaster:
        config = with_training(precision=precision)
        return fitted(dataclasses.replace(config, network=dataclasses.replace(config.network, cell=cell))).forecaster

    full, mixed = trained("32"), trained("bf16")

    states = [forecaster.warm_up([histories()[0]], [0]) for forecaster in (full, mixed)]
    assert states[1].hidden.dtype == torch.float32
    assert mixed.fingerprint() != full.fingerprint()
    np.testing.assert_allclose(mixed.forecast(states[1]), full.forecast(states[0]), rtol=0.2)


def test_automatic_precision_is_one_of_the_two_and_never_bf16_where_no_fused_kernel_gains_by_it() -> None:
    assert mixed_precision(with_training(precision="bf16"))
    assert not mixed_precision(with_training(precision="32"))
    auto = with_training(precision="auto")
    able = torch.cpu.get_capabilities()
    assert mixed_precision(auto) == bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    for options in ({"cell": "gru"}, {"cell": "rnn"}, {"proj_size": 4}):
        assert not mixed_precision(dataclasses.replace(auto, network=dataclasses.replace(auto.network, **options)))


def test_the_transform_is_chosen_by_the_sign_of_the_panel() -> None:
    auto = dataclasses.replace(CONFIG, transform="auto", training=dataclasses.replace(CONFIG.training, updates=2))
    positive = [np.abs(y) + 1 for y in histories(2)]

    short, negative = fit(panel_of(positive), auto), fit(panel_of([y - 100 for y in positive]), auto)

    assert short.forecaster.config.transform == "log"
    assert "too little data or time" in short.reasons[-2]
    assert negative.forecaster.config.transform == "linear"
    assert "below 0" in negative.reasons[-2]
    assert "'" in negative.reasons[-2], "the series is named"


@pytest.mark.parametrize(("lowest", "support"), [(-0.04, "nonnegative"), (-0.06, "real")])
def test_values_slightly_below_zero_are_noise_around_it(lowest: float, support: str) -> None:
    auto = dataclasses.replace(CONFIG, transform="auto", training=dataclasses.replace(CONFIG.training, updates=2))
    values = [np.where(np.arange(len(y)) % 9 == 0, 0.0, 1.0 + (np.arange(len(y)) % 2)) for y in histories(2)]
    values[0][9] = lowest * np.abs(values[0]).mean()

    fitted = fit(panel_of(values), auto)

    assert fitted.forecaster.config.support == support
    assert f"down to {values[0][9]:g}" in fitted.reasons[0]


@pytest.mark.parametrize("better", ["log", "linear"])
def test_a_race_decides_the_transform_where_no_value_is_negative(better: str) -> None:
    auto = dataclasses.replace(with_training(updates=600, validation_horizons=2), transform="auto")
    panel = panel_of([np.abs(y) + 1 for y in histories()])

    class Race(Untimed):
        def train(self, config: Config) -> Forecaster:
            if config.transform != better:
                return Forecaster.create(config)
            return fit(panel, dataclasses.replace(config, training=CONFIG.training)).forecaster

    choice = choose(auto, panel, 8, Race())

    assert choice.config == dataclasses.replace(auto, transform=better, support="nonnegative")
    assert len(choice.reasons) == 2
    assert choice.reasons[-1].startswith(f"transform {better}: no value is below 0; after a short training")


def test_a_race_is_run_inside_a_fit_and_repeats_itself() -> None:
    auto = dataclasses.replace(with_training(updates=340, epoch_updates=170, validation_horizons=2), transform="auto")
    values = [np.abs(y) + 1 for y in histories()]

    one, two = (fit(panel_of(values), auto) for _ in range(2))

    assert one.forecaster.config.transform in ("log", "linear")
    assert "after a short training" in one.reasons[-2]
    assert one.reasons == two.reasons
    assert one.forecaster.fingerprint() == two.forecaster.fingerprint()


def test_who_has_won_a_race_goes_on() -> None:
    """A single network: what it has learnt is not thrown away. Both candidates can be looked at, epoch by epoch."""
    auto = dataclasses.replace(with_training(updates=340, epoch_updates=170, validation_horizons=2), transform="auto")
    panel, seen = panel_of([np.abs(y) + 1 for y in histories()]), []

    raced = fit(panel, auto, on_weights=lambda seconds, _: seen.append(seconds))
    fresh = fit(panel, dataclasses.replace(auto, transform=raced.forecaster.config.transform))

    epochs = math.ceil(race_length(auto) / ChunkDataModule(panel, auto).epoch_updates)
    assert len(seen) == 2 * epochs + len(raced.history)
    assert seen == sorted(seen)
    assert seen[2 * epochs - 1] < raced.history[0]["seconds"]
    assert raced.history[0]["train_loss"] < fresh.history[0]["train_loss"]


def test_a_race_and_the_run_after_it_leave_out_the_same_blocks() -> None:
    """Or calibration would be held against what the winner has learnt."""
    panel = panel_of(histories())
    config = dataclasses.replace(with_training(validation_horizons=2), calibration="static")
    run = ChunkDataModule(panel, config)
    race = ChunkDataModule(panel.drop_last(run.held_out), config.with_overrides({"training.validation_horizons": 0}))

    assert run.blocks
    assert race.blocks == run.blocks


def test_a_small_panel_is_given_an_ensemble_and_a_large_one_a_single_network(monkeypatch: pytest.MonkeyPatch) -> None:
    auto = dataclasses.replace(with_training(updates=2), network=dataclasses.replace(CONFIG.network, members=0))
    panel = panel_of(histories(2))

    small = fit(panel, auto)
    monkeypatch.setattr(choosing, "SMALL_PANEL", 0)
    large = fit(panel, auto)

    assert small.forecaster.config.network.members == ENSEMBLES[0]
    assert "average out" in small.reasons[-2]
    assert large.forecaster.config.network.members == 1
    assert "teach one network enough" in large.reasons[-2]
    assert small.forecaster.num_parameters == ENSEMBLES[0] * large.forecaster.num_parameters


@pytest.mark.parametrize(("room", "members"), [(4.0, 4), (2.0, 4), (1.9, 2), (1.0, 2), (0.9, 1), (0.1, 1)])
def test_an_ensemble_is_as_large_as_there_is_time_for(room: float, members: int) -> None:
    """`room` is that of one network; several take as many times as long."""

    class Timed(Untimed):
        def room(self, config: Config) -> float:
            return room / config.network.num_members

    auto = dataclasses.replace(CONFIG, network=dataclasses.replace(CONFIG.network, members=0))

    choice = choose(auto, panel_of(histories(2)), 0, Timed())

    assert choice.config.network.members == members
    assert ("no time" in choice.reasons[-1]) == (members == 1)


def test_what_a_time_box_has_room_for_is_measured() -> None:
    """A box that a hundred thousandth of the run would fill, and one that holds the run many times."""
    auto = dataclasses.replace(with_training(updates=10**6), network=dataclasses.replace(CONFIG.network, members=0))
    panel = panel_of(histories(2))

    short = fit(panel, auto, max_minutes=2 / 60)
    long = fit(panel, auto.with_overrides({"training.updates": 8}), max_minutes=60)

    assert short.forecaster.config.network.members == 1
    assert long.forecaster.config.network.members == ENSEMBLES[0]


def test_members_of_an_ensemble_learn_each_by_itself() -> None:
    config = dataclasses.replace(CONFIG, network=dataclasses.replace(CONFIG.network, members=3))

    network = fitted(config).forecaster._network

    first, second = (decoder.state_dict() for decoder in network.head.decoders[:2])  # type: ignore[index]
    assert not any(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(*(stack.get_parameter("layers.0.weight_hh_l0") for stack in network.recurrent.stacks[:2]))  # type: ignore[index]


@pytest.mark.parametrize("lengths", [[3], [5, 200], [7] * 30, [1, 1, 1, 30]])
def test_short_and_uneven_series_are_learnt_from(lengths: list[int]) -> None:
    values = [10.0 + np.arange(n) % 4 for n in lengths]

    forecaster = fitted(with_training(updates=4), values).forecaster

    assert np.isfinite(forecaster.forecast(forecaster.warm_up(values, [0] * len(values)))).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [([np.full(50, np.nan)], "observed"), ([np.array([1.0, 2.0])], "3 steps"), ([], "3 steps")],
)
def test_a_panel_with_nothing_to_learn_from_is_refused(values: list[Float], message: str) -> None:
    with pytest.raises(PanelError, match=message):
        fitted(values=values)


def test_a_panel_of_another_calendar_is_refused() -> None:
    with pytest.raises(PanelError, match=r"calendar|freq"):
        fit(Panel.from_series(Calendar("D"), [("a", 0, histories(1)[0])]), CONFIG)


@pytest.mark.parametrize("cell", ["lstm", *(pytest.param(cell, marks=pytest.mark.slow) for cell in ("gru", "rnn"))])
def test_a_tiny_model_learns_season_and_trend_better_than_the_seasonal_naive(cell: str) -> None:
    steps = np.arange(160)
    values = [
        30 + 5 * i + (0.05 + 0.03 * i) * steps + (4 + i) * np.sin(2 * np.pi * (steps + i) / 4 + 0.4) for i in range(8)
    ]
    config = dataclasses.replace(
        CONFIG,
        network=NetworkConfig(cell=cell, hidden_size=16, members=1, num_layers=1, dropout=0.0),  # type: ignore[arg-type]
        training=TrainingConfig(
            lanes=8, chunk_length=16, updates=300, epoch_updates=50, learning_rate=1e-2, averaging=0.9
        ),
    )

    forecaster = fit(panel_of([y[:140] for y in values]), config).forecaster
    metrics = backtest(forecaster, panel_of(values), horizon=4, n_windows=4, step_size=4).metrics

    assert metrics["mase"] < 0.5 * metrics["seasonal_naive_mase"]
    assert metrics["wql"] < 0.5 * metrics["seasonal_naive_wql"]


def drift(network: ForecastNetwork, panel: Panel, unseen: int) -> torch.Tensor:
    """By the latest steps of a panel."""
    cutoffs, moments = latest_blocks(panel, unseen, network.config.horizon)
    return drift_of(network, windows_of(network, panel, cutoffs, seed=0), len(moments))


def test_intervals_widen_where_the_latest_steps_were_harder_and_never_narrow() -> None:
    rng = np.random.default_rng(0)
    calm = [100 + np.cumsum(rng.normal(size=160)) for _ in range(12)]
    wild = [np.concatenate([y[:-8], y[-9] + np.cumsum(rng.normal(scale=8, size=8))]) for y in calm]
    network = fitted(dataclasses.replace(CONFIG, calibration="static"), calm).judged._network
    width = network.config.horizon

    none, more = (drift(network, panel_of(values), 2 * width) for values in (calm, wild))

    assert (none >= 1).all()
    assert (more > 1.2 * none).all()
    assert torch.equal(drift(network, panel_of(calm), 0), torch.ones(width))
    # What came to all series at once is one observation, and says little.
    together = dataclasses.replace(panel_of(wild), first_steps=np.zeros(12, dtype=np.int64))
    for few in (panel_of(calm[:1]), panel_of(wild[:1]), together):
        one = drift(network, few, width)
        assert ((one >= 1) & (one < 1.4)).all()


@pytest.mark.parametrize(("shape", "asked"), [(-6.0, LARGEST), (6.0, 1.0)])
def test_where_blocks_tell_little_the_best_anchor_is_asked_too(shape: float, asked: float) -> None:
    """Intervals too narrow or wide for its errors are widened by the mean of what these ask for and what is usual."""
    panel = panel_of(histories())
    network = Forecaster.create(dataclasses.replace(CONFIG, calibration="static"))._network
    for decoder in network.head.decoders:
        torch.nn.init.constant_(decoder.get_parameter("bias")[-len(network.head.decoders[0].first_shape) :], shape)

    calibrate(network, panel, [], None, seed=0)
    widened = network.head.state_dict()["widening"].clone()
    calibrate(network, panel.tail(CONFIG.horizon), [], None, seed=0)

    torch.testing.assert_close(widened, torch.full_like(widened, math.sqrt(UNSEEN * asked)), rtol=0.05, atol=0)
    assert (network.head.state_dict()["widening"] == UNSEEN).all()


@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
def test_only_what_is_kept_of_what_was_learnt_can_be_known_by_heart(kept: float) -> None:
    panel = panel_of(histories()).tail(CONFIG.horizon)  # too short to ask an anchor
    network = Forecaster.create(dataclasses.replace(CONFIG, calibration="static"))._network

    calibrate(network, panel, [], None, seed=0, kept=kept)

    widening = network.head.state_dict()["widening"]
    torch.testing.assert_close(widening, torch.full_like(widening, UNSEEN**kept))


def test_origins_before_any_value_was_seen_teach_nothing() -> None:
    """Of a scale of nothing, every forecast is the same; errors there are in units of y, not of the series."""
    silent = [
        np.concatenate([np.full(40, fill), 1e6 + y[:60]])
        for fill, y in zip((np.nan, 0.0), histories()[:2], strict=True)
    ]

    history = fitted(dataclasses.replace(CONFIG, transform="linear"), silent).history

    assert max(row["train_loss"] for row in history) < 100


def test_training_calibrates_on_blocks_it_has_not_learnt_from_unless_told_not_to() -> None:
    values = [100 + y for y in histories()]
    calibrated, plain = (
        fitted(dataclasses.replace(CONFIG, calibration=mode), values).forecaster._network.head.state_dict()["widening"]
        for mode in ("static", "off")
    )

    assert torch.equal(plain, torch.ones_like(plain))
    assert not torch.allclose(calibrated, torch.ones_like(calibrated), atol=0.02)
