"""What a configuration leaves open: chosen by the data, by races, and by the time there is."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from forecaster import Config, Forecaster
from forecaster.training import choosing, fit
from forecaster.training.choosing import ENSEMBLES, choose, race_length
from forecaster.training.data import ChunkDataModule
from tests.forecaster.kit import Untimed
from tests.forecaster.training_kit import CONFIG, histories, panel_of, with_training


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
