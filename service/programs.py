"""The service's programs as commands run them: ``python -m service.programs serve|streams|keys``.

It imports a program only when that is asked for, as that alone takes seconds. Invariants: whoever is told to end,
by Ctrl-C or by SIGTERM, says so in one line at any moment and leaves nothing half-done behind.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from importlib import import_module

__all__ = ["main"]

_MODULES = {"serve": "service.__main__", "streams": "service.backup", "keys": "service.keys"}
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program that the first argument names with the others; its exit status."""
    name, *given = sys.argv[1:] if arguments is None else arguments
    asked = signal.SIGINT

    def end(*_: object) -> None:
        nonlocal asked
        asked = signal.SIGTERM
        raise KeyboardInterrupt

    try:
        if name != "serve":  # which has an orderly end of its own; others take back what they have begun, as at Ctrl-C
            signal.signal(signal.SIGTERM, end)
        status: int = import_module(_MODULES[name]).main(given)
    except ModuleNotFoundError as error:
        sys.stderr.write(f"forecaster: package {error.name} is not installed; forecaster[service] brings it\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"forecaster: {_WORDS[asked]}\n")
        return 128 + asked
    return status


if __name__ == "__main__":
    sys.exit(main())
