"""Imagined series: what they are like, how they are played beside a panel's own, and that they teach something."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecaster import Calendar, Config, CovariatesConfig, NetworkConfig, Panel, TrainingConfig
from forecaster.chunks import COMPANY, OWN_SHARE, Lanes
from forecaster.training import fit
from forecaster.training.choosing import LONG_SERIES, TINY_PANEL, choose
from forecaster.training.imagining import _autoregression, imagine
from tests.forecaster.kit import Float, Untimed, config_of


def panel_of(lengths: list[int]) -> Panel:
    return Panel.from_series(Calendar("h"), [(f"s{i}", 7 * i, np.arange(n) + 1.0) for i, n in enumerate(lengths)])


@given(
    lengths=st.lists(st.integers(1, 700), min_size=1, max_size=5),
    seasonality=st.sampled_from([(1,), (2,), (4, 12), (24, 168)]),
    support=st.sampled_from(["real", "nonnegative"]),
    seed=st.integers(0, 999),
)
def test_imagined_series_are_finite_supported_a_horizon_longer_than_the_panels_and_end_where_it_does(
    lengths: list[int], seasonality: tuple[int, ...], support: str, seed: int
) -> None:
    panel = panel_of(lengths)
    config = Config("h", 6, seasonality, support=support)  # type: ignore[arg-type]
    longest = 8 * config.training.chunk_length

    one, two = (imagine(panel, config, 20, np.random.default_rng(seed)) for _ in range(2))

    assert set(one.lengths.tolist()) <= {min(n, longest) + 6 for n in lengths}
    assert (one.last_steps == panel.last_steps.max()).all()
    assert one.calendar == panel.calendar
    for y, again in zip(one.values, two.values, strict=True):
        assert np.isfinite(y).all()
        assert support == "real" or (y >= 0).all()
        np.testing.assert_array_equal(y, again)


def test_imagined_series_have_seasons_of_the_configuration_trends_and_noise() -> None:
    """Of many draws, each kind is some: what repeats with the season, what does not, what rises, what falls."""
    panel, config = panel_of([234]), Config("h", 6, (12,), support="real")

    drawn = np.stack(imagine(panel, config, 300, np.random.default_rng(0)).values)

    risen = (drawn[:, -60:].mean(1) - drawn[:, :60].mean(1)) / drawn.std(1)
    level = drawn - np.apply_along_axis(np.convolve, 1, drawn, np.ones(12) / 12, "same")
    inner = level[:, 12:-12].reshape(len(drawn), -1, 12)
    seasonal = inner.mean(1).std(1) / inner.std((1, 2))
    assert abs(np.sign(risen).mean()) < 0.12
    for share in (np.mean(risen > 1), np.mean(risen < -1), np.mean(seasonal > 0.9), np.mean(seasonal < 0.4)):
        assert 0.1 < share < 0.7


def test_autoregression_is_its_recursion() -> None:
    shocks = np.random.default_rng(0).normal(size=50)

    found = _autoregression(shocks, 0.9)

    assert found[0] == pytest.approx(shocks[0], rel=1e-12)
    np.testing.assert_allclose(found[1:], 0.9 * found[:-1] + shocks[1:], rtol=1e-9, atol=1e-12)


def test_nothing_is_known_of_the_covariates_of_what_is_imagined() -> None:
    covariates = CovariatesConfig(
        known=("price",), static=("unique_id",), categories=(("unique_id", "a", "b"),), holidays="DE"
    )
    frame = panel_of([50, 60]).to_frame().assign(price=1.0)
    panel = Panel.from_frame(frame.replace({"s0": "a", "s1": "b"}), "h", covariates)

    company = imagine(panel, Config("h", 6, support="real", covariates=covariates), 5, np.random.default_rng(0))

    for y, table in zip(company.values, company.tables, strict=True):
        assert np.isnan(table).all()
        assert table.shape == (len(y), 1)
    assert company.static.shape == (5, 2)
    assert np.isnan(company.static[:, 0]).all()
    assert (company.static[:, 1] == 0).all()  # no country has its holidays there
    assert len(panel.beside(company)) == 7


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=6),
    company=st.integers(0, 3 * COMPANY),
    seed=st.integers(0, 99),
)
def test_every_pass_plays_all_of_the_panels_own_and_some_of_their_company(
    lengths: list[int], company: int, seed: int
) -> None:
    """Values say whose they are."""
    sizes = [*lengths, *([40] * company)]
    panel = Panel.from_series(Calendar("1"), [(f"s{i}", 0, np.full(n, float(i))) for i, n in enumerate(sizes)])
    lanes = Lanes(
        panel,
        lanes=8,
        chunk_length=16,
        horizon=3,
        prefix_length=4,
        generator=np.random.default_rng(seed),
        beside=company,
    )
    for segments in (lanes._pass() for _ in range(3)):
        times = Counter(segments)
        guests = [segment for segment in times if segment.series >= len(lengths)]
        own = {times[segment] for segment in times if segment.series < len(lengths)}
        assert len(guests) == min(company, COMPANY)
        assert {times[segment] for segment in guests} <= {1}
        assert {segment.series for segment in times} >= set(range(len(lengths)))
        assert len(own) == 1, "each as often as any other"
        assert sum(times.values()) - len(guests) >= OWN_SHARE * len(guests) - len(times) / 2
    for chunk in islice(lanes, 3):
        assert (chunk.y[~chunk.y.isnan()] < len(sizes)).all()


@pytest.mark.parametrize(("own", "company", "times"), [(1, 100, 10), (1, 10, 2), (4, 100, 2), (30, 100, 1)])
def test_few_series_are_played_a_fifth_as_often_as_their_company_in_each_pass(
    own: int, company: int, times: int
) -> None:
    """Less often, little is learnt of them; more often, they are learnt by heart. However many stand by: 48 play."""
    panel = Panel.from_series(Calendar("1"), [(f"s{i}", 0, np.ones(40)) for i in range(own + company)])
    draws = np.random.default_rng(0)
    lanes = Lanes(panel, lanes=8, chunk_length=16, horizon=3, prefix_length=4, generator=draws, beside=company)

    played = Counter(segment.series for segment in lanes._pass())

    assert [played[series] for series in range(own)] == [times] * own
    assert played.total() - own * times == min(company, 48)


@pytest.mark.parametrize(
    ("lengths", "head", "imagined", "because"),
    [
        ([TINY_PANEL // 8] * 8, "quantile", "on", f"{TINY_PANEL:,} values do not tell what series are like"),
        ([TINY_PANEL // 8] * 8 + [1], "quantile", "off", f"{TINY_PANEL + 1:,} values tell what series are like"),
        ([LONG_SERIES - 1], "quantile", "on", f"{LONG_SERIES - 1:,} values do not tell what series are like"),
        ([LONG_SERIES], "quantile", "off", f"{LONG_SERIES:,} values tell what series are like"),
        ([50], "negative_binomial", "off", "head negative_binomial is for counts, which are not imagined"),
    ],
)
def test_a_tiny_panel_gets_company(lengths: list[int], head: str, imagined: str, because: str) -> None:
    config = config_of("log", head=head)

    choice = choose(config, panel_of(lengths), 0, Untimed())

    assert choice.config.training.imagined == imagined
    assert f"imagined series {imagined}: {because}" in choice.reasons


def test_company_that_the_data_chose_stays_to_the_end() -> None:
    """Finishing goes on with what was chosen, not with what was left open."""
    auto, on = (
        fit(Panel.from_series(Calendar("1"), [("a", 0, np.arange(60.0))]), small_config(imagined)).forecaster
        for imagined in ("auto", "on")
    )

    assert auto.fingerprint() == on.fingerprint()


def test_of_a_few_values_more_is_learnt_in_company() -> None:
    """Noise around a level: what is learnt by heart does not come again."""
    errors = {"on": 0.0, "off": 0.0}
    for seed in range(2):
        y = 100 + 5 * np.random.default_rng(seed).normal(size=72)
        for imagined in errors:
            errors[imagined] += error_after(y, 60, imagined)

    assert errors["on"] < errors["off"]


def error_after(y: Float, known: int, imagined: str) -> float:
    """Pinball loss of a small model over the rest of a series, whose beginning it has learnt from."""
    forecaster = fit(Panel.from_series(Calendar("1"), [("a", 0, y[:known])]), small_config(imagined)).forecaster
    found = 0.0
    for cutoff in range(known, len(y) - 3):
        quantiles = forecaster.forecast(forecaster.warm_up([y[:cutoff]], [0]), 4, [0.1, 0.5, 0.9])[0]
        over = y[cutoff : cutoff + 4, None] - quantiles
        found += float(np.maximum(np.array([0.1, 0.5, 0.9]) * over, (np.array([0.1, 0.5, 0.9]) - 1) * over).sum())
    return found


def small_config(imagined: str) -> Config:
    return Config(
        "1",
        horizon=4,
        seasonality=(4,),
        transform="linear",
        network=NetworkConfig(hidden_size=8, members=1),
        # What holds learning by heart back, too, is left out: here only the company is on trial.
        training=TrainingConfig(updates=120, epoch_updates=40, imagined=imagined, start="mean", pull="off"),  # type: ignore[arg-type]
    )
