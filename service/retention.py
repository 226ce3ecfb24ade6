"""How much of its log a stream keeps: what the operator says, and what no model can do without.

Pure. Words: a *span* is either a number of steps, ``5000``, or a time before the stream's last ds, ``90D``.
"""

from __future__ import annotations

import math

import pandas as pd

from forecaster import Calendar, Forecaster
from service.errors import ModelError

__all__ = ["check_span", "least_steps", "steps_of"]


def check_span(text: str) -> str:
    """The text, if it is a span.

    Raises
    ------
    ValueError
        It is none.

    Examples
    --------
    >>> check_span("90D"), check_span("5000")
    ('90D', '5000')
    >>> check_span("soon")
    Traceback (most recent call last):
    ...
    ValueError: expected a number of steps such as 5000, or a span of time such as 90D
    """
    try:
        positive = int(text) > 0 if text.isdecimal() else pd.Timedelta(text) > pd.Timedelta(0)
    except ValueError:
        positive = False
    if not positive:
        raise ValueError("expected a number of steps such as 5000, or a span of time such as 90D")
    return text


def steps_of(span: str, calendar: Calendar) -> int:
    """A span as a number of steps, rounded up; months and business days count with their average length.

    Raises
    ------
    ModelError
        A time, where the calendar only counts steps.

    Examples
    --------
    >>> steps_of("90D", Calendar("h")), steps_of("365D", Calendar("MS")), steps_of("12", Calendar("1"))
    (2160, 12, 12)
    """
    if span.isdecimal():
        return int(span)
    if calendar.is_integer:
        raise ModelError(
            f"a retention of {span!r} is a span of time, but freq '1' counts bare steps: give their number"
        )
    begin, end = calendar.to_index([0, 400])
    step = (pd.Timestamp(end) - pd.Timestamp(begin)) / 400
    return math.ceil(float(pd.Timedelta(span) / step) - 1e-3)


def least_steps(forecaster: Forecaster, max_gap: int) -> int:
    """What must stay: the values of a state's ring, and before them the longest gap, whose values may come late."""
    return forecaster.config.ring_length + max_gap
