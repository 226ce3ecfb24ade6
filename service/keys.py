"""API keys: who may call, what they may do, of which models, how often; ``python -m service.keys new`` makes one.

Keys are 256 random bits, so one SHA-256 hides them as well as a slow hash would, and checking one costs a microsecond.
Only hashes are at rest: one line per key in a file, ``NAME SCOPES sha256:HEX [RATE/s] [models:NAME,...]``. It knows no
routes and no HTTP bodies. Invariant: a file that cannot be read as a whole changes nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import secrets
import sys
from collections.abc import Iterable, Sequence
from decimal import Decimal
from hashlib import sha256
from hmac import compare_digest
from ipaddress import ip_address
from pathlib import Path
from typing import NoReturn, Self

from service.errors import ServiceError
from service.naming import ROOT, check_model_name
from service.problems import Problem

__all__ = ["SCOPES", "ApiKey", "KeyRing", "is_loopback", "main"]

SCOPES = ("read", "write", "admin")
"""What a key may do: ask, change streams, change the service (which no route does yet). None includes another."""

_LINE = re.compile(
    r"(?P<name>[\w.@-]{1,64})\s+(?P<scopes>[a-z,]+)\s+sha256:(?P<digest>[0-9a-f]{64})"
    r"(\s+(?P<rate>\d+(\.\d+)?)/s)?(\s+models:(?P<models>\S+))?"
)
_PREFIX = "fck_"
_LONGEST = 256  # bytes of an Authorization header's credentials that are worth hashing


class ApiKey:
    """One key, with the token bucket that holds its caller to a rate.

    Parameters
    ----------
    name
        As the operator calls its holder.
    scopes
        What it may do.
    digest
        SHA-256 of the key.
    rate
        Requests per second; the bucket holds those of one second, at least one. None: no limit.
    models
        Names of the models it is valid for, ``/`` being the one at the root. None: for all, and for what is of the
        whole process.
    """

    __slots__ = ("_filled_at", "_tokens", "digest", "models", "name", "rate", "scopes")

    def __init__(
        self,
        name: str,
        scopes: Iterable[str],
        digest: bytes,
        rate: float | None,
        models: Iterable[str] | None = None,
    ) -> None:
        self.name = name
        self.scopes = frozenset(scopes)
        self.digest = digest
        self.rate = rate
        self.models = None if models is None else frozenset(models)
        self._tokens = max(rate or 0.0, 1.0)
        self._filled_at = -math.inf

    def wait(self, now: float) -> float:
        """Take a token; seconds until there is one if there is none, else 0.

        Parameters
        ----------
        now
            Seconds of a clock that never goes back.
        """
        if self.rate is None:
            return 0.0
        self._tokens = min(max(self.rate, 1.0), self._tokens + (now - self._filled_at) * self.rate)
        self._filled_at = now
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self.rate


class KeyRing:
    """The keys of one file.

    Parameters
    ----------
    path
        The file.
    rate
        Requests per second of keys without a rate of their own; None: no limit.
    """

    def __init__(self, path: Path, rate: float | None) -> None:
        self._path = path
        self._rate = rate
        self._keys: dict[bytes, ApiKey] = {}
        self._seen: tuple[int, int, int] | None = None

    @classmethod
    def open(cls, path: Path, rate: float | None = None) -> Self:
        """Read the file.

        Raises
        ------
        ServiceError
            It cannot be read, or a line of it is not understood.
        """
        ring = cls(path, rate)
        ring.refresh()
        return ring

    def refresh(self) -> bool:
        """Read the file again if it has changed; buckets of keys that stay keep their level.

        Raises
        ------
        ServiceError
            It cannot be read as a whole; the keys stay as they were.
        """
        try:
            stat = self._path.stat()
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if seen == self._seen:
                return False
            text = self._path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ServiceError(f"the file of API keys cannot be read: {error}") from error
        found = [self._read(number, line) for number, line in enumerate(text.splitlines(), 1) if _content(line)]
        if not found:
            raise ServiceError(f"the file of API keys {self._path} has no key; `forecaster keys new` makes one")
        if len({key.name for key in found}) < len(found) or len({key.digest for key in found}) < len(found):
            raise ServiceError(f"the file of API keys {self._path} has a name or a key twice")
        before = self._keys
        self._keys = {key.digest[:8]: _continued(key, before.get(key.digest[:8])) for key in found}
        self._seen = seen
        return True

    def _read(self, number: int, line: str) -> ApiKey:
        try:
            return _key_of(_content(line), self._rate)
        except ValueError as error:
            raise ServiceError(f"line {number} of {self._path} {error}") from error

    def admit(self, authorization: bytes | None, scope: str, model: str | None, now: float) -> ApiKey:
        """The key that a request carries, if it may do this now.

        Parameters
        ----------
        authorization
            The header's value.
        scope
            What the request needs.
        model
            Whom it asks: a model's name, as in `ApiKey`; None: the whole process.
        now
            As for `ApiKey.wait`.

        Raises
        ------
        Problem
            401 without a known key, 403 if it is not valid for the model or lacks the scope, 429 if it comes too often.
        """
        if authorization is None:
            raise _unauthorised("this needs an API key: Authorization: Bearer KEY", 'Bearer realm="forecaster"')
        kind, _, token = authorization.partition(b" ")
        digest = sha256(token[:_LONGEST]).digest()
        # The place in the table tells an attacker no more than that some hash begins alike.
        key = self._keys.get(digest[:8])
        if kind.lower() != b"bearer" or key is None or not compare_digest(key.digest, digest):
            challenge = 'Bearer realm="forecaster", error="invalid_token"'
            raise _unauthorised("the API key is not known here", challenge)
        if key.models is not None and model not in key.models:
            challenge = 'Bearer realm="forecaster", error="insufficient_scope"'
            asked = "what is of all models" if model is None else f"model {model!r}"
            detail = f"API key {key.name!r} is valid for {', '.join(sorted(key.models))}, not for {asked}"
            raise Problem(403, "forbidden", detail, headers={"www-authenticate": challenge})
        if scope not in key.scopes:
            challenge = f'Bearer realm="forecaster", error="insufficient_scope", scope="{scope}"'
            detail = f"API key {key.name!r} lacks the scope {scope!r}"
            raise Problem(403, "forbidden", detail, headers={"www-authenticate": challenge})
        if key.rate is not None and (seconds := key.wait(now)):
            detail = f"API key {key.name!r} may send {key.rate:g} requests per second"
            raise Problem(429, "rate-limited", detail, headers={"retry-after": str(math.ceil(seconds))})
        return key


def _unauthorised(detail: str, challenge: str) -> Problem:
    return Problem(401, "unauthorised", detail, headers={"www-authenticate": challenge})


def _content(line: str) -> str:
    return line.partition("#")[0].strip()


def _key_of(line: str, rate: float | None) -> ApiKey:
    match = _LINE.fullmatch(line)
    if match is None:
        # The line is not shown: it may hold a key that somebody put there by mistake.
        raise ValueError("is not understood; expected NAME SCOPES sha256:HEX [RATE/s] [models:NAME,...]")
    scopes = match["scopes"].split(",")
    if unknown := [scope for scope in scopes if scope not in SCOPES]:
        raise ValueError(f"has scope {unknown[0]!r}, expected {', '.join(SCOPES)}")
    if match["rate"] and not float(match["rate"]):
        raise ValueError("has a rate of 0; to refuse a key, take its line away")
    models = match["models"] and match["models"].split(",")
    for model in models or ():
        if model != ROOT:
            try:
                check_model_name(model)
            except ValueError as error:
                raise ValueError(f"names a model that cannot be: {error}; {ROOT} is the one at the root") from error
    return ApiKey(
        match["name"], scopes, bytes.fromhex(match["digest"]), float(match["rate"]) if match["rate"] else rate, models
    )


def _continued(key: ApiKey, before: ApiKey | None) -> ApiKey:
    return before if before is not None and _terms(before) == _terms(key) else key


def _terms(key: ApiKey) -> tuple[object, ...]:
    return key.name, key.scopes, key.digest, key.rate, key.models


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class _Parser(argparse.ArgumentParser):
    """Answers mistakes in one line, as the other commands do."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end."""
        self.exit(2, f"forecaster: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """``new``: make a key. Its line for the file goes to standard output, the key itself, once, to standard error."""
    parser = _Parser(prog="forecaster keys", description="API keys of the service.")
    commands = parser.add_subparsers(dest="command", required=True)
    new = commands.add_parser("new", help="make a key; its hash goes to the file of API keys, the key to its holder")
    new.add_argument("name", nargs="?", help="how its holder is called; default: a random name")
    new.add_argument("--scopes", default="read,write", help=f"of {', '.join(SCOPES)}, separated by commas")
    new.add_argument("--rate", type=float, help="requests per second")
    new.add_argument(
        "--models", help=f"it is valid for, separated by commas, {ROOT} being the one at the root; default: all"
    )
    new.add_argument("--json", action="store_true", help="key and line as one JSON object on standard output")
    given = parser.parse_args(arguments)
    key = _PREFIX + secrets.token_urlsafe(32)
    name = given.name or f"key-{secrets.token_hex(3)}"
    line = f"{name} {given.scopes} sha256:{sha256(key.encode()).hexdigest()}"
    line += "" if given.rate is None else f" {Decimal(str(given.rate)).normalize():f}/s"
    line += "" if given.models is None else f" models:{given.models}"
    try:
        _key_of(line, None)
    except ValueError as error:
        parser.error(
            f"name {name!r}, scopes {given.scopes!r}, rate {given.rate} or models {given.models!r} cannot be used: the "
            f"line {error}; letters, digits and ._@- make a name, and a rate is positive"
        )
    if given.json:
        models = given.models and given.models.split(",")
        made = {"command": "keys new", "name": name, "scopes": given.scopes.split(","), "models": models}
        sys.stdout.write(json.dumps(made | {"key": key, "line": line}) + "\n")
    else:
        sys.stderr.write(f"API key, shown this once: {key}\n")
        sys.stderr.flush()
        sys.stdout.write(f"{line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
