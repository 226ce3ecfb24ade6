"""Configuration: what a model is, declared once, checked once, frozen.

Every hyper-parameter stands in exactly one place below and is read from the object elsewhere. Unknown keys and
impossible values are refused with the key named. Nothing here knows files, environments or command lines.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from forecaster.almanac import CYCLES, is_country
from forecaster.calendar import Calendar
from forecaster.declarations import build, check_types, fields_of, plain, read_text, require
from forecaster.errors import ConfigError

__all__ = ["Config", "CovariatesConfig", "NetworkConfig", "TrainingConfig"]

LARGEST_RING = 2048
LARGEST_ENSEMBLE = 16
LARGEST_COLUMNS = 256
LARGEST_VOCABULARY = 1024
"""Distinct values of one categorical column that a model tells apart."""

COUNT_HEADS = ("negative_binomial", "zero_inflated")


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The recurrent stack and its decoder.

    Parameters
    ----------
    cell
        ``lstm``, ``gru`` or ``rnn`` (tanh).
    hidden_size
        Width of the hidden state of every layer.
    num_layers
        Depth of the stack.
    bias
        Whether the gates have additive biases.
    dropout
        Probability of zeroing a unit between layers, for all steps of a chunk alike, and before the decoder; in
        training only.
    proj_size
        Width of a projected hidden state, LSTM only; 0 for none (as in `torch.nn.LSTM`).
    residual
        Add a layer's input to its output wherever the widths agree.
    layer_norm
        Normalise the input of every layer but the first.
    anchored
        Whether forecasts start from seasonal anchors and are corrected by the network; if not, the network starts from
        the level alone (for comparison).
    forget_bias
        Initial bias of the LSTM forget gate; 1 lets gradients pass early in training (Jozefowicz et al., 2015).
    members
        Networks that learn side by side from different weights and forecast the mean of their answers; a state holds
        the recurrent states of all of them. 0: training chooses, several for a small panel.
    """

    cell: Literal["lstm", "gru", "rnn"] = "lstm"
    hidden_size: int = 64
    num_layers: int = 2
    bias: bool = True
    dropout: float = 0.1
    proj_size: int = 0
    residual: bool = True
    layer_norm: bool = False
    anchored: bool = True
    forget_bias: float = 1.0
    members: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        check_types(self, "network.")
        require(1 <= self.hidden_size <= 4096, "network.hidden_size", self.hidden_size, "1 to 4096")
        require(1 <= self.num_layers <= 16, "network.num_layers", self.num_layers, "1 to 16")
        require(0 <= self.dropout < 1, "network.dropout", self.dropout, "at least 0 and below 1")
        require(
            0 <= self.proj_size < self.hidden_size, "network.proj_size", self.proj_size, "0 or less than hidden_size"
        )
        require(abs(self.forget_bias) <= 100, "network.forget_bias", self.forget_bias, "-100 to 100")
        require(0 <= self.members <= LARGEST_ENSEMBLE, "network.members", self.members, f"0 to {LARGEST_ENSEMBLE}")
        require(
            self.proj_size == 0 or self.cell == "lstm", "network.proj_size", self.proj_size, "0 unless cell is lstm"
        )

    @property
    def output_size(self) -> int:
        """Width of the hidden state that a layer hands on."""
        return self.proj_size or self.hidden_size

    @property
    def num_members(self) -> int:
        """Networks in the ensemble: one where that is still to be chosen."""
        return self.members or 1


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How the weights are found.

    Parameters
    ----------
    lanes
        Series followed side by side; the batch size of one update. Fewer are used when the panel is small. 0: 128, or a
        quarter of them, and so on, if what they learn holds better: see `forecaster.training.attempts`.
    chunk_length
        Steps between two cuts of the gradient (truncated back-propagation through time).
    carry
        Whether the recurrent state is carried from chunk to chunk, as in serving; if not, every chunk starts from a
        fresh one, as if windows had been drawn (for comparison).
    origins
        Steps of a chunk that count in the loss: ``all``, or only the ``last``, as with windows (for comparison).
    updates
        Updates of the weights, the length of the learning-rate schedule. 0: as many as the panel calls for, 40 passes
        (100 in the company of imagined series), but at most 1,200, of a large panel 2,400; one pass where that is too
        few for it, but at most 24,000.
    epoch_updates
        Updates in an epoch, which ends with a validation; fewer on small panels.
    learning_rate
        Peak of the schedule: linear rise over `lr_warmup_share` of the run, then cosine decay to 2 % of the peak.
    lr_warmup_share
        Share of the run spent rising.
    weight_decay
        Decoupled (AdamW).
    gradient_clip_val
        Largest global norm of the gradient; of an ensemble's, this divided by the square root of its members. Usual
        norms are 0.05 to 0.3; a few volatile series send ten times that.
    averaging
        Decay per update of the exponential moving average of the weights that validation and the final model use;
        0 for none.
    validation_horizons
        Horizons at the end of each series on which early stopping judges and which training does not learn from; more
        where a panel of few long series would be judged by chance. 0: no validation, the last weights are kept.
    patience
        Epochs without improvement after which training stops.
    finish
        Share of the run, at its end, that goes on from the judged weights on all of the data, held-out steps included;
        0: the judged weights are served.
    imagined
        Whether series drawn from a broad prior are learnt from beside the panel's own: ``on``, ``off``, or ``auto``:
        where the panel is too small to tell what series are like. See `forecaster.training.imagining`.
    gaps
        Share of the chunks that are learnt from, per series, in which some steps in a row are hidden, so that forecasts
        after a gap are learnt, too. See `forecaster.chunks.Lanes`.
    start
        What is known before the first update: the ``regression`` of what comes on cycles and anchors, the ``mean`` of
        the anchors, or ``auto``: the regression, unless there are known columns, since it would credit the cycles
        with what those explain. See `forecaster.training.starting`.
    pull
        Whether some of what is learnt after that is given up again where windows that were not learnt from call for it
        (``auto``), or nothing (``off``). See `forecaster.training.pulling`.
    precision
        Of the recurrent layers in training: ``32``, ``bf16`` (mixed), or ``auto``: bf16 where the processor is faster
        with it, at a small cost in accuracy per update. Validation, backtest and service always compute in float32.
    accelerator
        Where the weights are found: ``gpu`` (CUDA), ``cpu``, or ``auto``: on a GPU if PyTorch finds one. Only on the
        processor does the same seed give the same weights bit for bit. Backtest and service always run there.
    seed
        Of weights, order of series, and dropout.
    """

    lanes: int = 0
    chunk_length: int = 56
    carry: bool = True
    origins: Literal["all", "last"] = "all"
    updates: int = 0
    epoch_updates: int = 75
    learning_rate: float = 4e-3
    lr_warmup_share: float = 0.05
    weight_decay: float = 1e-3
    gradient_clip_val: float = 0.1
    averaging: float = 0.998
    validation_horizons: int = 1
    patience: int = 16
    finish: float = 0.25
    imagined: Literal["auto", "on", "off"] = "auto"
    gaps: float = 0.1
    start: Literal["auto", "regression", "mean"] = "auto"
    pull: Literal["auto", "off"] = "auto"
    precision: Literal["auto", "32", "bf16"] = "32"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        check_types(self, "training.")
        require(self.updates >= 0, "training.updates", self.updates, "at least 0")
        require(self.lanes >= 0, "training.lanes", self.lanes, "at least 0")
        for name in ("chunk_length", "epoch_updates", "patience"):
            require(getattr(self, name) >= 1, f"training.{name}", getattr(self, name), "at least 1")
        require(0 < self.learning_rate < 1, "training.learning_rate", self.learning_rate, "between 0 and 1")
        require(
            0 <= self.lr_warmup_share < 1, "training.lr_warmup_share", self.lr_warmup_share, "at least 0 and below 1"
        )
        require(self.weight_decay >= 0, "training.weight_decay", self.weight_decay, "at least 0")
        require(self.gradient_clip_val > 0, "training.gradient_clip_val", self.gradient_clip_val, "above 0")
        require(0 <= self.averaging < 1, "training.averaging", self.averaging, "at least 0 and below 1")
        require(
            0 <= self.validation_horizons <= 16, "training.validation_horizons", self.validation_horizons, "0 to 16"
        )
        require(0 <= self.gaps <= 1, "training.gaps", self.gaps, "0 to 1")
        require(0 <= self.finish <= 0.5, "training.finish", self.finish, "0 to 0.5")
        require(0 <= self.seed < 2**32, "training.seed", self.seed, "0 to 2**32 - 1")


@dataclass(frozen=True, slots=True)
class CovariatesConfig:
    """What else is known of a series besides y: columns by role, and what its dates alone tell.

    Columns of numbers are real, all others (text, truth values) categories.

    Parameters
    ----------
    known
        Columns known for the steps to forecast too: plans, prices, a weather forecast.
    past
        Columns known up to the cutoff only.
    static
        Columns with one value per series; `unique_id` may be among them.
    calendar
        Cycles of the calendar that the network is told its place in: of ``hour``, ``day``, ``week``, ``month``,
        ``year``. ``auto``: training chooses those that are longer than a step and at most half as long as the panel.
        ``off`` or empty: none.
    holidays
        Whose public holidays count: an ISO 3166 country code such as ``DE`` for all series, or the static column, or
        `unique_id`, whose values are such codes. ``auto``: training chooses `unique_id` if every series is named by
        such a code and the week is among the cycles. ``off`` or empty: none.
    categories
        One entry per categorical column: its name, then the values told apart. Filled by training; any other value is
        treated as missing.
    """

    known: tuple[str, ...] = ()
    past: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    calendar: tuple[str, ...] = ("auto",)
    holidays: str = "auto"
    categories: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        """Check names and ranges."""
        if isinstance(self.calendar, str):
            object.__setattr__(self, "calendar", tuple(part.strip() for part in self.calendar.split(",")))
        check_types(self, "covariates.")
        if self.calendar in (("off",), ("",)):
            object.__setattr__(self, "calendar", ())
        if self.holidays == "off":
            object.__setattr__(self, "holidays", "")
        columns = (*self.known, *self.past, *self.static)
        for role in ("known", "past", "static"):
            names = getattr(self, role)
            reserved = {"ds", "y"} if role == "static" else {"unique_id", "ds", "y"}
            twice = sorted({name for name in names if columns.count(name) > 1})
            require(not twice, f"covariates.{role}", names, f"each column once among all roles; {twice} repeats")
            require(
                all(name and name not in reserved for name in names),
                f"covariates.{role}",
                names,
                f"names of columns other than {', '.join(sorted(reserved))}",
            )
        require(len(columns) <= LARGEST_COLUMNS, "covariates", len(columns), f"at most {LARGEST_COLUMNS} columns")
        require(
            self.calendar == ("auto",) or set(self.calendar) <= set(CYCLES),
            "covariates.calendar",
            self.calendar,
            f"auto, off, or some of {', '.join(CYCLES)}",
        )
        require(
            not self.country or self.country in ("unique_id", *self.static) or is_country(self.country),
            "covariates.holidays",
            self.holidays,
            "an ISO country code with known holidays, a static column, unique_id, auto, or off",
        )
        for entry in self.categories:
            require(
                1 <= len(entry) <= LARGEST_VOCABULARY + 1 and entry[0] in columns,
                "covariates.categories",
                entry[:4],
                f"a column of some role, then at most {LARGEST_VOCABULARY} values",
            )

    @property
    def country(self) -> str:
        """`holidays` as chosen: empty where none count, and ``auto`` counts as none."""
        return "" if self.holidays == "auto" else self.holidays

    @property
    def dynamic(self) -> tuple[str, ...]:
        """Columns with a value at every step: the known ones, then the past ones."""
        return self.known + self.past

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns."""
        return self.known + self.past + self.static

    def values_of(self, column: str) -> tuple[str, ...] | None:
        """Values told apart of a categorical column; None if the column is real."""
        return next((entry[1:] for entry in self.categories if entry[0] == column), None)


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that defines a model before its weights.

    Parameters
    ----------
    freq
        Frequency of the series: a pandas offset alias, or ``1`` for integer steps.
    horizon
        Steps forecast directly. Longer horizons, up to `max_horizon`, are reached by rolling a copy of the state.
    seasonality
        Periods in steps, each at least 1. Empty: the usual ones of `freq`.
    time_zone
        IANA zone of the timestamps; None for naive ones.
    quantile_levels
        Levels the decoder is trained on, rising, an odd number of them with 0.5 in the middle.
    context_length
        Recent values each state keeps in its ring; 0: two seasons or so, and no less than a horizon. A multiple of the
        longest season, so that every phase of it has its place: rounded up, or down where more than 2,048 would come.
    transform
        ``log`` (relative changes; for positive data), ``linear``, or ``auto``: training chooses by the panel.
    network, training, covariates
        See `NetworkConfig`, `TrainingConfig`, `CovariatesConfig`.
    head
        What a forecast is made of. ``quantile``: quantiles at `quantile_levels`. ``student_t``: a density with heavy
        tails. ``negative_binomial``, ``zero_inflated``: probabilities of counts, without and with extra zeros.
    support
        What y can be. ``nonnegative``: nothing below 0 is forecast of a series whose recent values are not, or slightly
        (by a twentieth of their mean magnitude together). ``auto``:
        training chooses by the panel.
    calibration
        How far intervals are stretched to cover what they say: ``static``, by factors found on held-out blocks after
        training; ``adaptive``, by those and a correction that follows each stream; ``off``, not at all. A density is as
        wide as its likelihood makes it: those of counts are never stretched, ``student_t`` only by the correction.

    Examples
    --------
    >>> config = Config(freq="h", horizon=48)
    >>> config.seasonality, config.ring_length, config.max_horizon
    ((24, 168), 168, 192)
    >>> Config.from_dict({"freq": "h", "horizon": 48, "widht": 3})
    Traceback (most recent call last):
    ...
    forecaster.errors.ConfigError: config key 'widht' is unknown; expected one of freq, horizon, seasonality, time_zone,
    quantile_levels, context_length, transform, network, training, head, support, calibration, covariates
    """

    freq: str
    horizon: int
    seasonality: tuple[int, ...] = ()
    time_zone: str | None = None
    quantile_levels: tuple[float, ...] = (0.025, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.975)
    context_length: int = 0
    transform: Literal["auto", "log", "linear"] = "auto"
    network: NetworkConfig = field(default_factory=NetworkConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    head: Literal["quantile", "student_t", "negative_binomial", "zero_inflated"] = "quantile"
    support: Literal["auto", "real", "nonnegative"] = "auto"
    calibration: Literal["adaptive", "static", "off"] = "adaptive"
    covariates: CovariatesConfig = field(default_factory=CovariatesConfig)

    def __post_init__(self) -> None:
        """Normalise the seasonality and check ranges."""
        check_types(self)
        calendar = Calendar(self.freq, self.time_zone)
        usual = tuple(s for s in calendar.default_seasonality if s <= LARGEST_RING) or (1,)  # a day of seconds is not
        object.__setattr__(self, "seasonality", tuple(sorted(set(self.seasonality))) or usual)
        require(1 <= self.horizon <= 2048, "horizon", self.horizon, "1 to 2048")
        require(
            all(1 <= s <= LARGEST_RING for s in self.seasonality),
            "seasonality",
            self.seasonality,
            f"periods of 1 to {LARGEST_RING} steps",
        )
        require(0 <= self.context_length <= LARGEST_RING, "context_length", self.context_length, f"0 to {LARGEST_RING}")
        require(
            not calendar.is_integer or (self.covariates.calendar in ((), ("auto",)) and not self.covariates.country),
            "covariates.calendar",
            self.covariates.calendar,
            "off, and no holidays, where freq is '1': bare steps have no calendar",
        )
        levels = self.quantile_levels
        rising = len(levels) >= 3 and list(levels) == sorted(set(levels)) and 0 < levels[0] and levels[-1] < 1
        require(
            len(levels) % 2 == 1 and rising and levels[len(levels) // 2] == 0.5,
            "quantile_levels",
            levels,
            "an odd number, 3 or more, of rising levels between 0 and 1 with 0.5 in the middle",
        )

    @property
    def calendar(self) -> Calendar:
        """Calendar of `freq` in `time_zone`."""
        return Calendar(self.freq, self.time_zone)

    @property
    def ring_length(self) -> int:
        """Values kept per series: a multiple of the longest season."""
        longest = self.seasonality[-1]
        wanted = self.context_length or max(longest, min(4 * self.seasonality[0], 2 * longest), self.horizon, 24)
        return min(-(-wanted // longest), max(LARGEST_RING // longest, 1)) * longest

    @property
    def max_horizon(self) -> int:
        """Longest horizon answered: four times the trained one."""
        return 4 * self.horizon

    @property
    def counts(self) -> bool:
        """Whether y must be whole numbers of 0 or more."""
        return self.head in COUNT_HEADS

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON; `from_dict` is its inverse."""
        return typing.cast(dict[str, Any], plain(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Build from nested plain values.

        Raises
        ------
        ConfigError
            A key is unknown, a required one is missing, or a value has the wrong type or range.
        """
        return build(cls, values)

    def with_overrides(self, overrides: Mapping[str, Any]) -> Config:
        """Return a copy with dotted keys replaced; text values are read as the type of the field.

        Examples
        --------
        >>> Config("h", 48).with_overrides({"network.hidden_size": "32", "seasonality": "24,168"}).network.hidden_size
        32
        """
        values = self.to_dict()
        for key, value in overrides.items():
            section, _, name = key.rpartition(".")
            target = values if not section else values.get(section)
            owner = ({"": Config} | _SECTIONS).get(section)
            if owner is None or target is None or name not in fields_of(owner) or (not section and name in _SECTIONS):
                raise ConfigError(f"config key {key!r} is unknown; expected one of {', '.join(_keys())}")
            target[name] = read_text(value, fields_of(owner)[name], key) if isinstance(value, str) else value
        return Config.from_dict(values)


_SECTIONS: dict[str, type] = {"network": NetworkConfig, "training": TrainingConfig, "covariates": CovariatesConfig}


def _keys() -> list[str]:
    top = [name for name in fields_of(Config) if name not in _SECTIONS]
    return top + [f"{section}.{name}" for section, owner in _SECTIONS.items() for name in fields_of(owner)]
