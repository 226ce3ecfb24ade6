"""Chunks in lanes: every step of every series is played in order, and nobody sees what he must not."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forecaster import Calendar, CovariatesConfig, Panel
from forecaster.chunks import Chunk, Lanes, Segment, cut_segments, validation_chunks

H = 3
PREFIX = 10


def panel_of(lengths: list[int]) -> Panel:
    """Series whose values say where they come from: 1000 for each series, 1 for each step."""
    return Panel.from_series(
        Calendar("1"), [(f"s{i}", 0, 1000.0 * (i + 1) + np.arange(n)) for i, n in enumerate(lengths)]
    )


def covered_panel_of(lengths: list[int]) -> Panel:
    """The same with covariates that say so, too, known for H steps more; series number i begins at step 7 i."""
    values = [1000.0 * (i + 1) + np.arange(n + H) for i, n in enumerate(lengths)]
    return Panel(
        Calendar("1"),
        [f"s{i}" for i in range(len(lengths))],
        7 * np.arange(len(lengths)),
        [told[:-H] for told in values],
        CovariatesConfig(known=("here",), static=("whose",)),
        [told[:, None] for told in values],
        np.arange(1.0, len(lengths) + 1)[:, None],
    )


def told_of(values: Iterable[float], lengths: list[int]) -> list[float]:
    """What the covariates above say of steps that are counted on from a series' value; NaN where they say nothing."""
    return [value if value % 1000 < lengths[int(value) // 1000 - 1] + H else np.nan for value in values]


def lanes_of(
    lengths: list[int],
    lanes: int = 4,
    chunk_length: int = 5,
    seed: int = 0,
    panel: Panel | None = None,
    gaps: float = 0.0,
) -> Lanes:
    return Lanes(
        panel_of(lengths) if panel is None else panel,
        lanes=lanes,
        chunk_length=chunk_length,
        horizon=H,
        prefix_length=PREFIX,
        generator=np.random.default_rng(seed),
        gaps=gaps,
    )


@pytest.mark.parametrize("gaps", [0.0, 0.2, 1.0])
def test_a_gap_hides_a_few_steps_in_a_row_and_no_target(gaps: float) -> None:
    lanes = lanes_of([4000, 3000], lanes=6, chunk_length=12, gaps=gaps)
    hidden = []
    for chunk in islice(lanes, 200):
        told = chunk.future[:, :11]  # the values of the second step and those after it
        hides = torch.isnan(chunk.y[:, 1:]) & ~torch.isnan(told) & chunk.scored[:, 1:]
        seen = ~torch.isnan(chunk.y[:, 1:])
        torch.testing.assert_close(chunk.y[:, 1:][seen], told[seen])
        for row in hides.numpy():
            places = np.flatnonzero(row)
            hidden.append(len(places))
            assert len(places) <= 6
            assert not len(places) or places[-1] - places[0] == len(places) - 1

    share = np.mean([count > 0 for count in hidden])
    assert share == 0 if gaps == 0 else 0.7 * gaps < share <= 1.1 * gaps  # a gap of the first step is not looked for
    assert set(hidden) == {0} if gaps == 0 else {1, 2, 3, 4, 5, 6} < set(hidden)


def test_gaps_of_some_lanes_are_those_that_they_have_among_all() -> None:
    everything, some = lanes_of([400, 300], gaps=0.5), lanes_of([400, 300], gaps=0.5).chunks(range(1, 3))

    for one, other in islice(zip(everything, some, strict=False), 40):
        torch.testing.assert_close(other.y, one.y[1:3], rtol=0, atol=0, equal_nan=True)


def test_without_a_carry_every_lane_resets_at_every_chunk_and_every_step_counts() -> None:
    with_carry, without = lanes_of([400, 300]), lanes_of([400, 300])
    without.carry = False

    for one, other in islice(zip(with_carry, without, strict=True), 50):
        torch.testing.assert_close(other.y, one.y, equal_nan=True)
        assert other.reset.tolist() == list(range(4))
        torch.testing.assert_close(other.scored, ~torch.isnan(other.y))
        for row, start in enumerate(other.start.tolist()):
            past = other.prefix[row, ~torch.isnan(other.prefix[row])]
            assert len(past) == min(start, PREFIX)
            assert not len(past) or past[-1] == other.y[row, 0] - 1  # the values just before the chunk


LENGTHS = st.lists(st.integers(1, 120), min_size=1, max_size=8)
SIZES = {"lengths": LENGTHS, "lanes": st.integers(1, 6), "chunk_length": st.integers(1, 9), "seed": st.integers(0, 99)}


@given(lengths=LENGTHS, lanes=st.integers(1, 200), chunk_length=st.integers(1, 60))
def test_segments_cover_every_step_of_every_series_exactly_once(
    lengths: list[int], lanes: int, chunk_length: int
) -> None:
    played = [np.zeros(n, dtype=int) for n in lengths]

    for segment in cut_segments(lengths, lanes=lanes, chunk_length=chunk_length):
        played[segment.series][segment.start : segment.end] += 1

    for counts in played:
        assert (counts == 1).all()


def test_many_short_series_stay_whole_and_few_long_ones_are_cut_for_all_lanes() -> None:
    assert cut_segments([50] * 100, lanes=16, chunk_length=10) == [Segment(i, 0, 50) for i in range(100)]
    assert len(cut_segments([100_000], lanes=16, chunk_length=10)) == 16


def test_no_series_is_cut_so_short_that_much_of_it_only_warms_up() -> None:
    """Where lanes are many: an eighth of each piece does."""
    assert [s.end - s.start for s in cut_segments([800, 79], lanes=128, chunk_length=10)] == [80] * 10 + [79]


def plays(chunks: list[Chunk]) -> list[list[int]]:
    """Values of each play of a segment: from one reset of a lane to the next, NaN where a segment had ended."""
    lanes: dict[int, list[list[float]]] = {}
    for chunk in chunks:
        for lane in range(len(chunk.y)):
            if lane in chunk.reset.tolist():
                lanes.setdefault(lane, []).append([])
            lanes[lane][-1].extend(chunk.y[lane].tolist())
    return [[int(v) for v in play if not np.isnan(v)] for lane in lanes.values() for play in lane]


@given(**SIZES)
def test_a_lane_plays_a_segment_in_order_without_gap_or_repeat_to_its_end(
    lengths: list[int], lanes: int, chunk_length: int, seed: int
) -> None:
    stream = lanes_of(lengths, lanes, chunk_length, seed)
    count = 3 * stream.chunks_per_pass + 3

    done = plays(list(islice(stream, count)))

    ends = {(s.series, s.end): s for s in stream.segments}
    complete = 0
    for play in done:
        assert np.diff(play).tolist() == [1] * (len(play) - 1)
        series, last = divmod(play[-1], 1000)
        segment = ends.get((series - 1, last + 1))
        if segment is not None:
            complete += 1
            start = play[0] % 1000
            assert segment.start <= start < segment.start + chunk_length
            assert start - segment.start <= (segment.end - segment.start) // 4
    assert complete >= len(done) - stream.lanes


@given(**SIZES)
def test_every_segment_is_begun_once_before_any_is_begun_again(
    lengths: list[int], lanes: int, chunk_length: int, seed: int
) -> None:
    stream = lanes_of(lengths, lanes, chunk_length, seed)

    begun: list[Segment] = []
    for chunk in islice(stream, 4 * stream.chunks_per_pass + 4):
        for place, lane in enumerate(chunk.reset.tolist()):
            at = int(chunk.start[place])
            series = int(chunk.y[lane, 0]) // 1000 - 1
            begun += [s for s in stream.segments if s.series == series and s.start <= at < s.end]
    passes = [begun[i : i + len(stream.segments)] for i in range(0, len(begun), len(stream.segments))]

    for one in passes[:-1]:
        assert len(set(one)) == len(stream.segments)
    assert len(set(passes[-1])) == len(passes[-1])


@given(**SIZES)
def test_targets_are_the_values_that_follow_each_step(
    lengths: list[int], lanes: int, chunk_length: int, seed: int
) -> None:
    stream = lanes_of(lengths, lanes, chunk_length, seed)

    for chunk in islice(stream, 2 * stream.chunks_per_pass):
        assert chunk.y.shape == chunk.scored.shape == (stream.lanes, chunk_length)
        targets = chunk.future.unfold(1, H, 1)
        assert targets.shape == (stream.lanes, chunk_length, H)
        for lane, k in np.ndindex(stream.lanes, chunk_length):
            here = float(chunk.y[lane, k])
            if np.isnan(here):
                continue
            series, step = divmod(int(here), 1000)
            for h in range(H):
                after = step + 1 + h
                expected = 1000.0 * series + after if after < lengths[series - 1] else np.nan
                np.testing.assert_equal(float(targets[lane, k, h]), expected)


@given(**SIZES)
def test_a_prefix_is_what_came_just_before_the_segment(
    lengths: list[int], lanes: int, chunk_length: int, seed: int
) -> None:
    stream = lanes_of(lengths, lanes, chunk_length, seed)

    for chunk in islice(stream, 2 * stream.chunks_per_pass):
        assert chunk.prefix.shape == (len(chunk.reset), PREFIX)
        for place, lane in enumerate(chunk.reset.tolist()):
            first, at = chunk.y[lane, 0].item(), int(chunk.start[place])
            assert first % 1000 == at
            expected = [first - k if at - k >= 0 else np.nan for k in range(PREFIX, 0, -1)]
            np.testing.assert_array_equal(chunk.prefix[place].numpy(), expected)


@given(**SIZES)
def test_covariates_are_those_of_each_step_and_of_the_horizon_after_it(
    lengths: list[int], lanes: int, chunk_length: int, seed: int
) -> None:
    stream = lanes_of(lengths, lanes, chunk_length, seed, covered_panel_of(lengths))

    for chunk in islice(stream, 2 * stream.chunks_per_pass):
        assert chunk.covariates.shape == (stream.lanes, chunk_length + H, 1)
        for lane in range(stream.lanes):
            expected = told_of(float(chunk.y[lane, 0]) + np.arange(chunk_length + H), lengths)
            np.testing.assert_array_equal(chunk.covariates[lane, :, 0].numpy(), expected)
        for place, lane in enumerate(chunk.reset.tolist()):
            series, at = divmod(int(chunk.y[lane, 0]), 1000)
            assert chunk.static[place].tolist() == [series]
            assert int(chunk.step[place]) == 7 * (series - 1) + at


@given(**SIZES)
def test_the_first_chunk_of_a_piece_only_warms_up_and_all_else_up_to_the_end_of_a_segment_counts(
    lengths: list[int], lanes: int, chunk_length: int, seed: int
) -> None:
    stream = lanes_of(lengths, lanes, chunk_length, seed)

    for chunk in islice(stream, 2 * stream.chunks_per_pass):
        expected = ~torch.isnan(chunk.y)
        for place, lane in enumerate(chunk.reset.tolist()):
            at, series = int(chunk.start[place]), int(chunk.y[lane, 0]) // 1000 - 1
            segment = next(s for s in stream.segments if s.series == series and s.start <= at < s.end)
            if segment.start > 0:
                expected[lane] = False
        assert torch.equal(chunk.scored, expected)


def test_the_same_seed_gives_the_same_chunks_and_another_seed_does_not() -> None:
    def stream(seed: int) -> torch.Tensor:
        return torch.stack([chunk.y for chunk in islice(lanes_of([50, 80, 30, 44, 61], seed=seed), 30)]).nan_to_num(-1)

    assert torch.equal(stream(1), stream(1))
    assert not torch.equal(stream(1), stream(2))


@given(**SIZES, bounds=st.tuples(st.integers(0, 5), st.integers(0, 5)))
def test_chunks_of_some_lanes_are_those_lanes_of_the_chunks_of_all(
    lengths: list[int], lanes: int, chunk_length: int, seed: int, bounds: tuple[int, int]
) -> None:
    stream, again = (lanes_of(lengths, lanes, chunk_length, seed) for _ in range(2))
    first, last = (bound % stream.lanes for bound in sorted(bounds))
    first = min(first, last)

    for whole, part in islice(zip(stream, again.chunks(range(first, last + 1)), strict=True), 20):
        mine = (whole.reset >= first) & (whole.reset <= last)
        for name, found in part._asdict().items():
            expected = getattr(whole, name)
            if name in ("prefix", "start", "step", "static"):
                expected = expected[mine]
            elif name == "reset":
                expected = expected[mine] - first
            elif expected is not None:
                expected = expected[first : last + 1]
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_there_are_never_more_lanes_than_segments() -> None:
    assert lanes_of([3, 3], lanes=100).lanes == 2


# -- validation ----------------------------------------------------------------------------------------------------


@given(lengths=LENGTHS, lanes=st.integers(1, 5), held_out=st.integers(1, 12), warm_up=st.integers(1, 40))
def test_validation_warms_up_on_what_may_be_seen_and_scores_every_held_out_step(
    lengths: list[int], lanes: int, held_out: int, warm_up: int
) -> None:
    chunks = list(
        validation_chunks(
            covered_panel_of(lengths), held_out=held_out, warm_up=warm_up, horizon=H, prefix_length=PREFIX, lanes=lanes
        )
    )

    eligible = [(i, n) for i, n in enumerate(lengths) if n > held_out + 1]
    groups = [eligible[i : i + lanes] for i in range(0, len(eligible), lanes)]
    assert len(chunks) == 2 * len(groups)
    for group, warm, scoring in zip(groups, chunks[::2], chunks[1::2], strict=True):
        assert warm.reset.tolist() == list(range(len(group)))
        assert warm.lengths is not None
        assert not warm.scored.any()
        assert scoring.scored.all()
        assert len(scoring.reset) == 0
        for row, (series, n) in enumerate(group):
            base, cutoff = 1000.0 * (series + 1), n - held_out - 1
            begin = max(0, cutoff - warm_up)
            assert warm.static[row].tolist() == [series + 1]
            assert (int(warm.start[row]), int(warm.step[row])) == (begin, 7 * series + begin)
            for chunk, first in ((warm, begin), (scoring, cutoff)):
                expected = told_of(base + first + np.arange(chunk.y.shape[1] + H), lengths)
                np.testing.assert_array_equal(chunk.covariates[row, :, 0].numpy(), expected)
            folded = warm.y[row, : int(warm.lengths[row])].tolist()
            assert folded == [base + t for t in range(begin, cutoff)]
            assert scoring.y[row].tolist() == [base + t for t in range(cutoff, n - 1)]
            for k in range(held_out):
                target = scoring.future[row, k : k + H].numpy()
                expected = [base + t if t < n else np.nan for t in range(cutoff + k + 1, cutoff + k + 1 + H)]
                np.testing.assert_array_equal(target, expected)


@pytest.mark.parametrize("held_out", [1, 6])
def test_a_series_too_short_to_hold_anything_out_is_left_out_of_validation(held_out: int) -> None:
    panel = panel_of([held_out, held_out + 1])

    assert not list(validation_chunks(panel, held_out=held_out, warm_up=10, horizon=H, prefix_length=PREFIX, lanes=4))
