"""What follows from the name of a model that is served beside others: its prefix in paths, its store.

Pure. Invariant: stores of different names, derived from one URL, share no table; so each has a calendar, streams,
migrations and backups of its own.
"""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

__all__ = ["PREFIX", "ROOT", "check_model_name", "file_of", "prefix_of", "store_of"]

PREFIX = "/models/"
"""What the paths of every named model begin with."""
ROOT = "/"
"""The model without a name, where it stands among names."""

# Lower case, as file names differ by more on some disks than on others; short, as PostgreSQL cuts names at 63 bytes.
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


def check_model_name(text: str) -> str:
    """The text, if a model can be served under it.

    Raises
    ------
    ValueError
        It cannot.

    Examples
    --------
    >>> check_model_name("load-2")
    'load-2'
    >>> check_model_name("Load/2")
    Traceback (most recent call last):
    ...
    ValueError: expected a name of 1 to 40 of a-z, 0-9, _ and -, beginning with a letter or digit, found 'Load/2'
    """
    if _NAME.fullmatch(text) is None:
        raise ValueError(
            f"expected a name of 1 to 40 of a-z, 0-9, _ and -, beginning with a letter or digit, found {text!r}"
        )
    return text


def prefix_of(name: str | None) -> str:
    """What comes before the paths of a model; nothing for the one without a name.

    Examples
    --------
    >>> prefix_of("load"), prefix_of(None)
    ('/models/load', '')
    """
    return "" if name is None else PREFIX + name


def file_of(url: str) -> Path | None:
    """The file of a SQLite store; None for any other, and for what is no URL.

    Examples
    --------
    >>> file_of("sqlite:///forecaster.db"), file_of("postgresql://host/forecaster")
    (PosixPath('forecaster.db'), None)
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        return None  # whoever opens it says what is wrong with it
    known = parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:")
    return Path(parsed.database or "") if known else None


def store_of(url: str, name: str | None) -> str:
    """URL of a model's store: a file beside that of the model without a name, or a PostgreSQL schema in its database.

    Examples
    --------
    >>> store_of("sqlite:////data/forecaster.db", "load")
    'sqlite:////data/forecaster.load.db'
    >>> store_of("postgresql://host/forecaster", "load")
    'postgresql://host/forecaster?schema=forecaster_load'
    >>> store_of("sqlite:///forecaster.db", None)
    'sqlite:///forecaster.db'
    """
    if name is None:
        return url
    try:
        parsed = make_url(url)
    except ArgumentError:
        return url  # whoever opens it says what is wrong with it
    if (file := file_of(url)) is not None:
        parsed = parsed.set(database=str(file.with_name(f"{file.stem}.{name}{file.suffix}")))
    elif parsed.get_backend_name() != "sqlite":
        parsed = parsed.update_query_dict({"schema": f"{parsed.query.get('schema', 'forecaster')}_{name}"})
    return parsed.render_as_string(hide_password=False)
