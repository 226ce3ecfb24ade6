"""The command `forecaster`: the command line, or one line about why it is not there."""

from __future__ import annotations

import signal
import sys

__all__ = ["main"]

_INTERRUPTED = 128 + signal.SIGINT


def main() -> int:
    """Run the process's command line; its exit status, see `pipelines.cli.main`."""
    try:
        from pipelines.cli import main as run
    except ModuleNotFoundError as error:  # the library can be installed without what its commands need
        sys.stderr.write(f"forecaster: package {error.name} is not installed; forecaster[pipelines] brings it\n")
        return 1
    except KeyboardInterrupt:  # importing takes a moment
        sys.stderr.write("forecaster: interrupted\n")
        return _INTERRUPTED
    return run()


if __name__ == "__main__":
    sys.exit(main())
