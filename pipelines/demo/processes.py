"""Real server processes for the demo: started, waited for, killed, and never left behind by accident."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from forecaster import ForecasterError

__all__ = ["ServerProcess", "free_port"]

START_SECONDS = 120.0
STOP_SECONDS = 20.0


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """One server as a child process.

    Parameters
    ----------
    arguments
        Command line after the interpreter.
    environment
        Added to this process's environment.
    ready_url
        Answers 200 once the server is ready.
    log
        File that gets its output.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], ready_url: str, log: Path) -> None:
        self._arguments = list(arguments)
        self._environment = dict(environment)
        self._ready_url = ready_url
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return None if self._process is None else self._process.pid

    def start(self) -> float:
        """Start and wait until it is ready.

        Returns
        -------
        float
            Seconds that took.

        Raises
        ------
        ForecasterError
            It ended or did not become ready; the message has its last line of output.
        """
        started = time.monotonic()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self._arguments],
                env=os.environ | self._environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        while time.monotonic() - started < START_SECONDS:
            if self._process.poll() is not None:
                raise ForecasterError(
                    f"{' '.join(self._arguments[:2])} ended with status {self._process.returncode}: {self._last_line()}"
                )
            try:
                if httpx.get(self._ready_url, timeout=2.0, trust_env=False).status_code == httpx.codes.OK:
                    return time.monotonic() - started
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        self.stop()
        raise ForecasterError(f"{self._ready_url} did not become ready within {START_SECONDS:g} s: {self._last_line()}")

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL): no goodbye, no flush."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Ask it to end, wait, insist."""
        if self._process is None:
            return
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        self.kill()

    def release(self) -> None:
        """Leave it running when this process ends."""
        self._process = None

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        try:
            os.killpg(self._process.pid, number)  # its own session, so its workers too
        except ProcessLookupError:
            return

    def _last_line(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "no output"
