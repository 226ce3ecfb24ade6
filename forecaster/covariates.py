"""Covariates as inputs of the network: columns, places in the calendar and holidays.

Real columns are standardised by the mean and deviation of the training part and carry a flag where missing; categories
are embedded, missing and unknown ones as zero. The recurrent layers see the covariates of the step they fold; the head
sees, of every step it forecasts, what is known of it beforehand.

Axes: B row, T step, H horizon step, D dynamic column (known, then past), K known column, S static number, E input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from forecaster.almanac import Almanac, country_number
from forecaster.columns import encode_value, text_of
from forecaster.config import Config, CovariatesConfig
from forecaster.errors import InputError
from forecaster.panel import Panel

__all__ = ["Columns", "CovariateInputs", "static_numbers", "static_size", "table_of"]

Float = npt.NDArray[np.float64]

LARGEST_DEVIATIONS = 8.0
"""A real value further than this from its mean, in deviations, is taken for one at that distance."""

LARGEST_EMBEDDING = 8


def static_size(config: CovariatesConfig) -> int:
    """Static numbers S in each series' state: the static columns, then the country whose holidays count."""
    return len(config.static) + bool(config.country)


def table_of(rows: Sequence[Mapping[str, Any] | None], names: Sequence[str], config: CovariatesConfig) -> Float:
    """Plain values by column name as numbers, shape [rows, names]; what a row lacks is missing.

    Raises
    ------
    InputError
        A value of a real column is not a finite number; the message names the column.
    """
    table = np.full((len(rows), len(names)), np.nan)
    for place, name in enumerate(names):
        values = config.values_of(name)
        for number, row in enumerate(rows):
            if row is not None and name in row:
                try:
                    table[number, place] = encode_value(row[name], values)
                except InputError as error:
                    raise InputError(f"covariate {name!r}: {error}") from None
    return table


def static_numbers(
    unique_ids: Sequence[str], rows: Sequence[Mapping[str, Any] | None], config: CovariatesConfig
) -> Float:
    """Static columns of series, and their country, as numbers [series, S].

    Raises
    ------
    InputError
        As `table_of`.
    """
    named = [{**(row or {}), "unique_id": name} for name, row in zip(unique_ids, rows, strict=True)]
    table = table_of(named, config.static, config)
    if not config.country:
        return table
    source = config.country if config.country in ("unique_id", *config.static) else None
    codes = [config.country if source is None else text_of(row.get(source)) or "" for row in named]
    return np.column_stack([table, [country_number(code) for code in codes]])


class Columns(nn.Module):
    """Columns of raw values as inputs of a network.

    Parameters
    ----------
    names
        The columns.
    config
        Which of them are categories, and of what values.
    """

    def __init__(self, names: Sequence[str], config: CovariatesConfig) -> None:
        super().__init__()
        vocabularies = [config.values_of(name) for name in names]
        self.real = [place for place, values in enumerate(vocabularies) if values is None]
        self.coded = [place for place, values in enumerate(vocabularies) if values is not None]
        sizes = [len(values) for values in vocabularies if values is not None]
        # Number 0 is a missing or unknown value, and no information: its embedding stays zero.
        self.embeddings = nn.ModuleList(
            nn.Embedding(size + 1, min(LARGEST_EMBEDDING, math.ceil((size + 1) / 2)), padding_idx=0) for size in sizes
        )
        self.size = 2 * len(self.real) + sum(table.embedding_dim for table in self.embeddings)  # type: ignore[misc]
        self.center: Tensor
        self.scale: Tensor
        self.register_buffer("center", torch.zeros(len(self.real), dtype=torch.float64))
        self.register_buffer("scale", torch.ones(len(self.real), dtype=torch.float64))

    def standardise(self, values: Tensor) -> None:
        """Set mean and deviation from the observed values [..., columns] of the training part."""
        for place, column in enumerate(self.real):
            known = values[..., column]
            known = known[~torch.isnan(known)]
            deviation = float(known.std(correction=0)) if len(known) else 0.0
            self.center[place] = float(known.mean()) if len(known) else 0.0
            self.scale[place] = deviation if deviation > 0 else 1.0

    def forward(self, raw: Tensor) -> Tensor:
        """Inputs, float32, shape [..., size], of raw values [..., columns]: numbers, or numbers of categories."""
        parts = []
        if self.real:
            numbers = (raw[..., self.real] - self.center) / self.scale
            missing = torch.isnan(numbers)
            numbers = numbers.masked_fill(missing, 0.0).clamp(-LARGEST_DEVIATIONS, LARGEST_DEVIATIONS)
            parts += [numbers.float(), missing.float()]
        for column, table in zip(self.coded, self.embeddings, strict=True):
            parts.append(table(raw[..., column].nan_to_num(0.0).long()))
        return torch.cat(parts, -1) if parts else raw.new_empty((*raw.shape[:-1], 0), dtype=torch.float32)


