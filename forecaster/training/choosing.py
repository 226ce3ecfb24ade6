"""What the configuration leaves open, chosen by the data that may be learnt from, with the reasons.

Rules where one look at the data tells; a race where it does not: every candidate is trained for a short while, and the
served code's forecasts of the validation part decide.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from forecaster.almanac import country_number, default_cycles
from forecaster.backtesting import backtest
from forecaster.config import Config
from forecaster.errors import PanelError
from forecaster.forecaster import Forecaster
from forecaster.kernels import SLIGHT
from forecaster.panel import Panel
from forecaster.training.data import FEWEST_JUDGED, SMALL_PANEL, judged, sample

__all__ = ["Choice", "Trials", "choose", "choose_covariates", "race_length"]

RACE_SHARE = 0.15
"""Share of a run's updates that each candidate of a race is trained for."""

SHORTEST_RACE = 50
LONGEST_RACE = 200
"""Updates. After fewer, the weights say nothing; after more, the order of the candidates no longer changes."""

RUNNERS = 256
"""Series that decide a race at most."""

RING_LENGTHS = 4
"""Rings of history that the judged forecasts start from: as much as a state remembers well."""

ENSEMBLES = (4, 2)
"""Members of it: the first number that a time box has room for, if it has room for any."""

ENOUGH_ROOM = 0.5
"""Share of a run's updates that a time box must have room for: four networks after half of it are no worse than one
after all of it, but after a quarter they are."""

TINY_PANEL = 2**13
"""Observed values up to which series are imagined beside the panel's own."""

LONG_SERIES = 2**11
"""Steps of the median series from which a panel is not tiny, however few these are: it shows its own seasons often."""

JUDGED_BY = ("smape", "mase", "wql")


class Trials(Protocol):
    """Short trainings on a panel without its validation part."""

    def train(self, config: Config) -> Forecaster:
        """A candidate, trained for a short while."""
        ...

    def room(self, config: Config) -> float:
        """Share of the updates of a whole run that there is time for; infinite without a time box."""
        ...


class Choice(NamedTuple):
    """A configuration that leaves nothing open, and why: one sentence for each thing that was chosen."""

    config: Config
    reasons: tuple[str, ...]


def race_length(config: Config) -> int:
    """Updates of each candidate of a race; 0 where the run is too short for one."""
    whole = config.training.updates
    updates = min(LONGEST_RACE, int(RACE_SHARE * whole)) if whole else LONGEST_RACE
    return updates if updates >= SHORTEST_RACE else 0


def choose(config: Config, panel: Panel, held_out: int, trials: Trials) -> Choice:
    """Choose support, company for a tiny panel, where training starts, transform and the size of the ensemble.

    Parameters
    ----------
    config
        What is left open is ``auto``.
    panel
        What may be learnt from, validation part included.
    held_out
        Steps of the validation part, at the end of each series; 0 if there is none.
    trials
        Train candidates, and know what there is time for.
    """
    depth, lowest, name = min(map(_depth, panel.unique_ids, panel.values))
    below = f"series {name!r} has values below 0 (down to {lowest:g})" if depth < -SLIGHT else ""
    said: tuple[str, ...] = ()
    if config.support == "auto":
        config = replace(config, support="real" if below else "nonnegative")
        because = below or f"{_none_below(lowest)}, so none will be forecast"
        said = (f"support {config.support}: {because}",)
    if config.training.imagined == "auto":
        config, because = _choose_imagined(config, panel)
        said = (*said, f"imagined series {config.training.imagined}: {because}")
    if config.training.start == "auto":
        config, because = _choose_start(config)
        said = (*said, f"start {config.training.start}: {because}")
    if config.transform == "auto":
        config, because = _choose_transform(config, panel, held_out, trials, below, _none_below(lowest))
        said = (*said, f"transform {config.transform}: {because}")
    if not config.network.members:
        config, because = _choose_members(config, panel, trials)
        said = (*said, f"members {config.network.members}: {because}")
    return Choice(config, said)


def _choose_imagined(config: Config, panel: Panel) -> tuple[Config, str]:
    """Whether to learn from a prior too."""
    count, usual = panel.observed, int(np.median(panel.lengths))
    tiny = count <= TINY_PANEL and usual < LONG_SERIES and not config.counts
    because = (
        f"{count:,} values do not tell what series are like"
        if tiny
        else f"head {config.head} is for counts, which are not imagined"
        if config.counts
        else f"{count:,} values tell what series are like"
    )
    return replace(config, training=replace(config.training, imagined="on" if tiny else "off")), because


