"""Log lines, structured, written by a thread of their own so that no request waits for a terminal or a pipe.

Records of the standard library's loggers and one line per request go through one queue, in order. If the reader of the
output is slower than the service, lines are dropped and counted, those of requests first, never the service stopped.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Any, NamedTuple, TextIO

import orjson

__all__ = ["Answered", "LogWriter"]

_MOST_WAITING = 20_000
_LOGGERS = ("service", "uvicorn")


class Answered(NamedTuple):
    """What is worth saying about one request.

    Attributes
    ----------
    time
        Seconds since 1970.
    request_id
        As the client got it.
    method, route, path, status
        Of the request; `route` is the template that it matched, or ``none``.
    seconds
        Until it was answered.
    key
        Name of its API key, if it has one.
    """

    time: float
    request_id: str
    method: str
    route: str
    path: str
    status: int
    seconds: float
    key: str | None


class LogWriter:
    """Writes everything that is logged while it is open.

    Parameters
    ----------
    stream
        Where to.
    level
        Least serious level of the service's own loggers; other libraries are heard from ``warning`` on.
    as_json
        One JSON object per line; else text.
    """

    def __init__(self, stream: TextIO, level: str, *, as_json: bool) -> None:
        self._stream = stream
        self._write: Callable[[dict[str, Any]], str] = _json if as_json else _text
        self._queue: SimpleQueue[Answered | dict[str, Any] | None] = SimpleQueue()
        self._dropped = 0
        self._handler = _Handler(self._put)
        self._level = level.upper()
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)

    def open(self) -> None:
        """Take over the standard library's loggers."""
        root = logging.getLogger()
        root.handlers[:] = [self._handler]
        root.setLevel(logging.WARNING)
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(self._level)
        self._thread.start()

    def close(self) -> None:
        """Write what waits, and stop."""
        logging.getLogger().removeHandler(self._handler)
        self._queue.put(None)
        self._thread.join(timeout=5)

    def request(self, answered: Answered) -> None:
        """Log one request."""
        self._put(answered, _MOST_WAITING)

    def _put(self, entry: Answered | dict[str, Any], most: int = 2 * _MOST_WAITING) -> None:
        """Queue an entry, unless too much waits; what is no request has places of its own."""
        if self._queue.qsize() < most:
            self._queue.put(entry)
        else:
            self._dropped += 1

    def _work(self) -> None:
        while (entry := self._queue.get()) is not None:
            lines = [self._line(entry)]
            ended = False
            # Whatever else waits goes out with the same call.
            while not self._queue.empty() and len(lines) < 1000:
                entry = self._queue.get()
                if ended := entry is None:
                    break
                assert entry is not None
                lines.append(self._line(entry))
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                message = f"{dropped} lines were dropped: the log is read too slowly"
                lines.append(self._write(_entry(time.time(), "warning", "service.logs", message)))
            try:
                self._stream.writelines(lines)
                self._stream.flush()
            except (OSError, ValueError):
                pass  # nobody reads it any more, and there is no other place to say so
            if ended:
                return

    def _line(self, entry: Answered | dict[str, Any]) -> str:
        if isinstance(entry, Answered):
            message = f"{entry.method} {entry.route} {entry.status}"
            facts = _entry(entry.time, "info", "service.requests", message)
            facts |= entry._asdict() | {"time": facts["time"], "seconds": round(entry.seconds, 6)}
            entry = {name: value for name, value in facts.items() if value is not None}
        return self._write(entry)


class _Handler(logging.Handler):
    """Hands records over as values, so that what they refer to may change or go."""

    def __init__(self, put: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self._put = put

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one record."""
        try:
            entry = _entry(record.created, record.levelname.lower(), record.name, record.getMessage())
            if record.exc_info and record.exc_info[0]:
                entry["traceback"] = "".join(traceback.format_exception(*record.exc_info))
            self._put(entry)
        except Exception:
            self.handleError(record)


def _entry(seconds: float, level: str, logger: str, message: str) -> dict[str, Any]:
    stamp = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return {"time": stamp.replace("+00:00", "Z"), "level": level, "logger": logger, "message": message}


def _json(entry: dict[str, Any]) -> str:
    try:
        return orjson.dumps(entry, default=str).decode() + "\n"
    except TypeError:  # half of a character, as paths and the environment may hold
        return json.dumps(entry, default=str) + "\n"


def _text(entry: dict[str, Any]) -> str:
    rest = {k: v for k, v in entry.items() if k not in ("time", "level", "logger", "message", "traceback")}
    # A path may hold anything, line ends too.
    facts = "".join(f" {name}={value if str(value).isprintable() else repr(value)}" for name, value in rest.items())
    message, trace = entry["message"], entry.get("traceback", "")
    if not message.isprintable():
        message = repr(message)[1:-1]
    return f"{entry['time']} {entry['level']:8} {entry['logger']}: {message}{facts}\n{trace}"
