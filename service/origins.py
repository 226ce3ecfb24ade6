"""Which page a browser sends a request for: one of this service's own, or of another origin, by what the browser says.

It knows headers and no route. A page cannot set or leave out these headers, and other clients do not send them. As Go's
`http.CrossOriginProtection` judges them.
"""

from __future__ import annotations

from collections.abc import Mapping

from service.problems import Problem

__all__ = ["FETCH_SITE", "ORIGIN", "check_origin"]

FETCH_SITE = b"sec-fetch-site"
ORIGIN = b"origin"


def check_origin(headers: Mapping[bytes, bytes], host: str | None) -> None:
    """Refuse what a page of another origin has a browser send.

    Parameters
    ----------
    headers
        ``Sec-Fetch-Site``, which browsers send over TLS and to this machine, and ``Origin``, as far as there are any.
    host
        The header ``Host``.

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
        if origin is None or origin.decode("latin-1").partition("://")[2].lower() == (host or "").lower() != "":
            return
        said = f"Origin is {origin.decode('latin-1')}"
    raise Problem(403, "foreign-origin", f"{said}: where no API key is needed, pages of other origins may only GET")
