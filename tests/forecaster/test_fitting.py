"""Fitting: what is clipped, validated, kept and finished, that it can be repeated, and that it learns at all."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import time
import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from forecaster import (
    Calendar,
    Config,
    Forecaster,
    ForecasterError,
    InputError,
    NetworkConfig,
    Panel,
    PanelError,
    TrainingConfig,
    backtest,
)
from forecaster.network import ForecastNetwork
from forecaster.recurrent import RecurrentState
from forecaster.training import fit
from forecaster.training.attempts import fresh
from forecaster.training.clock import Clock
from forecaster.training.data import IN_COMPANY, MOST_PASSES, SHORTEST_EPOCH, UPDATES, ChunkDataModule, held_out_steps
from forecaster.training.module import TrainingModule, mixed_precision
from forecaster.training.preparing import Prepared
from forecaster.training.stage import Weights, quiet, train_stage
from tests.forecaster.kit import Float, network_of
from tests.forecaster.training_kit import CONFIG, fitted, histories, panel_of, ready, updates_of_an_epoch, with_training


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


@pytest.mark.parametrize("members", [1, 4])
def test_members_of_an_ensemble_are_clipped_as_each_would_be_alone(
    members: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their mean has a gradient of each by their number, so the norm of all is that of one by the root of it."""
    clip, bounds = TrainingModule.configure_gradient_clipping, set()

    def noted(self: TrainingModule, optimizer: Any, gradient_clip_val: float, **options: Any) -> None:
        bounds.add(gradient_clip_val)
        clip(self, optimizer, gradient_clip_val, **options)

    monkeypatch.setattr(TrainingModule, "configure_gradient_clipping", noted)
    config = with_training(updates=2, gradient_clip_val=0.1)

    fitted(dataclasses.replace(config, network=dataclasses.replace(config.network, members=members)))

    assert bounds == {0.1 / math.sqrt(members)}


@pytest.mark.usefixtures("_quiet")
def test_validation_has_a_carry_of_its_own(tmp_path: Path) -> None:
    spy, module = trained(tmp_path, 1.0, updates=3 * updates_of_an_epoch())

    assert len(spy.carries) == 3
    for before, after in spy.carries:
        assert torch.equal(before.hidden, after.hidden)
        assert torch.equal(before.cell, after.cell)
    assert module.validation_carry is not None
    assert not torch.equal(module.validation_carry.hidden, spy.carries[-1][1].hidden)


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


def test_the_average_of_a_short_run_forgets_its_start_whatever_the_decay() -> None:
    """After n updates it is over a tenth of them or so: a decay for long runs would keep the first weights."""
    found = [
        fitted(with_training(averaging=decay, validation_horizons=0)).forecaster._network.state_dict()
        for decay in (0.0, 0.9, 0.999)
    ]

    none, some, most = found
    assert all(torch.equal(some[name], most[name]) for name in some)
    assert not all(torch.equal(some[name], none[name]) for name in some)


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


@pytest.mark.parametrize("calibration", ["off", "adaptive"])
def test_the_judged_weights_know_nothing_of_what_is_held_out_and_the_served_ones_do(calibration: Any) -> None:
    config = dataclasses.replace(with_training(**FINISHING), calibration=calibration)
    values = histories()
    changed = [np.concatenate([y[:-6], y[-6:] + 3.0]) for y in values]

    one, two = (fitted(config, y, held_out=6) for y in (values, changed))

    assert one.judged.fingerprint() == two.judged.fingerprint()
    assert one.forecaster.fingerprint() != two.forecaster.fingerprint()
    assert one.judged.fingerprint() == fitted(config, [y[:-6] for y in values]).judged.fingerprint()


@pytest.mark.parametrize("calibration", ["off", "adaptive"])
def test_nothing_is_learnt_from_the_validation_part(calibration: Any) -> None:
    """Other values there change what weights are chosen, but not those that come up for choice."""
    config = dataclasses.replace(with_training(pull="off"), calibration=calibration)
    values = histories()
    changed = [np.concatenate([y[:-4], y[-4:] + 3.0]) for y in values]

    one, two = (fitted(config, y, validation=4).history for y in (values, changed))

    assert len(one) == 3
    for told in ("train_loss", "gradient_norm"):
        assert [row[told] for row in one] == [row[told] for row in two]
    assert all(a["val_loss"] != b["val_loss"] for a, b in zip(one, two, strict=True))


