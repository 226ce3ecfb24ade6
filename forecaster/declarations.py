"""Frozen dataclasses from plain values and back, checked by the types that they declare.

It knows types and keys; no file, and not what any key means.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from forecaster.errors import ConfigError

__all__ = ["build", "check_types", "fields_of", "plain", "read_text", "require"]

T = typing.TypeVar("T")


def fields_of(owner: type) -> dict[str, Any]:
    """Names of the fields of a dataclass, and their types."""
    return {k: v for k, v in typing.get_type_hints(owner).items() if k in {f.name for f in dataclasses.fields(owner)}}


def build(owner: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Build a dataclass, and those within it, from nested plain values.

    Raises
    ------
    ConfigError
        A key is unknown or a required one is missing; `prefix` comes before its name.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"config {prefix.rstrip('.') or 'root'} is {values!r}, expected a table of keys")
    hints = fields_of(owner)
    for key in values:
        if key not in hints:
            raise ConfigError(f"config key {prefix + str(key)!r} is unknown; expected one of {', '.join(hints)}")
    for spec in dataclasses.fields(owner):  # type: ignore[arg-type]
        required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        if required and spec.name not in values:
            raise ConfigError(f"config key {prefix + spec.name!r} is missing")
    built = {
        k: build(hints[k], v, f"{k}.") if dataclasses.is_dataclass(hints[k]) and isinstance(v, Mapping) else v
        for k, v in values.items()
    }
    return owner(**built)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """Values fit for JSON: lists for tuples."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def read_text(text: str, hint: Any, key: str) -> Any:
    """One command-line value in the type of its field.

    Raises
    ------
    ConfigError
        It cannot be read as that.
    """
    origin = typing.get_origin(hint)
    try:
        if hint is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if hint in (int, float):
            return hint(text)
        if origin is tuple:
            item = typing.get_args(hint)[0]
            return tuple(item(part.strip()) for part in text.strip("[]() ").split(",") if part.strip())
        if origin in (types.UnionType, typing.Union):
            return None if text.lower() in ("", "none", "null") else text
    except (KeyError, ValueError):
        raise ConfigError(f"config key {key!r} is {text!r}, expected {getattr(hint, '__name__', hint)}") from None
    return text


def check_types(values: Any, prefix: str = "") -> None:
    """Refuse values of the wrong type, unknown choices and infinities.

    Whole numbers may stand for floats, and lists for tuples: they become those.

    Raises
    ------
    ConfigError
        With the key named, after `prefix`.
    """
    for name, hint in fields_of(type(values)).items():
        value = getattr(values, name)
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if hint is float:
            require(type(value) in (int, float) and abs(value) < math.inf, prefix + name, value, "a finite number")
            object.__setattr__(values, name, float(value))
        elif origin is tuple:
            item, value = args[0], _tuples(value)
            plain = typing.get_origin(item) or item
            fits = isinstance(value, tuple) and all(
                type(v) is plain or (item is float and type(v) is int) for v in value
            )
            require(fits, prefix + name, value, f"a list of {item.__name__}")
            object.__setattr__(values, name, value)
        elif origin in (types.UnionType, typing.Union):
            require(isinstance(value, args), prefix + name, value, str(hint))
        elif origin is Literal:
            require(value in args, prefix + name, value, f"one of {', '.join(args)}")
        elif dataclasses.is_dataclass(hint):
            require(isinstance(value, typing.cast(type, hint)), prefix + name, value, "a table of keys")
        else:
            require(type(value) is hint, prefix + name, value, f"{hint.__name__}")


def require(holds: bool, key: str, found: Any, expected: str) -> None:
    """Raise ConfigError unless something holds of the value under a key."""
    if not holds:
        raise ConfigError(f"config key {key!r} is {found!r}, expected {expected}")
