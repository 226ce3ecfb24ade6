"""`ds` text to step numbers and back, with a memory of the texts just seen.

Live streams share timestamps: a thousand meters report the same hour. Parsing each once is the difference between
microseconds and nanoseconds. It knows nothing of streams; the calendar stays the only judge of what a `ds` means.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from forecaster import Calendar, InputError

__all__ = ["Dates"]

_KEEP = 65_536
_KEEP_LISTS = 4096
_LONGEST_LIST = 256


class Dates:
    """The calendar of the served model, memoised. Safe to share between threads."""

    def __init__(self, calendar: Calendar) -> None:
        self.calendar = calendar
        self._last = calendar.last_step
        self._steps: dict[str, int] = {}
        self._texts: dict[int, str | int] = {}
        self._lists: dict[tuple[int, int], orjson.Fragment] = {}

    def check_end(self, cutoff: int, horizon: int) -> None:
        """Refuse a forecast some of whose steps have no `ds`.

        Raises
        ------
        InputError
            It ends beyond the calendar.
        """
        if self._last is not None and cutoff + horizon > self._last:
            raise InputError(
                f"{horizon} steps after ds {self.text(cutoff)} cannot be forecast: {self.text(self._last)} is the last "
                "that timestamps reach"
            )

    def steps(self, values: Sequence[str | int]) -> list[int]:
        """Step number of each `ds`.

        Raises
        ------
        InputError
            A `ds` cannot be read or is off the grid.
        """
        known = self._steps
        try:
            return [known[value] for value in values]  # type: ignore[index]
        except (KeyError, TypeError):
            pass
        if len(values) > 1 and set(map(type, values)) == {str}:  # else 1 and True would be one
            distinct = list(dict.fromkeys(values))
            if len(distinct) < len(values):
                step_of = dict(zip(distinct, self.steps(distinct), strict=True))
                return [step_of[value] for value in values]
        found: list[int] = self.calendar.parse(values).tolist()
        if not self.calendar.is_integer:
            if len(known) > _KEEP:
                # A new dict, not clear(): another thread may be reading the old one.
                known = self._steps = {}
            # A long history would only push out what is live.
            known.update(zip(values[-64:], found[-64:], strict=True))  # type: ignore[arg-type]
        return found

    def texts(self, first: int, count: int) -> list[str | int]:
        """`ds` of `count` steps from step `first` on."""
        if self.calendar.is_integer:
            return list(range(first, first + count))
        known = self._texts
        try:
            return [known[step] for step in range(first, first + count)]
        except KeyError:
            pass
        found = self.calendar.format(range(first, first + count))
        if len(known) > _KEEP:
            known = self._texts = {}
        if count <= 4096:
            known.update(zip(range(first, first + count), found, strict=True))
        return found

    def json_texts(self, first: int, count: int) -> orjson.Fragment:
        """`texts` as a JSON array: streams that stand at the same step forecast the same timestamps."""
        found = self._lists.get((first, count))
        if found is None:
            found = orjson.Fragment(orjson.dumps(self.texts(first, count)))
            if count <= _LONGEST_LIST:
                if len(self._lists) >= _KEEP_LISTS:
                    self._lists = {}
                self._lists[first, count] = found
        return found

    def text(self, step: int) -> str | int:
        """`ds` of one step."""
        found = self._texts.get(step)
        return self.texts(step, 1)[0] if found is None else found
