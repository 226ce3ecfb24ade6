"""The stream state as a value: rows in and out, bytes there and back, and every damage noticed."""

from __future__ import annotations

import dataclasses
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forecaster import ArtifactError, Forecaster, StreamState
from forecaster.state import StateLayout
from tests.forecaster.kit import TINY, VARIANTS, assert_identical_state, config_of, forecaster_of

HEADER = struct.Struct("<4sHHI")


def state_of(forecaster: Forecaster, rows: int = 4) -> StreamState:
    histories = [10 + np.sin(np.arange(5.0 + 3 * row)) * (row + 1) for row in range(rows)]
    return forecaster.warm_up(histories, [100 * row for row in range(rows)])


@pytest.fixture
def state(tiny_forecaster: Forecaster) -> StreamState:
    return state_of(tiny_forecaster)


def columns(state: StreamState) -> dict[str, torch.Tensor]:
    return {spec.name: getattr(state, spec.name) for spec in dataclasses.fields(state) if spec.init}


def test_an_initial_state_has_observed_nothing(tiny_forecaster: Forecaster) -> None:
    state = tiny_forecaster.initial_state([5, -7])

    assert len(state) == 2
    assert state.last_step.tolist() == [4, -8]
    assert torch.isnan(state.ring).all()
    for tensor in (state.hidden, state.cell, state.statistics, state.age, state.silence):
        assert not tensor.any()


@pytest.mark.parametrize(
    "rows", [[2, 0], [0, 0, 3], [], torch.tensor([1]), torch.tensor([True, False, False, True]), slice(1, 3)]
)
def test_select_takes_rows_of_every_part(state: StreamState, rows: list[int] | torch.Tensor | slice) -> None:
    index = np.arange(4)[
        rows if isinstance(rows, slice) else np.array(list(rows), dtype=bool if len(rows) == 4 else int)
    ]

    found = state.select(rows)

    assert len(found) == len(index)
    for name, tensor in columns(found).items():
        np.testing.assert_array_equal(tensor.numpy(), columns(state)[name].numpy()[index])


def test_a_selection_by_index_is_a_copy(state: StreamState, tiny_forecaster: Forecaster) -> None:
    before = state.to_bytes()

    state.select([1, 2]).assign([0], tiny_forecaster.initial_state([0]))

    assert state.to_bytes() == before


def test_assign_writes_the_named_rows_and_no_other(state: StreamState) -> None:
    slab, before = state.select([0, 1, 2, 3]), state.to_bytes()

    slab.assign([2, 0], state.select([1, 3]))

    assert slab.to_bytes() == [before[3], before[1], before[1], before[3]]


def test_assign_works_on_a_slab_of_fresh_rows(tiny_forecaster: Forecaster, state: StreamState) -> None:
    slab = tiny_forecaster.initial_state([0] * 6)

    slab.assign(torch.tensor([5, 1]), state.select([0, 2]))

    assert slab.to_bytes()[5] == state.to_bytes()[0]
    assert slab.to_bytes()[1] == state.to_bytes()[2]


def test_assign_refuses_what_does_not_fit(state: StreamState) -> None:
    slab, before = state.select([0, 1, 2, 3]), state.to_bytes()
    narrow = state.amended(cell=state.cell[..., 1:])

    with pytest.raises(ValueError, match="4 rows do not fit 1 places"):
        slab.assign([0], state)
    with pytest.raises(IndexError):
        slab.assign([0, 4], state.select([0, 1]))
    with pytest.raises(ValueError, match="words do not fit"):
        slab.assign(range(4), narrow)
    with pytest.raises(ValueError, match="lie in order"):
        narrow.assign(range(4), state)

    assert slab.to_bytes() == before


def test_replacing_rows_leaves_the_original_alone(state: StreamState, tiny_forecaster: Forecaster) -> None:
    before = state.to_bytes()

    replaced = state.replace_rows(torch.tensor([1]), tiny_forecaster.initial_state([9]))

    assert state.to_bytes() == before
    assert [a == b for a, b in zip(replaced.to_bytes(), before, strict=True)] == [True, False, True, True]


def test_concat_puts_rows_in_order(state: StreamState) -> None:
    joined = StreamState.concat([state.select([3]), state.select([0, 1]), state.select([])])

    assert_identical_state(joined, state.select([3, 0, 1]))


def test_detach_cuts_the_gradient_and_keeps_the_values(tiny_forecaster: Forecaster) -> None:
    state = dataclasses.replace(
        tiny_forecaster.initial_state([0]), hidden=torch.ones(1, 2, 8, requires_grad=True), cell=torch.ones(1, 2, 8)
    )

    detached = state.detach()

    assert not detached.hidden.requires_grad
    assert torch.equal(detached.hidden, state.hidden)


def test_a_record_is_as_long_as_the_parts_of_a_row(state: StreamState) -> None:
    expected = sum(tensor[0].numel() * tensor.element_size() for tensor in columns(state).values())

    assert {len(record) for record in state.to_bytes()} == {HEADER.size + expected}


