"""The command `forecaster`: the command line, or one line about why it is not there."""

from __future__ import annotations

import sys

from pipelines.interruption import ended, interruptible

__all__ = ["main"]


def main() -> int:
    """Run the process's command line; its exit status, see `pipelines.cli.main`."""
    with interruptible() as asked:
        try:
            from pipelines.cli import main as run  # takes a moment
        except ModuleNotFoundError as error:  # the library can be installed without what its commands need
            sys.stderr.write(f"forecaster: package {error.name} is not installed; forecaster[pipelines] brings it\n")
            return 1
        except KeyboardInterrupt:
            said, status = ended(asked)
            sys.stderr.write(f"forecaster: {said}\n")
            return status
    return run()


if __name__ == "__main__":
    sys.exit(main())
