"""Covariates from a data frame to a forecast: roles, kinds, gaps, futures, and that a model learns to use them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from forecaster import Config, ConfigError, CovariatesConfig, Forecaster, InputError, Panel, PanelError, backtest
from forecaster.covariates import LARGEST_DEVIATIONS, Columns, CovariateInputs
from forecaster.training import fit
from forecaster.training.choosing import choose_covariates
from tests.forecaster.kit import COVERED, forecaster_of

ROLES = CovariatesConfig(known=("price", "promo"), past=("visitors",), static=("shop",))
DAYS = 60


def frame_of(name: str, shop: str | None, days: int = DAYS, future: int = 0) -> pd.DataFrame:
    """Sales that double on days of promotion, which no season foretells."""
    generator = np.random.default_rng(len(name))
    promo = generator.random(days + future) < 0.3
    y = (10 + generator.normal(0, 0.3, days + future)) * np.where(promo, 2.0, 1.0)
    y[days:] = np.nan
    return pd.DataFrame(
        {
            "unique_id": name,
            "ds": pd.date_range("2024-01-01", periods=days + future, freq="D"),
            "y": y,
            "price": generator.normal(5, 1, days + future),
            "promo": promo,
            "visitors": generator.poisson(100, days + future).astype(float),
            "shop": shop,
        }
    )


FRAME = pd.concat([frame_of("a", "north", future=9), frame_of("bb", "south", future=9)], ignore_index=True)
CONFIG = Config.from_dict(
    {
        "freq": "D",
        "horizon": 4,
        "seasonality": [7],
        "network": {"hidden_size": 16, "num_layers": 1, "members": 1},
        "training": {"updates": 150, "chunk_length": 16, "learning_rate": 0.01, "validation_horizons": 0},
        "covariates": {"known": ["price", "promo"], "past": ["visitors"], "static": ["shop"]},
    }
)


@pytest.fixture(scope="module")
def trained() -> Forecaster:
    return fit(Panel.from_frame(FRAME, "D", ROLES), CONFIG).forecaster


# -- the panel -------------------------------------------------------------------------------------------------------


def test_a_frame_comes_back_from_its_panel():
    panel = Panel.from_frame(FRAME, "D", ROLES)

    back = panel.to_frame()

    assert [len(y) for y in panel.values] == [DAYS, DAYS]
    expected = FRAME.assign(promo=FRAME["promo"].map({True: "true", False: "false"}))
    expected.loc[FRAME["y"].isna(), "visitors"] = np.nan  # nobody knows the visitors of tomorrow
    pd.testing.assert_frame_equal(back, expected, check_dtype=False, check_column_type=False)


def test_skipped_steps_and_empty_cells_are_missing():
    frame = FRAME.drop(index=[3]).astype({"promo": object})
    frame.loc[5, ["price", "promo"]] = None

    panel = Panel.from_frame(frame, "D", ROLES)

    assert np.isnan(panel.tables[0][3]).all()
    assert np.isnan(panel.tables[0][5, 0])
    assert panel.tables[0][5, 1] == 0


def test_truth_values_numbers_and_text_name_the_same_category():
    whole = [pd.Series([0, 1, 1]), pd.Series([0.0, 1.0, 1.0]), pd.Series(["0", "1", "1"])]
    roles = CovariatesConfig(known=("k",), categories=(("k", "0", "1"),))

    tables = [
        Panel.from_frame(pd.DataFrame({"unique_id": "a", "ds": [0, 1, 2], "y": 1.0, "k": column}), "1", roles).tables[0]
        for column in whole
    ]

    assert [table.ravel().tolist() for table in tables] == [[1, 2, 2]] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="price"), r"columns \['price'\] are missing"),
        (lambda f: f.assign(other=1), r"columns \['other'\] are unknown"),
        (
            lambda f: f.assign(price=np.where(f.index == 7, np.inf, 1.0)),
            "series 'a': covariate 'price' is inf at 2024-01-08",
        ),
        (
            lambda f: f.assign(shop=np.where(f.index == 7, "west", f["shop"])),
            "series 'a': static covariate 'shop' changes",
        ),
        (
            lambda f: f.assign(shop=np.where(f.index == 7, 3, 4)),
            "series 'a': static covariate 'shop' changes from 4 to 3",
        ),
        (
            lambda f: pd.concat([f] * 12).assign(
                unique_id=np.repeat([f"s{i}" for i in range(24)], DAYS + 9),
                promo=[f"p{i}" for i in range(24 * (DAYS + 9))],
            ),
            "covariate 'promo' has 1656 different values, .* at most 1024",
        ),
    ],
)
def test_what_is_wrong_with_a_column_is_said(change: object, message: str):
    with pytest.raises(PanelError, match=message):
        Panel.from_frame(change(FRAME), "D", ROLES)  # type: ignore[operator]


def test_dropping_steps_keeps_what_was_known_of_them_and_no_more():
    panel = Panel.from_frame(FRAME, "D", ROLES)

    shorter = panel.drop_last(4)

    known = panel.tables[0][DAYS - 4 : DAYS, :2]
    np.testing.assert_array_equal(shorter.future(4)[0], known)
    assert np.isnan(shorter.tables[0][DAYS - 4 :, 2]).all()
    assert np.isfinite(panel.tables[0][:DAYS, 2]).all()  # the panel itself has not changed


def test_without_known_columns_dropping_steps_leaves_the_equal_shorter_panel():
    """Nothing beyond the end of a series is known then, so nothing of what was dropped stays."""
    past, rows = CovariatesConfig(past=("price",)), FRAME.loc[: DAYS - 1, ["unique_id", "ds", "y", "price"]]

    shorter, expected = Panel.from_frame(rows, "D", past).drop_last(4), Panel.from_frame(rows[:-4], "D", past)

    assert shorter.fingerprint() == expected.fingerprint()
    pd.testing.assert_frame_equal(shorter.to_frame(), expected.to_frame())


def test_future_values_stand_at_the_steps_that_they_are_of():
    """Also where they begin later than the next step, which then is unknown."""
    panel = Panel.from_frame(FRAME[FRAME["y"].notna()], "D", ROLES)
    later = frame_of("a", "north", future=9)[DAYS + 2 :]

    table = panel.with_future(later).tables[0]

    assert np.isnan(table[DAYS : DAYS + 2]).all()
    np.testing.assert_array_equal(table[DAYS + 2 :, 0], later["price"])
    with pytest.raises(PanelError, match=r"not known at 2024-03-01.*, step 1 of the 4"):
        panel.with_future(later).future(4)


def test_columns_have_one_role():
    with pytest.raises(ConfigError, match=r"covariates\.known"):
        CovariatesConfig(known=("a",), past=("a",))
    with pytest.raises(ConfigError, match=r"covariates\.known"):
        CovariatesConfig(known=("y",))
    with pytest.raises(ConfigError, match=r"covariates\.holidays.*ISO country code"):
        CovariatesConfig(holidays="Atlantis")


def test_options_are_read_from_text():
    config = CONFIG.with_overrides(
        {"covariates.known": "price, promo", "covariates.calendar": "off", "covariates.holidays": "DE"}
    )

    assert (config.covariates.known, config.covariates.calendar) == (("price", "promo"), ())
    assert Config.from_dict(config.to_dict()) == config


def test_a_panel_gives_a_model_the_columns_it_wants():
    panel = Panel.from_frame(FRAME, "D", replace(ROLES, holidays="unique_id"))
    wanted = CovariatesConfig(known=("promo",), past=("price",), categories=(("promo", "true"),), holidays="DE")

    found = panel.with_covariates(wanted)

    assert found.tables[0][:DAYS, 0].tolist() == FRAME["promo"][:DAYS].astype(float).tolist()
    np.testing.assert_array_equal(found.tables[0][:DAYS, 1], FRAME["price"][:DAYS])
    assert np.isnan(found.tables[0][DAYS:, 1]).all()
    assert (panel.static[:, -1] == 0).all()
    assert (found.static > 0).all()
    with pytest.raises(PanelError, match="covariate 'promo' holds categories, expected numbers"):
        panel.with_covariates(CovariatesConfig(known=("promo",)))


# -- training --------------------------------------------------------------------------------------------------------


def test_training_writes_down_what_it_found(trained: Forecaster):
    covariates = trained.config.covariates

    assert covariates.calendar == ("week", "month")
    assert covariates.categories == (("promo", "false", "true"), ("shop", "north", "south"))
    columns = trained._network.covariates
    assert columns is not None
    learnt = FRAME[FRAME["y"].notna()]
    np.testing.assert_allclose(columns.known.center, [learnt["price"].mean()])
    np.testing.assert_allclose(columns.past.scale, [learnt["visitors"].std(ddof=0)])


def test_values_only_the_validation_part_has_are_unknown():
    frame = FRAME[FRAME["y"].notna()].astype({"promo": object})
    frame.loc[frame.groupby("unique_id").tail(2).index, "promo"] = "huge"
    config = CONFIG.with_overrides({"training.validation_horizons": 1, "training.updates": 1})

    covariates = fit(Panel.from_frame(frame, "D", ROLES), config).forecaster.config.covariates

    assert covariates.values_of("promo") == ("false", "true")


def test_a_model_learns_what_its_covariates_foretell(trained: Forecaster):
    panel = Panel.from_frame(FRAME, "D", trained.config.covariates)

    with_them = backtest(trained, panel, horizon=4, n_windows=5, step_size=4).metrics
    missing = replace(panel, tables=[np.full_like(table, np.nan) for table in panel.tables])
    state = trained.warm_up_panel(panel)
    future = torch.zeros(2, 4, 2, dtype=torch.float64)
    future[..., 0], future[..., 1] = 5.0, torch.tensor([1.0, 2.0, 1.0, 2.0])  # no promotion, promotion, ...
    median = trained.forecast(state, 4, [0.5], future)[..., 0]

    assert with_them["mase"] < 0.4 * with_them["seasonal_naive_mase"]
    assert (median[:, [1, 3]] > 1.4 * median[:, [0, 2]]).all()
    with pytest.raises(InputError, match="price, promo are not known"):
        backtest(trained, missing, horizon=4, n_windows=5, step_size=4)


def test_a_panel_read_without_the_covariates_is_refused(trained: Forecaster):
    bare = Panel.from_frame(FRAME[["unique_id", "ds", "y"]], "D")

    with pytest.raises(InputError, match="was read without the known covariates price, promo, which the model needs"):
        fit(bare, CONFIG)
    with pytest.raises(InputError, match="was read without the known covariates price, promo, which the model needs"):
        trained.forecast_frame(bare)


def test_holidays_need_a_country_that_has_some():
    config = CONFIG.with_overrides({"covariates.holidays": "unique_id"})

    with pytest.raises(PanelError, match="no series has a country code with known holidays, for example 'a'"):
        fit(Panel.from_frame(FRAME, "D", config.covariates), config)


def test_holidays_are_those_of_the_countries_that_series_are_named_by():
    daily = replace(CONFIG, covariates=CovariatesConfig())
    frame = FRAME[FRAME["y"].notna()][["unique_id", "ds", "y"]]
    names = dict(zip(frame["unique_id"].unique(), ("DE", "FR", "PL", "IT"), strict=False))
    named = Panel.from_frame(frame.assign(unique_id=frame["unique_id"].map(names)), "D")

    chosen, reasons = choose_covariates(daily, named, 0)
    assert chosen.covariates.country == "unique_id"
    assert reasons == ("holidays unique_id: every series is named by a country, for example 'DE'",)
    off = daily.with_overrides({"covariates.holidays": "off"})
    one_other = Panel.from_frame(frame.assign(unique_id=frame["unique_id"].map({**names, "bb": "plant"})), "D")
    for config, panel in ((off, named), (daily, one_other), (daily, Panel.from_frame(frame, "D"))):
        chosen, reasons = choose_covariates(config, panel, 0)
        assert (chosen.covariates.country, reasons) == ("", ())
    assert daily.covariates.country == ""  # not before training has chosen


# -- forecasts -------------------------------------------------------------------------------------------------------


def test_the_future_comes_with_the_panel_or_beside_it(trained: Forecaster):
    covariates = trained.config.covariates
    whole = trained.forecast_frame(Panel.from_frame(FRAME, "D", covariates), 9)

    history, future = FRAME[FRAME["y"].notna()], FRAME[FRAME["y"].isna()]
    beside = trained.forecast_frame(Panel.from_frame(history, "D", covariates), 9, future=future.drop(columns="y"))

    pd.testing.assert_frame_equal(beside, whole)
    shuffled = trained.forecast_frame(
        Panel.from_frame(history, "D", covariates), 9, future=FRAME[["promo", "ds", "unique_id", "price"]]
    )
    pd.testing.assert_frame_equal(shuffled, whole)  # rows before the end are ignored


def test_a_step_that_is_not_known_is_named(trained: Forecaster):
    panel = Panel.from_frame(FRAME, "D", trained.config.covariates)
    first_day = FRAME[FRAME["ds"] == "2024-03-01"]

    with pytest.raises(
        InputError, match=r"series 'a': price, promo are not known at 2024-03-10T00:00:00, step 10 of the 16"
    ):
        trained.forecast_frame(panel, 16)
    with pytest.raises(InputError, match="series 'a': price, promo are not known at 2024-03-02"):
        trained.forecast_frame(panel, future=first_day)
    with pytest.raises(InputError, match=r"columns \['promo'\] are missing in the future values"):
        trained.forecast_frame(panel, future=FRAME.drop(columns="promo"))
    with pytest.raises(InputError, match=r"the future values: series 'a': ds repeats at 2024-03-01"):
        trained.forecast_frame(panel, future=FRAME.loc[FRAME.index.repeat(1 + (FRAME["ds"] == "2024-03-01"))])
    with pytest.raises(InputError, match=r"needs values of price, promo at the 4 coming steps"):
        trained.forecast(trained.warm_up_panel(panel))


def test_a_value_far_from_all_that_was_learnt_from_counts_as_one_not_so_far():
    """An order of magnitude too much, by mistake or not, must not make the forecast as absurd."""
    columns = Columns(("price",), CovariatesConfig(known=("price",)))
    columns.standardise(torch.tensor([[4.0], [6.0]], dtype=torch.float64))

    told = columns(torch.tensor([[1e9], [5 + LARGEST_DEVIATIONS], [5.5], [-1e9]], dtype=torch.float64))

    assert told[:, 0].tolist() == [LARGEST_DEVIATIONS, LARGEST_DEVIATIONS, 0.5, -LARGEST_DEVIATIONS]


@pytest.mark.parametrize(("seasonality", "horizon"), [((7,), 4), ((3, 7), 20), ((1,), 4)])
def test_holidays_of_the_steps_that_anchors_repeat_are_told_too(seasonality: tuple[int, ...], horizon: int):
    """Of each season's latest cycle that is over at the cutoff; where there is no season, of none."""
    config = Config("D", horizon, seasonality, covariates=CovariatesConfig(holidays="DE", calendar=()))
    inputs = CovariateInputs(config)
    seasons = [season for season in seasonality if season > 1]

    assert inputs.decoder_size == 1 + len(seasons)
    for step, row in enumerate(inputs.offsets.tolist(), start=1):
        assert row[0] == step
        for season, repeated in zip(seasons, row[1:], strict=True):
            assert -season < repeated <= 0
            assert (step - repeated) % season == 0