def test_finished_weights_are_pulled_and_widened_as_the_judged_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the share and the drift that were found before finishing: nothing unseen is left to find them by."""
    found = []
    for share, wider in ((1.0, 1.0), (0.25, 2.0)):
        monkeypatch.setattr("forecaster.training.fitting.kept_share", lambda *_, kept=share: kept)
        monkeypatch.setattr("forecaster.training.fitting.drift_of", lambda *_, by=wider: torch.full((4,), by))
        found.append(fitted(with_training(**FINISHING), held_out=6))

    whole, part = ([run.judged._network, run.forecaster._network] for run in found)
    assert found[0].judged.fingerprint() != found[0].forecaster.fingerprint()
    for all_of_it, a_quarter in zip(whole, part, strict=True):
        all_of_it.head.pull(0.25)
        all_of_it.head.widen(torch.full((4,), 2.0))
        for name, expected in all_of_it.state_dict().items():
            torch.testing.assert_close(a_quarter.state_dict()[name], expected, msg=name)


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


@pytest.mark.usefixtures("ticking")
def test_finishing_ends_so_much_before_its_box_as_making_the_judged_weights_ready_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The finished weights have to be made ready, too."""
    looked, ends = [], []

    def look(*_: Any) -> float:
        looked.append([time.monotonic() for _ in range(100)])  # a second
        return 1.0

    def noting(*args: Any, **options: Any) -> Weights:
        ends.append(args[3].remaining + args[3].elapsed)
        return train_stage(*args, **options)

    monkeypatch.setattr("forecaster.training.fitting.kept_share", look)
    monkeypatch.setattr("forecaster.training.fitting.train_stage", noting)
    fitted(with_training(**FINISHING), held_out=6, max_minutes=1)

    assert len(looked) == 1
    assert ends == [pytest.approx(60 - 1, abs=0.2)]


def test_a_run_that_is_cut_within_an_epoch_keeps_its_last_weights_if_they_are_better_than_the_best_before() -> None:
    config = with_training(learning_rate=0.02, averaging=0.0)
    data = ChunkDataModule(panel_of(histories()), config)
    updates = data.epoch_updates + 2

    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = train_stage(fresh(config, data), data, updates, Clock(None, None).until(1))

    assert weights.updates == updates
    assert weights.loss == weights.last


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


@pytest.mark.parametrize("epoch", [0, 1])
def test_weights_that_cannot_be_judged_are_no_forecaster(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Early stopping would end the run there, as if nothing more were to be learnt."""
    score = TrainingModule.score

    def spoiled(self: TrainingModule, *args: Any) -> tuple[torch.Tensor, RecurrentState]:
        loss, carry = score(self, *args)
        return (loss if self.training or self.current_epoch < epoch else loss * torch.nan), carry

    monkeypatch.setattr(TrainingModule, "score", spoiled)

    with pytest.raises(ForecasterError, match=r"after \d+ updates, the validation loss is not finite; .* 0.005"):
        fitted(with_training(accelerator="cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_missed_in_one_line() -> None:
    with pytest.raises(InputError, match="accelerator is gpu, but PyTorch finds no CUDA device here"):
        fitted(with_training(accelerator="gpu"))


@pytest.mark.parametrize("rate", [0.7, 1.5, 3.0])
@pytest.mark.parametrize("head", ["quantile", "student_t"])
def test_a_series_that_jumps_back_from_next_to_nothing_leaves_the_others_to_be_judged(head: Any, rate: float) -> None:
    """In its scaled coordinates, the jump is beyond all numbers."""
    steps = np.arange(90)
    jumps = [np.where(steps < at, np.exp(-rate * steps), 1.0) for at in (60, 87)]

    history = fitted(dataclasses.replace(CONFIG, head=head), [*histories(4), *jumps]).history

    assert len(history) == 3
    assert np.isfinite([(row["train_loss"], row["val_loss"]) for row in history]).all()
    assert len({row["val_loss"] for row in history}) == 3


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
