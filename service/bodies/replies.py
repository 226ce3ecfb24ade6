"""What clients get: outcomes as JSON bytes, written once and not validated again.

It knows the shapes of the HTTP contract and nothing of how outcomes come about. Invariant: every forecast carries its
timestamps, quantile levels, cutoff, and the one model that made it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import orjson
from fastapi import Response

from forecaster.marginals import level_name
from service.engine.items import Outcome
from service.engine.verdicts import TAKEN
from service.models.served import ServedModel, Want
from service.store import StreamRecord

__all__ = [
    "Forecast",
    "Json",
    "description",
    "forecast_json",
    "json_reply",
    "level_names",
    "observed",
    "stream_forecast",
]

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY
_COUNTS_OF_ONE = {only: {word.value: int(word is only) for word in TAKEN} for only in TAKEN}
_JSON_TYPE = (b"content-type", b"application/json")
_VARIES = (b"vary", b"Accept")

Json = dict[str, Any]


class _JsonReply(Response):
    """A response whose headers need no looking at."""

    def __init__(self, body: bytes, status: int, version: int | None, media_type: str | None) -> None:
        self.body = body
        self.status_code = status
        self.background = None
        kind = _JSON_TYPE if media_type is None else (b"content-type", media_type.encode())
        self.raw_headers = [kind, (b"content-length", b"%d" % len(body))]
        if media_type is not None:
            self.raw_headers.append(_VARIES)
        if version is not None:
            self.raw_headers.append((b"etag", b'"%d"' % version))


def json_reply(
    value: object, *, status: int = 200, version: int | None = None, media_type: str | None = None
) -> Response:
    """A JSON response, with the stream's version as its ETag; bytes are JSON already, or what `media_type` says.

    Who names the media type has chosen it by the request's ``Accept``.
    """
    body = value if isinstance(value, bytes) else orjson.dumps(value, option=_OPTIONS)
    return _JsonReply(body, status, version, media_type)


def _forecast(
    model: ServedModel, unique_id: str, last_step: int, want: Want, quantiles: npt.NDArray[np.float64]
) -> Json:
    """A forecast; `quantiles` is [Q, H]."""
    dates = model.dates
    return {
        "unique_id": unique_id,
        "cutoff": dates.text(last_step),
        "model": model.label,
        "ds": dates.json_texts(last_step + 1, want.horizon),
        "quantiles": dict(zip(level_names(want.quantile_levels), quantiles, strict=True)),
    }


class Forecast(NamedTuple):
    """A forecast on its way to whoever asked.

    Attributes
    ----------
    model
        The one that made it.
    unique_id, last_step
        Of the series, and where it ends.
    want
        What was asked for.
    quantiles
        Float64 [Q, H].
    version
        The stream's, if it is of a stream.
    samples
        Sample paths, float64 [S, H], if there are any.
    """

    model: ServedModel
    unique_id: str
    last_step: int
    want: Want
    quantiles: npt.NDArray[np.float64]
    version: int | None = None
    samples: npt.NDArray[np.float64] | None = None

    @classmethod
    def of_stream(cls, outcome: Outcome, want: Want, samples: npt.NDArray[np.float64] | None = None) -> Self:
        """The forecast of a stream, from what became of a request about it."""
        record = outcome.record
        assert outcome.quantiles is not None
        return cls(outcome.model, record.unique_id, record.last_step, want, outcome.quantiles, record.version, samples)

    def at(self, level: float) -> list[float]:
        """The quantiles of one level that was asked for."""
        found: list[float] = self.quantiles[self.want.quantile_levels.index(level)].tolist()
        return found


def forecast_json(found: Forecast) -> Json:
    """A forecast in the contract's words."""
    reply = _forecast(found.model, found.unique_id, found.last_step, found.want, found.quantiles)
    if found.version is not None:
        reply["version"] = found.version
    if found.samples is not None:
        reply["samples"] = found.samples
    return reply


@lru_cache(1024)
def level_names(levels: tuple[float, ...]) -> tuple[str, ...]:
    """Quantile levels as replies name them."""
    return tuple(map(level_name, levels))


def stream_forecast(outcome: Outcome, want: Want) -> bytes:
    """The forecast of a stream, with the stream's version."""
    return orjson.dumps(_stream_forecast(outcome, want), option=_OPTIONS)


def observed(outcome: Outcome, want: Want) -> bytes:
    """The new forecast of a stream, or why there is none, with what became of its observations."""
    reply = _stream_forecast(outcome, want)
    judgement = outcome.judgement
    assert judgement is not None
    verdicts = judgement.verdicts
    if len(verdicts) == 1:
        reply.update(_COUNTS_OF_ONE[verdicts[0]])
    else:
        reply.update((word.value, verdicts.count(word)) for word in TAKEN)
    reply["filled"] = judgement.filled
    if outcome.refusal is not None:
        reply["no_forecast"] = outcome.refusal.members()
    if outcome.places is None:
        reply["places"] = reply["surprises"] = [None] * len(verdicts)
    else:
        reply["places"], reply["surprises"] = outcome.places, outcome.surprises
    return orjson.dumps(reply, option=_OPTIONS)


def _stream_forecast(outcome: Outcome, want: Want) -> Json:
    record = outcome.record
    assert outcome.quantiles is not None
    reply = _forecast(outcome.model, record.unique_id, record.last_step, want, outcome.quantiles)
    reply["version"] = record.version
    return reply


def description(record: StreamRecord, model: ServedModel) -> Json:
    """A stream: where it begins and stands, since when its log is retained, and what it has been told."""
    dates = model.dates
    steps = record.last_step - record.first_step + 1
    return {
        "unique_id": record.unique_id,
        "version": record.version,
        "first_ds": dates.text(record.first_step),
        "log_ds": dates.text(record.log_step),
        "cutoff": dates.text(record.last_step),
        "model": model.label,
        "counts": {
            "observations": record.observations,
            "missing": record.missing,
            "filled": steps - record.observations,
        },
    }
