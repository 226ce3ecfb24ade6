"""Which page a browser sends a request for: one of this service's own, or of another origin, by what the browser says.

It knows headers and no route. A page cannot set or leave out these headers. Other clients send none of those that Go's
`http.CrossOriginProtection` judges, which `check_origin` judges alike; all of them send ``Host``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_address

from service.problems import Problem, shortened

__all__ = ["FETCH_SITE", "HOST", "ORIGIN", "check_host", "check_origin"]

FETCH_SITE = b"sec-fetch-site"
ORIGIN = b"origin"
HOST = b"host"


def check_host(host: bytes | None, allowed: frozenset[str]) -> None:
    """Refuse requests for a name that somebody far away may have pointed at this machine (DNS rebinding).

    To a browser, the page of such a name and this service have the same origin. What nobody can point elsewhere are
    addresses, names below ``localhost``, and names without a dot, which are of this machine or its network.

    Parameters
    ----------
    host
        The header ``Host``, a name or an address and perhaps a port. Every browser sends it.
    allowed
        Names that are answered as well, in small letters.

    Raises
    ------
    Problem
        421 with the name.
    """
    if host is not None and not _is_near(host, allowed):
        raise Problem(
            421,
            "foreign-host",
            f"Host is {shortened(host.decode('latin-1'), 253)}: where no API key is needed, requests have to be for an "
            "address, a name without a dot, or one that FORECASTER_ALLOWED_HOSTS names",
        )


@lru_cache(maxsize=64)
def _is_near(host: bytes, allowed: frozenset[str]) -> bool:
    text = host.decode("latin-1").lower()
    name, _, port = text.rpartition(":")
    name = (name if port.isdigit() else text).rstrip(".")
    if "." not in name or name.endswith(".localhost") or name in allowed:
        return True
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def check_origin(headers: Mapping[bytes, bytes]) -> None:
    """Refuse what a page of another origin has a browser send.

    Parameters
    ----------
    headers
        ``Sec-Fetch-Site``, which browsers send over TLS and to this machine, ``Origin`` and ``Host``, as far as there
        are any.

    Raises
    ------
    Problem
        403 with what the browser says.
    """
    site, origin = headers.get(FETCH_SITE), headers.get(ORIGIN)
    if site is not None:
        # none: the user's own doing
        if site in (b"same-origin", b"none"):
            return
        said = f"Sec-Fetch-Site is {site.decode('latin-1')}"
    else:
        if origin is None or origin.partition(b"://")[2].lower() == headers.get(HOST, b"").lower() != b"":
            return
        said = f"Origin is {origin.decode('latin-1')}"
    raise Problem(403, "foreign-origin", f"{said}: where no API key is needed, pages of other origins may only GET")
