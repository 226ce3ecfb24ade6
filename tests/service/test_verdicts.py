"""The rules of event time, against a reference that is only a dict."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from service.engine.verdicts import Verdict, judge

STEPS = st.integers(-2, 30)
VALUES = st.one_of(st.none(), st.integers(0, 3).map(float))
OBSERVATIONS = st.lists(st.tuples(STEPS, VALUES), max_size=12)
LOGS = st.dictionaries(st.integers(0, 12), VALUES, min_size=1)
MAX_GAP = 5


def judged(log, pairs, *, revise=False, reach=1000):
    """Judge, and apply what is taken."""
    steps, values = [s for s, _ in pairs], [y for _, y in pairs]
    found = judge(min(log), max(log), log, steps, values, revise=revise, max_gap=MAX_GAP, reach=reach)
    return found, log | found.inserted | found.updated


@given(LOGS, OBSERVATIONS, st.booleans())
def test_one_by_one_the_verdicts_are_those_of_a_dict(log, pairs, revise):
    """Each observation alone: the reference is a dict, the first and the last key, and six comparisons."""
    for step, y in pairs:
        first, last = min(log), max(log)
        if step > last:
            expected = Verdict.ACCEPTED if step - last - 1 <= MAX_GAP else Verdict.GAP_TOO_LONG
        elif step < first:
            expected = Verdict.TOO_OLD
        elif step not in log:
            expected = Verdict.LATE
        elif log[step] == y:
            expected = Verdict.DUPLICATE
        else:
            expected = Verdict.REVISED if revise else Verdict.CONFLICT

        found, log = judged(log, [(step, y)], revise=revise)

        assert found.verdicts == [expected]
        assert log.get(step) == y or expected.refused
        assert found.last_step == max(log)


@example({0: 1.0}, [(MAX_GAP + 1, 1.0), (MAX_GAP + 3, 1.0)], False)
@example({0: 1.0}, [(MAX_GAP + 2, 1.0), (MAX_GAP + 4, 1.0)], False)
@given(LOGS, st.lists(st.tuples(STEPS, VALUES), max_size=6), st.booleans())
def test_together_in_order_of_time_the_verdicts_are_those_of_one_by_one(log, pairs, revise):
    pairs = sorted(pairs, key=lambda pair: pair[0])
    verdicts, after = [], log
    for pair in pairs:
        found, after = judged(after, [pair], revise=revise)
        verdicts += found.verdicts

    whole, at_once = judged(log, pairs, revise=revise)

    # Of two values for one new step the second is a conflict or a revision in either case; so is a step that is filled.
    assert whole.verdicts == verdicts
    assert at_once == {step: y for step, y in after.items() if step in at_once}


@given(LOGS, st.dictionaries(STEPS, VALUES, max_size=12), st.data())
def test_order_and_repetition_within_a_request_change_nothing(log, new, data):
    pairs = sorted(new.items())
    shuffled = data.draw(st.permutations(pairs + pairs))

    _, straight = judged(log, pairs)
    _, other = judged(log, shuffled)

    assert other == straight


@given(LOGS, st.lists(st.tuples(st.integers(13, 18), VALUES), max_size=8, unique_by=lambda pair: pair[0]), st.data())
def test_cutting_into_requests_changes_nothing_within_the_gap_limit(log, pairs, data):
    """Also when later requests bring earlier steps: they are late, and the log is the same."""
    log = log | {12: 1.0}
    _, whole = judged(log, pairs)
    cut = data.draw(st.integers(0, len(pairs)))
    _, first = judged(log, pairs[:cut])
    _, parts = judged(first, pairs[cut:])

    assert parts == whole


@given(LOGS, OBSERVATIONS)
def test_nothing_that_is_refused_leaves_a_trace(log, pairs):
    found, after = judged(log, pairs)
    taken = {step for (step, _), verdict in zip(pairs, found.verdicts, strict=True) if not verdict.refused}

    assert set(after) - set(log) <= taken
    assert {step: after[step] for step in log} == log
    new = [step for step in after if step > max(log)]
    assert found.filled == found.last_step - max(log) - len(new)


@given(LOGS, st.dictionaries(STEPS, VALUES, max_size=12), st.integers(1, 15), st.data())
def test_what_is_out_of_reach_is_told_to_come_again_and_then_all_is_as_if_it_had_not_been(log, new, reach, data):
    """However the rows stand; a gap that is too long stays too long."""
    pairs = data.draw(st.permutations(sorted(new.items())))
    whole, expected = judged(log, pairs)
    while True:
        before = max(log)
        found, log = judged(log, pairs, reach=reach)
        assert max(log) - before <= reach
        if Verdict.BUSY not in found.verdicts:
            break
        if max(log) == before:  # the gap alone is more than that
            return
    assert log == expected
    refused = (Verdict.GAP_TOO_LONG, Verdict.TOO_OLD, Verdict.CONFLICT)
    assert [v for v in found.verdicts if v in refused] == [v for v in whole.verdicts if v in refused]
