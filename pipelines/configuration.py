"""From what the user wrote to a `Config`: a TOML or JSON file, the options, `--set key=value`; the later wins.

Knows file formats and precedence; which keys exist and what they may hold is the library's business (`Config`).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forecaster import Config, InputError

__all__ = ["build_config", "flatten", "parse_overrides", "roles"]


def build_config(
    *,
    freq: str,
    horizon: int,
    seasonality: Sequence[int] | None = None,
    time_zone: str | None = None,
    seed: int | None = None,
    config_file: str | Path | None = None,
    overrides: Mapping[str, str] | None = None,
) -> Config:
    """Merge file, options and overrides.

    Parameters
    ----------
    freq, horizon, seasonality, seed
        The options; None leaves the file's value or the default.
    time_zone
        Time zone of the data, IANA name; None for naive timestamps.
    config_file
        TOML or JSON with the keys of `Config`.
    overrides
        Dotted key to text, such as ``{"network.hidden_size": "64"}``.

    Raises
    ------
    InputError
        An unreadable file, an unknown key or an impossible value.
    """
    values: dict[str, Any] = read_config_file(config_file) if config_file is not None else {}
    values |= {"freq": freq, "horizon": horizon}
    if time_zone is not None:
        values["time_zone"] = time_zone
    if seasonality:
        values["seasonality"] = list(seasonality)
    config = Config.from_dict(values)
    if seed is not None:
        config = config.with_overrides({"training.seed": seed})
    return config.with_overrides(dict(overrides)) if overrides else config


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Read a TOML or JSON file.

    Raises
    ------
    InputError
        It does not exist, is neither, or holds something other than one table.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except FileNotFoundError:
        raise InputError(f"configuration file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"configuration file {path} cannot be read: {error}") from error
    except ValueError as error:  # both parsers' errors
        kind = "TOML" if path.suffix == ".toml" else "JSON"
        raise InputError(f"configuration file {path} is not valid {kind}: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"configuration file {path} holds a {type(values).__name__}, expected one table of settings")
    return values


def parse_overrides(pairs: Sequence[str]) -> dict[str, str]:
    """Split ``key=value`` texts.

    Raises
    ------
    InputError
        One has no ``=`` or no key.

    Examples
    --------
    >>> parse_overrides(["network.hidden_size=64"])
    {'network.hidden_size': '64'}
    """
    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {pair!r}: expected key=value, for example network.hidden_size=64")
        overrides[key.strip()] = value.strip()
    return overrides


def roles(
    known: Sequence[str] | None = None, past: Sequence[str] | None = None, static: Sequence[str] | None = None
) -> dict[str, str]:
    """Covariates named on the command line, as overrides.

    Examples
    --------
    >>> roles(known=["price", "promo,weather"])
    {'covariates.known': 'price,promo,weather'}
    """
    given = {"known": known, "past": past, "static": static}
    return {f"covariates.{role}": ",".join(names) for role, names in given.items() if names}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys.

    Examples
    --------
    >>> flatten({"horizon": 6, "network": {"cell": "lstm"}})
    {'horizon': 6, 'network.cell': 'lstm'}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