class CovariateInputs(nn.Module):
    """All covariates of one configuration.

    Parameters
    ----------
    config
        With chosen cycles (``auto`` counts as none).
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        declared = config.covariates
        self.known = Columns(declared.known, declared)
        self.past = Columns(declared.past, declared)
        self.static = Columns(declared.static, declared)
        self.almanac = Almanac(config.calendar, () if declared.calendar == ("auto",) else declared.calendar)
        self.has_holidays = bool(declared.country)
        self.horizon = config.horizon
        self.num_known, self.num_dynamic, self.num_static = (
            len(declared.known),
            len(declared.dynamic),
            len(declared.static),
        )
        # Of the step that a seasonal anchor repeats, too: a holiday then is why the anchor is wrong now.
        self.seasons = [period for period in config.seasonality if period > 1] if self.has_holidays else []
        ahead = torch.arange(1, config.horizon + 1)
        offsets = [ahead] + [ahead - period * (-(-ahead // period)) for period in self.seasons]
        self.offsets = torch.stack(offsets, -1)  # [H, 1 + seasons]; no buffer, which training would average
        per_step = self.known.size + self.almanac.size
        self.encoder_size = per_step + self.has_holidays + self.past.size + self.static.size
        self.decoder_size = per_step + self.has_holidays * (1 + len(self.seasons))

    def standardise(self, panel: Panel) -> None:
        """Set means and deviations of all real columns from the steps of a panel."""
        tables = [table[: len(y)] for table, y in zip(panel.tables, panel.values, strict=True)]
        table = torch.from_numpy(np.concatenate(tables))
        self.known.standardise(table[:, : self.num_known])
        self.past.standardise(table[:, self.num_known :])
        self.static.standardise(torch.from_numpy(panel.static))

    def moments(self, steps: Tensor, static: Tensor) -> Tensor:
        """What the almanac tells of steps, float32, shape [B, T, C]: places in the cycles, then holidays.

        Parameters
        ----------
        steps
            Step numbers, int64, shape [B, T].
        static
            Static numbers of the state, shape [B, S].
        """
        places = self.almanac.places(steps)
        if not self.has_holidays:
            return places
        return torch.cat([places, self.almanac.holidays(steps, static[:, -1]).unsqueeze(-1)], -1)

    def coming(self, cutoffs: Tensor, static: Tensor, steps: int) -> Tensor:
        """What the almanac tells of the first `steps` of the horizon after each cutoff, float32, shape [..., steps, C].

        With holidays, also of those that a season before each step fell on.

        Parameters
        ----------
        cutoffs
            Step numbers, int64, shape [...].
        static
            Shape [..., S].
        steps
            At most the horizon.
        """
        offsets = self.offsets[:steps]
        places = self.almanac.places(cutoffs.unsqueeze(-1) + offsets[:, 0])
        if not self.has_holidays:
            return places
        wanted = cutoffs.unsqueeze(-1).unsqueeze(-1) + offsets
        return torch.cat([places, self.almanac.holidays(wanted, static[..., -1])], -1)

    def encode(self, moments: Tensor, static: Tensor, table: Tensor | None) -> Tensor:
        """Inputs of the recurrent layers, shape [B, T, E].

        Parameters
        ----------
        moments
            What `moments` tells, shape [B, T, C].
        static
            Static numbers of the state, shape [B, S].
        table
            Raw values, float64, shape [B, T, D]; None: all missing.
        """
        if table is None:
            table = _missing(moments, self.num_dynamic)
        constant = self.static(static[:, : self.num_static])
        return torch.cat(
            [
                self.known(table[..., : self.num_known]),
                self.past(table[..., self.num_known :]),
                constant.unsqueeze(1).expand(-1, moments.shape[1], -1),
                moments,
            ],
            -1,
        )

    def decode(self, coming: Tensor, future: Tensor | None) -> Tensor:
        """Inputs of the head for the steps to come, shape [..., H, E].

        Parameters
        ----------
        coming
            What `coming` tells, shape [..., H, C].
        future
            Raw known values of these steps, float64, shape [..., H, K]; None: all missing.
        """
        if future is None:
            future = _missing(coming, self.num_known)
        return torch.cat([self.known(future), coming], -1)


def _missing(like: Tensor, columns: int) -> Tensor:
    """Raw values that nobody knows, of so many columns for each entry of `like`."""
    return torch.full((*like.shape[:-1], columns), torch.nan, dtype=torch.float64, device=like.device)
