"""The configuration: declared once, checked once, and refused by the name of the key."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecaster import Config, ConfigError, CovariatesConfig, NetworkConfig, TrainingConfig

CONFIG = Config("h", 48)


def test_plain_values_and_back_is_the_identity() -> None:
    config = Config(
        "MS",
        12,
        (12,),
        "Europe/Berlin",
        (0.1, 0.5, 0.9),
        24,
        "linear",
        NetworkConfig(cell="gru"),
        TrainingConfig(seed=3),
    )

    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(Config.from_dict(config.to_dict())) == hash(config)


def test_every_field_is_in_the_plain_values() -> None:
    values = CONFIG.to_dict()

    assert set(values) == {field.name for field in dataclasses.fields(Config)}
    assert set(values["network"]) == {field.name for field in dataclasses.fields(NetworkConfig)}
    assert set(values["training"]) == {field.name for field in dataclasses.fields(TrainingConfig)}


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.horizon = 3  # type: ignore[misc]


def test_seasonality_is_sorted_without_repeats_and_defaults_to_the_usual_one() -> None:
    assert Config("h", 1, (168, 24, 24)).seasonality == (24, 168)
    assert Config("h", 1).seasonality == (24, 168)
    assert Config("1", 1).seasonality == (1,)
    assert Config("s", 1).seasonality == (1,)  # a day of seconds is longer than a ring can be


@given(seasonality=st.lists(st.integers(1, 2048), min_size=1, max_size=3).map(tuple), context=st.integers(0, 2048))
def test_the_ring_holds_whole_cycles_of_the_longest_season(seasonality: tuple[int, ...], context: int) -> None:
    config = Config("1", 4, seasonality, context_length=context)

    assert config.ring_length % max(seasonality) == 0
    assert max(seasonality) <= config.ring_length <= 2048
    if context and -(-context // max(seasonality)) * max(seasonality) <= 2048:
        assert config.ring_length >= context


def test_the_longest_horizon_is_four_times_the_trained_one() -> None:
    assert CONFIG.max_horizon == 192


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "'freq' is missing"),
        ({"freq": "h"}, "'horizon' is missing"),
        ([], r"root is \[\], expected a table"),
        ({"network": 5}, r"'network'|network is 5"),
        ({"network": {"width": 3}}, "'network.width' is unknown.*hidden_size"),
        ({"training": {"lr": 3}}, "'training.lr' is unknown.*learning_rate"),
        ({"widht": 3}, "'widht' is unknown.*horizon"),
        ({"freq": "fortnight"}, "'fortnight'"),
        ({"freq": 1}, "'freq' is 1"),
        ({"time_zone": "Mars"}, "'Mars'"),
        ({"time_zone": 5}, "'time_zone' is 5"),
        ({"horizon": 0}, "'horizon' is 0"),
        ({"horizon": 5000}, "'horizon' is 5000"),
        ({"horizon": 4.0}, "'horizon' is 4.0"),
        ({"horizon": "48"}, "'horizon' is '48'"),
        ({"horizon": True}, "'horizon' is True"),
        ({"seasonality": [0]}, "'seasonality'"),
        ({"seasonality": [5000]}, "'seasonality'"),
        ({"seasonality": [1.5]}, "'seasonality'"),
        ({"seasonality": 24}, "'seasonality' is 24"),
        ({"quantile_levels": []}, "'quantile_levels'"),
        ({"quantile_levels": [0.1, 0.9]}, "'quantile_levels'"),
        ({"quantile_levels": [0.1, 0.4, 0.9]}, "'quantile_levels'"),
        ({"quantile_levels": [0.9, 0.5, 0.1]}, "'quantile_levels'"),
        ({"quantile_levels": [0.0, 0.5, 1.0]}, "'quantile_levels'"),
        ({"quantile_levels": [0.1, 0.5, float("nan")]}, "'quantile_levels'"),
        ({"transform": "sqrt"}, "'transform' is 'sqrt'"),
        ({"context_length": -1}, "'context_length' is -1"),
        ({"network": {"cell": "transformer"}}, "'network.cell' is 'transformer'"),
        ({"network": {"cell": ["lstm"]}}, "'network.cell'"),
        ({"network": {"hidden_size": 0}}, "'network.hidden_size' is 0"),
        ({"network": {"num_layers": 0}}, "'network.num_layers' is 0"),
        ({"network": {"dropout": 1.0}}, "'network.dropout' is 1.0"),
        ({"network": {"dropout": float("nan")}}, "'network.dropout' is nan"),
        ({"network": {"bias": 1}}, "'network.bias' is 1"),
        ({"network": {"proj_size": 64}}, "'network.proj_size' is 64"),
        ({"network": {"cell": "gru", "proj_size": 8}}, "'network.proj_size' is 8"),
        ({"training": {"lanes": -1}}, "'training.lanes' is -1"),
        ({"training": {"chunk_length": 0}}, "'training.chunk_length' is 0"),
        ({"training": {"learning_rate": 0}}, "'training.learning_rate' is 0"),
        ({"training": {"learning_rate": float("nan")}}, "'training.learning_rate' is nan"),
        ({"training": {"gradient_clip_val": 0}}, "'training.gradient_clip_val' is 0"),
        ({"training": {"gradient_clip_val": math.inf}}, "'training.gradient_clip_val' is inf, expected a finite"),
        ({"training": {"weight_decay": math.inf}}, "'training.weight_decay' is inf, expected a finite number"),
        ({"training": {"averaging": math.nan}}, "'training.averaging' is nan, expected a finite number"),
        ({"network": {"forget_bias": math.nan}}, "'network.forget_bias' is nan, expected a finite number"),
        ({"network": {"forget_bias": 1e308}}, r"'network.forget_bias' is 1e\+308, expected -100 to 100"),
        ({"training": {"averaging": 1}}, "'training.averaging' is 1"),
        ({"training": {"precision": "16"}}, "'training.precision' is '16'"),
        ({"training": {"seed": -1}}, "'training.seed' is -1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_the_name_of_the_key(values: Any, message: str) -> None:
    if isinstance(values, dict) and values and values != {"freq": "h"}:
        values = {"freq": "h", "horizon": 48} | values

    with pytest.raises(ConfigError, match=message) as refusal:
        Config.from_dict(values)

    assert "\n" not in str(refusal.value)


def test_whole_numbers_may_stand_for_real_ones() -> None:
    config = Config.from_dict({"freq": "h", "horizon": 4, "network": {"dropout": 0}})

    assert config.network.dropout == 0.0
    assert isinstance(config.network.dropout, float)


def test_lists_may_stand_for_tuples() -> None:
    roles = {"known": ["price"], "static": ["site"], "calendar": ["day"], "categories": [["site", "north"]]}
    covariates = CovariatesConfig(**roles)  # type: ignore[arg-type]
    config = Config("h", 4, seasonality=[24], quantile_levels=[0.1, 0.5, 0.9], covariates=covariates)  # type: ignore[arg-type]

    assert config == Config.from_dict(config.to_dict())
    assert isinstance(hash(config), int)
    assert CovariatesConfig(calendar=["off"]).calendar == ()  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"'covariates.known' is 'price', expected a list of str"):
        CovariatesConfig(known="price")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "text", "path", "value"),
    [
        ("horizon", "12", ("horizon",), 12),
        ("seasonality", "24,168", ("seasonality",), [24, 168]),
        ("seasonality", "[7]", ("seasonality",), [7]),
        ("quantile_levels", "0.1, 0.5, 0.9", ("quantile_levels",), [0.1, 0.5, 0.9]),
        ("time_zone", "Europe/Berlin", ("time_zone",), "Europe/Berlin"),
        ("time_zone", "none", ("time_zone",), None),
        ("network.cell", "gru", ("network", "cell"), "gru"),
        ("network.dropout", "0", ("network", "dropout"), 0.0),
        ("network.bias", "false", ("network", "bias"), False),
        ("network.bias", "YES", ("network", "bias"), True),
        ("training.learning_rate", "1e-3", ("training", "learning_rate"), 0.001),
        ("training.precision", "bf16", ("training", "precision"), "bf16"),
        ("training.seed", 9, ("training", "seed"), 9),
    ],
)
def test_one_key_is_replaced_by_text_or_value(key: str, text: Any, path: tuple[str, ...], value: Any) -> None:
    found: Any = CONFIG.with_overrides({key: text}).to_dict()
    for name in path:
        found = found[name]

    assert found == value
    assert type(found) is type(value)
    assert CONFIG == Config("h", 48)


@pytest.mark.parametrize(
    ("key", "text"),
    [("widht", "3"), ("network.width", "3"), ("network", "{}"), ("other.hidden_size", "3"), ("network.cell.x", "3"),
     ("", "3"), ("horizon", "4.5"), ("horizon", "many"), ("network.bias", "maybe"), ("seasonality", "a,b"),
     ("horizon", "0"), ("network.hidden_size", "")],
)  # fmt: skip
def test_an_unknown_key_or_unreadable_text_is_refused(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"'{key}'"):
        CONFIG.with_overrides({key: text})


def test_no_overrides_change_nothing() -> None:
    assert CONFIG.with_overrides({}) == CONFIG
