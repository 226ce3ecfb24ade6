"""``forecaster schedule``: Dagster's code server, web server and daemon as children of one process.

The embedded default: everything that Dagster remembers lies in one folder, as SQLite. The three start together and
stop together; if one ends by itself, so do the others. Knows processes and signals, and nothing of training.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

from dagster import DagsterInvalidDefinitionError

from forecaster import ForecasterError, InputError
from pipelines.console import Reporter
from pipelines.orchestration.schedule import training_schedule
from pipelines.orchestration.settings import ScheduleSettings

__all__ = ["launch"]

INSTANCE = """\
# Dagster's settings for this folder; edit as you like, a start leaves the file alone.
telemetry:
  enabled: false
nux: # no invitation to a newsletter
  enabled: false
concurrency:
  runs:
    max_concurrent_runs: 1
"""
START_SECONDS = 120.0
STOP_SECONDS = 20.0
POLL_SECONDS = 0.5


def launch(
    settings: ScheduleSettings,
    *,
    home: str | Path = ".dagster",
    host: str = "127.0.0.1",
    port: int = 3000,
    reporter: Reporter | None = None,
) -> int:
    """Run the schedule until Ctrl-C or SIGTERM.

    Parameters
    ----------
    settings
        What is trained, on what, and when.
    home
        Folder for Dagster's memory; created if it is not there.
    host, port
        Where Dagster's web pages are served.
    reporter
        Where to say what goes on; by default standard error.

    Returns
    -------
    int
        0 if it was asked to stop, 1 if a process ended by itself.

    Raises
    ------
    InputError
        The cron expression is none, the folder cannot be used, or another schedule already runs on it.
    ForecasterError
        The definitions did not load; the reason is in the output above.
    """
    reporter = reporter or Reporter()
    try:
        training_schedule(settings)
    except DagsterInvalidDefinitionError as error:
        raise InputError(f"--cron: {settings.cron!r} ({settings.time_zone}) is not a schedule: {error}") from error
    folder = prepare_home(Path(home))
    environment = {
        **os.environ,
        **settings.to_environment(),
        "DAGSTER_HOME": str(folder),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
    }
    with ExitStack() as stack:
        lock = stack.enter_context(exclusive(folder))
        stop = stack.enter_context(stop_signals())
        door = f"{stack.enter_context(TemporaryDirectory(prefix='forecaster-'))}/code"
        children = stack.enter_context(process_group())

        def start(name: str, *arguments: str) -> None:
            children[name] = spawn(arguments, environment, lock)

        start("code server", "pipelines.orchestration.code_server", "--socket", door)
        wait_for(door, children["code server"], stop)
        start("daemon", "dagster._daemon", "run", "--grpc-socket", door, "--log-level", "warning")
        web = ("--grpc-socket", door, "--host", host, "--port", str(port), "--dagster-log-level", "warning")
        start("web server", "dagster_webserver", *web)
        if not stop.is_set():
            reporter.notice(f"model {settings.name!r} is trained at '{settings.cron}' ({settings.time_zone})")
            reporter.notice(f"Dagster is at http://{host}:{port} and remembers in {folder}; Ctrl-C stops it")
        while not stop.wait(POLL_SECONDS):
            for name, child in children.items():
                if child.poll() is not None:
                    reporter.notice(
                        f"Dagster's {name} ended by itself with status {child.returncode}; stopping the others"
                    )
                    return 1
        reporter.notice("stopping")
    return 0


def prepare_home(home: Path) -> Path:
    """Create the folder and its settings if they are not there; return its absolute path."""
    folder = home.resolve()
    settings = folder / "dagster.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not settings.exists():
            settings.write_text(INSTANCE, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--home: {folder} cannot be the scheduler's folder: {error.strerror}") from error
    return folder


@contextmanager
def exclusive(folder: Path) -> Iterator[int]:
    """Hold the folder, by a file whose descriptor children inherit; two daemons on one memory start every run twice.

    It is held as long as any of them lives: children outlive a process that is killed.
    """
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another schedule already runs on {folder}; stop it, or choose another --home") from None
        yield file.fileno()


@contextmanager
def stop_signals() -> Iterator[Event]:
    """Set an event on SIGINT and SIGTERM, for as long as the context lasts."""
    stop = Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def process_group() -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Hold named child processes; whatever happens, none of them outlives the context."""
    children: dict[str, subprocess.Popen[bytes]] = {}
    try:
        yield children
    finally:
        # In reverse, so that the code server leaves last and nobody misses it.
        for child in reversed(children.values()):
            end(child)


def spawn(arguments: Sequence[str], environment: Mapping[str, str], lock: int) -> subprocess.Popen[bytes]:
    """Start a Python module in a process group of its own, out of reach of the terminal's Ctrl-C, with the lock."""
    command = [sys.executable, "-m", *arguments]
    return subprocess.Popen(command, env=dict(environment), start_new_session=True, pass_fds=(lock,))


def end(child: subprocess.Popen[bytes]) -> None:
    """Ask the process to end, wait, then insist, with all of its own children."""
    child.terminate()
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    child.wait()


def wait_for(door: str, server: subprocess.Popen[bytes], stop: Event) -> None:
    """Wait until the code server answers, it fails, or somebody asks to stop.

    Raises
    ------
    ForecasterError
        It ended or did not answer in time.
    """
    deadline = time.monotonic() + START_SECONDS
    while not answers(door) and not stop.wait(POLL_SECONDS):
        if server.poll() is not None:
            raise ForecasterError("Dagster could not load the pipeline's definitions; the reason is above")
        if time.monotonic() > deadline:
            raise ForecasterError(f"Dagster's code server did not answer within {START_SECONDS:g} seconds")


def answers(door: str) -> bool:
    """Whether somebody listens; the code server does so only after it has loaded its definitions."""
    with socket.socket(socket.AF_UNIX) as caller:
        return caller.connect_ex(door) == 0
