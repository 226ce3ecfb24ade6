"""Server processes: really started, asked, told to stop or killed, started again on the same port."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from tests.pipelines.kit import environment
from tests.service.kit import ROOT, free_port

# Making a client's certificates ready takes longer than most requests here, and kept connections would be to the dead.
HTTP = httpx.Client(timeout=30, trust_env=False, verify=False, limits=httpx.Limits(max_keepalive_connections=0))


class Template:
    """Starts servers by forking one that has everything imported."""

    def __init__(self, artifact: Path, preload: Path | None = None) -> None:
        preloaded = {} if preload is None else {"LD_PRELOAD": str(preload)}
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.service.template", str(artifact)],
            env=environment(preloaded), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._line() == "ready"

    def fork(self, **asked: Any) -> Forked:
        """Start a process."""
        return Forked(self, self.ask(asked))

    def run(self, code: str, *arguments: object, log: Path) -> Forked:
        """Start a program of a few lines, as by ``python -c``; what it writes goes into a file."""
        return self.fork(code=code, arguments=list(map(str, arguments)), environment={}, log=str(log))

    def ask(self, said: Any) -> Any:
        """Say one line, and hear one."""
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(json.dumps(said) + "\n")
            self._process.stdin.flush()
            return self._line()

    def _line(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End at once, as there is nothing to finish; servers that still run end with it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


class Forked:
    """A process that a template started, as far as it is used like a `subprocess.Popen`."""

    def __init__(self, template: Template, pid: int) -> None:
        self.pid = pid
        self._template = template
        self._status: int | None = None

    def poll(self) -> int | None:
        """Exit status; None while it runs."""
        if self._status is None:
            self._status = self._template.ask(self.pid)
        return self._status

    def wait(self, seconds: float) -> int:
        """Until it has ended; its exit status."""
        end = time.monotonic() + seconds
        while (status := self.poll()) is None:
            assert time.monotonic() < end, "the process does not end"
            time.sleep(0.005)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class Server:
    """A server in a process of its own.

    Parameters
    ----------
    template
        Forks it; None: it is started as a user would, which takes seconds.
    model
        Artifact folder or reference; None: settings name models.
    store
        URL of the log.
    log
        File for what it writes.
    settings
        By name, or whole environment variables.
    """

    def __init__(
        self, template: Template | None, model: str | Path | None, store: str, log: Path, **settings: str
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.store = store
        self.process: subprocess.Popen[bytes] | Forked | None = None
        self._template = template
        self._log = log
        self._arguments = ["--store", store, "--port", str(self.port)]
        if model is not None:
            self._arguments += ["--model", str(model)]
        self._environment = {
            name if name.isupper() else f"FORECASTER_{name.upper()}": value for name, value in settings.items()
        }

    def start(self, *, fault: dict[str, Any] | None = None, ready: bool = True) -> Server:
        """Start it and wait until it is ready, or at least lives; or, where its disk shall fail, has died."""
        self.process = self._launch(fault)
        end = time.monotonic() + 120
        while True:
            try:
                if HTTP.get(f"{self.url}/{'readyz' if ready else 'healthz'}", timeout=10).status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            if not self.alive:
                assert fault is not None, f"the server ended: {self.log_text()[-2000:]}"
                return self
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"the server did not come up: {self.log_text()[-2000:]}")
            time.sleep(0.02)

    def _launch(self, fault: dict[str, Any] | None) -> subprocess.Popen[bytes] | Forked:
        if self._template is not None:
            asked = {"arguments": self._arguments, "environment": self._environment, "log": str(self._log)}
            return self._template.fork(**asked, fault=fault)
        command = [sys.executable, "-m", "service", *self._arguments]
        with self._log.open("ab") as log:
            return subprocess.Popen(command, env=environment(self._environment), stdout=log, stderr=log)

    @property
    def pid(self) -> int:
        """Of the process started last."""
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """Power off: nothing in the process gets to run again."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ask it to end; its exit status."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(number)
        return self.wait()

    def wait(self, seconds: float = 60) -> int:
        """Until the process has gone; its exit status."""
        assert self.process is not None
        return self.process.wait(seconds)

    def log_text(self) -> str:
        """What it wrote so far."""
        return self._log.read_text() if self._log.exists() else ""

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