def test_missing_cells_and_unknown_values_still_have_a_forecast(trained: Forecaster):
    frame = FRAME.astype({"promo": object})
    frame.loc[frame["y"].isna() & (frame["ds"] > "2024-03-02"), "price"] = None
    frame.loc[frame["y"].isna() & (frame["ds"] > "2024-03-02"), "promo"] = "never heard of"

    forecast = trained.forecast_frame(Panel.from_frame(frame, "D", trained.config.covariates))

    assert np.isfinite(forecast["0.5"]).all()


def test_a_series_of_an_unknown_shop_still_has_a_forecast(trained: Forecaster):
    frame = pd.concat([frame_of("c", "moon", future=4), frame_of("d", None, future=4)])

    forecast = trained.forecast_frame(Panel.from_frame(frame, "D", trained.config.covariates))

    assert np.isfinite(forecast["0.5"]).all()


def test_sample_paths_follow_what_is_known_of_each_step(trained: Forecaster):
    state = trained.warm_up_panel(Panel.from_frame(FRAME, "D", trained.config.covariates))
    future = torch.full((2, 6, 2), 5.0, dtype=torch.float64)
    future[..., 1] = torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0, 2.0])  # every other day a promotion, beyond the horizon too

    paths = trained.simulate(state, 6, 50, future=future)

    assert np.isfinite(paths).all()
    middle = np.median(paths, axis=1)
    assert (middle[:, [1, 3, 5]] > 1.3 * middle[:, [0, 2, 4]]).all()
    with pytest.raises(InputError, match="needs values of price, promo"):
        trained.simulate(state, 4, 10)


def test_an_artifact_keeps_vocabularies_and_scales(trained: Forecaster, tmp_path):
    panel = Panel.from_frame(FRAME, "D", trained.config.covariates)

    trained.save(tmp_path / "model")
    loaded = Forecaster.load(tmp_path / "model")

    assert loaded.config == trained.config
    pd.testing.assert_frame_equal(loaded.forecast_frame(panel), trained.forecast_frame(panel))


@pytest.mark.parametrize("value", [2, 2.0, np.int64(2), np.float32(2)])
def test_a_number_of_numpy_is_the_number_that_it_is(value: object) -> None:
    forecaster = forecaster_of(COVERED[0])

    assert forecaster.table([{"price": value}])[0, 0] == 2
    assert forecaster.static(["a"], [{"size": value}])[0, 0] == 2


@pytest.mark.parametrize("value", [None, math.nan, np.nan, np.float32("nan"), pd.NA])
def test_what_a_frame_calls_missing_is_missing(value: object) -> None:
    forecaster = forecaster_of(COVERED[0])

    assert math.isnan(forecaster.table([{"price": value}])[0, 0])
    assert math.isnan(forecaster.static(["a"], [{"size": value}])[0, 0])