@pytest.mark.parametrize("config", VARIANTS)
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_bytes_there_and_back_are_the_same_state_bit_for_bit(config: object, rows: int) -> None:
    forecaster = forecaster_of(config)  # type: ignore[arg-type]
    state = state_of(forecaster, 3).select(list(range(rows)))

    read = forecaster.state_from_bytes(state.to_bytes())

    assert_identical_state(read, state)
    for name, tensor in columns(read).items():
        assert tensor.dtype == columns(state)[name].dtype
        assert tensor.shape == columns(state)[name].shape


def test_a_state_read_from_bytes_may_be_written_to_and_the_bytes_stay_as_they_were(
    tiny_forecaster: Forecaster, state: StreamState
) -> None:
    (record,) = state.select([0]).to_bytes()
    copy = bytes(bytearray(record))

    read = tiny_forecaster.state_from_bytes([record])
    read.assign([0], state.select([1]))

    assert record == copy
    assert_identical_state(read, state.select([1]))


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_is_noticed(place: int, bit: int) -> None:
    forecaster = forecaster_of(TINY)
    record = bytearray(state_of(forecaster, 1).to_bytes()[0])
    record[place % len(record)] ^= 1 << bit

    with pytest.raises(ArtifactError, match="stored state 0"):
        forecaster.state_from_bytes([bytes(record)])


@pytest.mark.parametrize("place", range(HEADER.size))
def test_every_byte_of_the_header_matters(tiny_forecaster: Forecaster, state: StreamState, place: int) -> None:
    record = bytearray(state.to_bytes()[0])
    record[place] ^= 0xFF

    with pytest.raises(ArtifactError, match="stored state 0"):
        tiny_forecaster.state_from_bytes([bytes(record)])


@pytest.mark.parametrize("size", [0, 3, HEADER.size - 1, HEADER.size, HEADER.size + 1, -1])
def test_a_cut_record_is_refused(tiny_forecaster: Forecaster, state: StreamState, size: int) -> None:
    with pytest.raises(ArtifactError, match="stored state 1"):
        tiny_forecaster.state_from_bytes([state.to_bytes()[0], state.to_bytes()[1][:size]])


def test_an_overlong_record_is_refused(tiny_forecaster: Forecaster, state: StreamState) -> None:
    with pytest.raises(ArtifactError, match=r"stored state 0 has .* bytes, expected"):
        tiny_forecaster.state_from_bytes([state.to_bytes()[0] + b"\0"])


def test_a_newer_format_is_refused_as_newer(tiny_forecaster: Forecaster, state: StreamState) -> None:
    record = state.to_bytes()[0]
    magic, version, rest, _ = HEADER.unpack_from(record)
    body = record[HEADER.size :]
    newer = HEADER.pack(magic, version + 1, rest, zlib.crc32(body)) + body

    with pytest.raises(ArtifactError, match="newer"):
        tiny_forecaster.state_from_bytes([newer])


def test_an_older_format_is_refused_as_older(tiny_forecaster: Forecaster, state: StreamState) -> None:
    record = bytearray(state.to_bytes()[0])
    record[4:6] = (1).to_bytes(2, "little")

    with pytest.raises(ArtifactError, match="older"):
        tiny_forecaster.state_from_bytes([bytes(record)])


def test_a_state_of_another_layout_is_refused(tiny_forecaster: Forecaster, state: StreamState) -> None:
    with pytest.raises(ArtifactError, match="bytes, expected"):
        forecaster_of(config_of(hidden_size=9)).state_from_bytes(state.to_bytes())


def test_a_layout_says_what_an_empty_row_looks_like() -> None:
    state = StateLayout(layers=2, hidden=3, cell=5, ring=7, statistics=4).initial(torch.tensor([1, 2, 3]))

    assert state.hidden.shape == (3, 2, 3)
    assert state.cell.shape == (3, 2, 5)
    assert state.ring.shape == (3, 7)
    assert state.statistics.shape == (3, 4)
    assert state.ring.dtype == state.statistics.dtype == torch.float64


def test_what_a_fold_leaves_at_hand_is_what_the_fields_say(tiny_forecaster: Forecaster) -> None:
    fresh = tiny_forecaster.observe(tiny_forecaster.warm_up([np.arange(9.0)], [0]), torch.tensor([4.0]))
    stored = tiny_forecaster.state_from_bytes(fresh.to_bytes())

    assert fresh.moment is not None
    assert stored.moment is None
    np.testing.assert_allclose(tiny_forecaster.forecast(fresh), tiny_forecaster.forecast(stored), rtol=1e-6)


def test_what_is_at_hand_never_outlives_a_change_of_the_fields(tiny_forecaster: Forecaster) -> None:
    one, other = (tiny_forecaster.warm_up([np.arange(n) + 1.0], [0]) for n in (9, 14))
    state = tiny_forecaster.observe(one, torch.tensor([4.0]))

    assert state.select([0]).moment is None
    assert dataclasses.replace(state, ring=other.ring).moment is None
    with torch.inference_mode():  # as the slab's owner does: states that were folded are inference tensors
        state.assign([0], other)

    np.testing.assert_array_equal(tiny_forecaster.forecast(state), tiny_forecaster.forecast(other))