def _choose_start(config: Config) -> tuple[Config, str]:
    """Whether a regression comes before training."""
    known = config.covariates.known
    because = (
        f"a regression would lay to the cycles what {', '.join(known)} may explain"
        if known
        else "cycles of the recent past tell of those to come"
    )
    return replace(config, training=replace(config.training, start="mean" if known else "regression")), because


def _choose_members(config: Config, panel: Panel, trials: Trials) -> tuple[Config, str]:
    """One network, or several whose chance errors cancel."""

    def ensemble(members: int) -> Config:
        return replace(config, network=replace(config.network, members=members))

    count = panel.observed
    if count > SMALL_PANEL:
        return ensemble(1), f"{count:,} values teach one network enough"
    chance = f"{count:,} values leave much to chance"
    for members in ENSEMBLES:
        if trials.room(ensemble(members)) >= ENOUGH_ROOM:
            return ensemble(members), f"{chance}, which {members} networks average out"
    return ensemble(1), f"{chance}, but there is no time for more than one network"


def _depth(name: str, y: npt.NDArray[np.float64]) -> tuple[float, float, str]:
    """How far a series goes below 0, in mean magnitudes: 0 where it does not; then its lowest value and its name."""
    seen = y[np.isfinite(y)]
    lowest = float(seen.min(initial=np.inf))
    return (lowest / float(np.abs(seen).mean()) if lowest < 0 else 0.0), lowest, name


def _none_below(lowest: float) -> str:
    return f"no value is below 0 but slightly (down to {lowest:g})" if lowest < 0 else "no value is below 0"


def _choose_transform(
    config: Config, panel: Panel, held_out: int, trials: Trials, below: str, otherwise: str
) -> tuple[Config, str]:
    """Logarithm or not; `below` says which series forbids it, if one does, and `otherwise` that none does."""
    if below:
        return replace(config, transform="linear"), below
    if held_out < config.horizon or judged(panel, held_out) < FEWEST_JUDGED or not race_length(config):
        return replace(config, transform="log"), f"{otherwise}, and there is too little data or time to try both"
    candidates = [replace(config, transform=kind) for kind in ("log", "linear")]
    known = RING_LENGTHS * config.ring_length + held_out
    judges = sample(panel, RUNNERS, config.training.seed).tail(known)
    log, linear = (_errors(trials.train(candidate), judges, held_out) for candidate in candidates)
    comparable = np.isfinite(log) & np.isfinite(linear) & (log > 0) & (linear > 0)
    # The mean of the logarithms: no metric outweighs another by its size.
    ratio = float(np.exp(np.log(log[comparable] / linear[comparable]).mean())) if comparable.any() else 1.0
    winner = candidates[0 if ratio <= 1 else 1]
    return winner, (
        f"{otherwise}; after a short training of both, errors on the validation part with log were "
        f"{ratio:.3f} times those with linear"
    )


def choose_covariates(config: Config, panel: Panel, held_out: int) -> Choice:
    """Choose cycles of the calendar, holidays, and the values of categories that the part to learn from has.

    Parameters
    ----------
    config, held_out
        As for `choose`.
    panel
        As for `choose`, read with the configuration's covariates.

    Raises
    ------
    PanelError
        The panel was read with other covariates, or holidays are asked for and no series has a country with any.
    """
    covariates = config.covariates
    if covariates.calendar == ("auto",):
        covariates = replace(covariates, calendar=default_cycles(config.calendar, int(panel.lengths.max())))
    said: tuple[str, ...] = ()
    if covariates.holidays == "auto":
        countries = "week" in covariates.calendar and all(country_number(name) for name in panel.unique_ids)
        covariates = replace(covariates, holidays="unique_id" if countries else "")
        if countries:
            said = (f"holidays unique_id: every series is named by a country, for example {panel.unique_ids[0]!r}",)
    known = tuple(entry for entry in panel.covariates.categories if entry[0] in covariates.columns)
    panel = panel.with_covariates(replace(covariates, categories=covariates.categories or known))
    if not covariates.categories:
        covariates = replace(covariates, categories=panel.drop_last(held_out).categories())
    if covariates.country and not panel.static[:, -1:].any():
        raise PanelError(
            f"covariates.holidays is {covariates.holidays!r}, but no series has a country code with known holidays, "
            f"for example {panel.unique_ids[0]!r}"
        )
    return Choice(replace(config, covariates=covariates), said)


def _errors(forecaster: Forecaster, panel: Panel, held_out: int) -> npt.NDArray[np.float64]:
    horizon = forecaster.config.horizon
    result = backtest(forecaster, panel, horizon=horizon, n_windows=held_out // horizon, step_size=horizon)
    return np.array([result.metrics[name] for name in JUDGED_BY])
