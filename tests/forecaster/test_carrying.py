"""Chunks and the training module: what is carried, where the gradient is cut, what counts in the loss."""

from __future__ import annotations

import copy
import dataclasses
import multiprocessing
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from forecaster import Forecaster, Panel, StreamState
from forecaster.chunks import Chunk, Lanes
from forecaster.losses import pinball_loss
from forecaster.recurrent import RecurrentState
from forecaster.scaling import transform
from forecaster.training.apart import MadeApart
from forecaster.training.data import ChunkDataModule
from forecaster.training.preparing import Preparation, Prepared, ahead
from tests.forecaster.kit import assert_identical_state, assert_same_state, network_of
from tests.forecaster.training_kit import (
    CONFIG,
    first_chunk,
    fitted,
    histories,
    module_of,
    noisy_chunk,
    panel_of,
    ready,
    with_training,
)


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
    return {name: getattr(state, name) for name in ("ring", "statistics", "clocks", "static")}


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


def test_wherever_a_lane_begins_it_has_the_scaling_state_that_serving_has_there() -> None:
    """Also amid missing values at the beginning of a series, and amid those after its latest one."""
    network, y = network_of(CONFIG), histories(1)[0][: 2 * CONFIG.ring_length]
    y[:9] = y[20:24] = np.nan
    lanes = Lanes(
        panel_of([y]),
        lanes=1,
        chunk_length=1,
        horizon=CONFIG.horizon,
        prefix_length=len(y),
        generator=np.random.default_rng(0),
        carry=False,
    )

    drafts = list(islice(Preparation(network).drafts(lanes), len(y)))

    for at, draft in enumerate(drafts):
        served = Forecaster(network).warm_up([y[:at]], [0])
        assert_same_state(served.amended(**scaling_of(draft.begun)), served)


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


def test_origins_before_any_value_was_seen_teach_nothing() -> None:
    """Of a scale of nothing, every forecast is the same; errors there are in units of y, not of the series."""
    silent = [
        np.concatenate([np.full(40, fill), 1e6 + y[:60]])
        for fill, y in zip((np.nan, 0.0), histories()[:2], strict=True)
    ]

    history = fitted(dataclasses.replace(CONFIG, transform="linear"), silent).history

    assert max(row["train_loss"] for row in history) < 100
