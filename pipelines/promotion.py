"""The promotion gate: whether a challenger may become the champion.

A pure function of backtest metrics and configurations. It knows no registry, no clock and no weights: whoever calls it
has measured the champion and the challenger on the same windows of the same panel. Every refusal carries all of its
reasons, so that they can be written down where the next person looks for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from forecaster import Config, InputError

__all__ = ["Decision", "check_margin", "decide", "lacking"]

METRIC, BASELINE = "wql", "seasonal_naive_wql"
"""What decides, of a model and of the seasonal naive; lower is better."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The gate's answer, and why.

    Parameters
    ----------
    promoted
        Whether the challenger may become the champion.
    reasons
        One sentence each; for a refusal everything that speaks against, for a promotion what was beaten.
    """

    promoted: bool
    reasons: tuple[str, ...]

    @property
    def reason(self) -> str:
        """All reasons as one line."""
        return "; ".join(self.reasons)


def lacking(challenger: Config, champion: Config) -> tuple[str, ...]:
    """Why whoever calls the champion could not call the challenger as well, one sentence each.

    Examples
    --------
    >>> lacking(Config("h", horizon=12), Config("h", horizon=24))
    ("horizon 12 is shorter than the champion's (24)",)
    """
    found = []
    if challenger.horizon < champion.horizon:
        found.append(f"horizon {challenger.horizon} is shorter than the champion's ({champion.horizon})")
    if new := [name for name in challenger.covariates.known if name not in champion.covariates.known]:
        found.append(f"it wants to know {', '.join(new)} of the coming steps, which nobody tells the champion")
    return tuple(found)


def decide(
    challenger: Mapping[str, float] | None,
    champion: Mapping[str, float] | None,
    *,
    margin: float = 0.0,
    lacks: Sequence[str] = (),
) -> Decision:
    """Judge a challenger against the champion and the seasonal naive.

    Parameters
    ----------
    challenger
        Backtest metrics of the challenger, with those of the seasonal naive; None if it could not be measured.
    champion
        Backtest metrics of the champion on the same windows of the same panel, empty if it cannot be measured there;
        None if there is no champion.
    margin
        Share by which the challenger has to beat the champion: 0.02 asks for a WQL at least 2 % lower, 0 for any
        improvement at all. A negative margin lets a retrained model in that is at most so much worse, which suits a
        schedule that retrains on newer data for freshness.
    lacks
        What else speaks against it taking the champion's place: see `lacking`.

    Returns
    -------
    Decision
        Without a champion any challenger is promoted, since serving nothing helps nobody; what speaks against it is
        still said.

    Examples
    --------
    >>> decide({"wql": 0.10, "seasonal_naive_wql": 0.20}, {"wql": 0.12}).promoted
    True
    >>> decide({"wql": 0.13, "seasonal_naive_wql": 0.20}, {"wql": 0.12}).reason
    'wql 0.13 does not beat the champion (0.12)'
    >>> decide({"wql": 0.30, "seasonal_naive_wql": 0.20}, None).reason
    'there was no champion; but wql 0.3 does not beat the seasonal naive (0.2)'
    """
    beaten, against = _against_baseline(challenger)
    if champion is None:
        return Decision(
            promoted=True, reasons=("there was no champion", *beaten, *(f"but {reason}" for reason in against))
        )
    if challenger is not None and math.isfinite(challenger.get(METRIC, math.nan)):
        won, reason = _against_champion(challenger[METRIC], champion.get(METRIC, math.nan), margin)
        (beaten if won else against).append(reason)
    against += lacks
    return Decision(promoted=not against, reasons=tuple(against or beaten))


def check_margin(margin: float) -> float:
    """Return a margin of the gate.

    Raises
    ------
    InputError
        Nothing could meet it: it is not a number below 1.
    """
    if not math.isfinite(margin) or margin >= 1.0:
        raise InputError(f"the gate's margin must be a number below 1, not {margin}")
    return margin


def _against_baseline(challenger: Mapping[str, float] | None) -> tuple[list[str], list[str]]:
    """What speaks for and what against the challenger before any champion is looked at."""
    if challenger is None:
        return [], ["the challenger has no backtest, because no window was held out"]
    own, baseline = challenger.get(METRIC, math.nan), challenger.get(BASELINE, math.nan)
    if not math.isfinite(own):
        return [], [f"{METRIC} of the challenger is {own}, not a finite number"]
    if not math.isfinite(baseline):
        return [], [f"{BASELINE} is {baseline}, so there is no baseline to beat"]
    if own < baseline:
        return [f"{METRIC} {own:.6g} beats the seasonal naive ({baseline:.6g})"], []
    return [], [f"{METRIC} {own:.6g} does not beat the seasonal naive ({baseline:.6g})"]


def _against_champion(own: float, rival: float, margin: float) -> tuple[bool, str]:
    if not math.isfinite(rival):
        return False, f"{METRIC} of the champion cannot be measured on this panel"
    by = f" by the margin of {margin:g}" if margin else ""
    wanted = rival * (1.0 - margin)
    # At margin 0 a tie is no improvement; a stated margin is met when it is reached.
    won = own <= wanted if margin else own < rival
    return won, f"{METRIC} {own:.6g} {'beats' if won else 'does not beat'} the champion ({rival:.6g}){by}"
