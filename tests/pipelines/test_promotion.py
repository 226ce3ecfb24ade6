"""The gate's laws: when a challenger may become champion, for any metrics."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecaster import Config, CovariatesConfig, InputError
from pipelines.promotion import check_margin, decide, lacking

scores = st.floats(min_value=1e-6, max_value=1e6)
anything = st.floats(allow_nan=True, allow_infinity=True)


def metrics(wql: float, baseline: float = math.nan) -> dict[str, float]:
    return {"wql": wql, "seasonal_naive_wql": baseline}


@given(scores, scores, scores)
def test_a_challenger_passes_exactly_when_it_beats_both(own: float, baseline: float, champion: float) -> None:
    decision = decide(metrics(own, baseline), metrics(champion))

    assert decision.promoted == (own < baseline and own < champion)


@pytest.mark.parametrize(
    ("challenger", "against"),
    [
        (Config("h", 24), []),
        (Config("h", 48), []),
        (Config("h", 24, covariates=CovariatesConfig(known=("price",), past=("visitors",))), []),
        (Config("h", 23), ["horizon 23 is shorter"]),
        (Config("h", 12, covariates=CovariatesConfig(known=("price", "rain"))), ["horizon 12", "to know rain of"]),
    ],
)
def test_who_would_refuse_the_champions_callers_does_not_take_its_place(challenger: Config, against: list[str]) -> None:
    found = lacking(challenger, Config("h", 24, covariates=CovariatesConfig(known=("price",))))

    decision = decide(metrics(1.0, 2.0), metrics(1.5), lacks=found)
    assert decision.promoted is not bool(against)
    assert len(found) == len(against)
    assert all(word in said for word, said in zip(against, found, strict=True))
    assert decide(metrics(1.0, 2.0), None, lacks=found).promoted  # nobody calls a champion that there is not


@given(scores, scores)
def test_a_tie_with_the_champion_changes_nothing(own: float, baseline: float) -> None:
    assert not decide(metrics(own, baseline), metrics(own)).promoted


@given(scores, scores, scores, st.floats(0.01, 0.99))
def test_a_better_challenger_never_loses_what_a_worse_one_wins(
    own: float, baseline: float, champion: float, better: float
) -> None:
    worse = decide(metrics(own, baseline), metrics(champion))
    improved = decide(metrics(own * better, baseline), metrics(champion))

    assert improved.promoted or not worse.promoted


@given(anything, anything, anything)
def test_nothing_unmeasured_is_ever_promoted_over_a_champion(own: float, baseline: float, champion: float) -> None:
    decision = decide(metrics(own, baseline), metrics(champion))

    if decision.promoted:
        assert all(map(math.isfinite, (own, baseline, champion)))


@given(anything, anything, st.none() | anything)
def test_every_decision_gives_a_reason_in_one_line(own: float, baseline: float, champion: float | None) -> None:
    decision = decide(metrics(own, baseline), None if champion is None else metrics(champion))

    assert decision.reasons
    assert decision.reason
    assert "\n" not in decision.reason


@given(anything, anything)
def test_without_a_champion_anything_is_promoted_and_what_speaks_against_it_is_said(
    own: float, baseline: float
) -> None:
    decision = decide(metrics(own, baseline), None)

    assert decision.promoted
    assert ("but" in decision.reason) == (not (math.isfinite(own) and math.isfinite(baseline) and own < baseline))


@given(scores, st.floats(-0.5, 0.9))
def test_the_margin_moves_the_bar_of_the_champion_only(champion: float, margin: float) -> None:
    bar = champion * (1 - margin)

    assert decide(metrics(bar * 0.999, bar * 2), metrics(champion), margin=margin).promoted
    assert not decide(metrics(bar * 1.001, bar * 2), metrics(champion), margin=margin).promoted
    assert not decide(metrics(bar * 0.999, bar * 0.5), metrics(champion), margin=margin).promoted


@pytest.mark.parametrize(("margin", "enough"), [(0.25, 0.75), (-0.25, 1.25)])
def test_a_stated_margin_is_met_when_it_is_reached(margin: float, enough: float) -> None:
    assert decide(metrics(enough, 2.0), metrics(1.0), margin=margin).promoted
    assert not decide(metrics(math.nextafter(enough, 9), 2.0), metrics(1.0), margin=margin).promoted


def test_a_promotion_says_all_that_was_beaten() -> None:
    naive, champion = "wql 1 beats the seasonal naive (2)", "wql 1 beats the champion (1.5)"

    assert decide(metrics(1.0, 2.0), metrics(1.5)).reasons == (naive, champion)
    assert decide(metrics(1.0, 2.0), None).reasons == ("there was no champion", naive)


def test_a_challenger_without_a_backtest_is_refused_when_there_is_a_champion() -> None:
    decision = decide(None, metrics(1.0))

    assert not decision.promoted
    assert "no backtest" in decision.reason


def test_a_champion_that_cannot_be_measured_is_kept() -> None:
    decision = decide(metrics(1.0, 2.0), {})

    assert not decision.promoted
    assert "cannot be measured" in decision.reason


def test_every_reason_against_is_told_not_only_the_first() -> None:
    decision = decide(metrics(3.0, 2.0), metrics(1.0))

    assert len(decision.reasons) == 2


@pytest.mark.parametrize("margin", [1.0, 2.0, math.nan, math.inf])
def test_a_margin_that_nothing_could_meet_is_refused(margin: float) -> None:
    with pytest.raises(InputError, match="margin"):
        check_margin(margin)
