"""What a client would rather have, among what is offered: `Accept` and its relatives (RFC 9110, section 12.5).

It knows headers and no format. Invariant: without a header, the first of what is offered.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import Scope

__all__ = ["header_of", "preferred"]

_LONGEST = 50


def preferred(header: str | None, offered: Sequence[str]) -> str | None:
    """The offered name that a header likes best, the earlier one of equals; None if it takes none of them.

    Parameters
    ----------
    header
        Such as ``application/json;q=0.5, */*;q=0.1`` or ``gzip, identity;q=0``.
    offered
        Names in lower case, the service's own favourite first.

    Examples
    --------
    >>> preferred("text/html, application/*;q=0.9", ["application/json", "text/csv"])
    'application/json'
    >>> preferred("gzip;q=0.5, *;q=0", ["identity", "gzip"])
    'gzip'
    """
    if header is None or not header.strip():
        return offered[0]
    weights: dict[str, float] = {}
    for part in header.lower().split(",")[:_LONGEST]:
        name, *parameters = (text.strip() for text in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                weight = _weight(parameter[2:])
        weights[name] = weight
    rest = "*/*" if "/" in offered[0] else "*"

    def liking(name: str) -> float:
        general = f"{name.partition('/')[0]}/*"
        return weights.get(name, weights.get(general, weights.get(rest, 0.0)))

    best = max(offered, key=liking)  # the first of equals
    return best if liking(best) > 0 else None


def header_of(scope: Scope, name: bytes) -> str | None:
    """A header of a request as it came; several of one name as one list, as HTTP has it. `name` is in lower case."""
    # Looked up on every observation; the mapping that FastAPI makes of headers costs more than this.
    found = None
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1").strip()
            found = text if found is None else f"{found}, {text}"
    return found


def _weight(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        return 0.0
    return found if 0 <= found <= 1 else 0.0
