"""A throw-away PostgreSQL server, if its binaries are here, and new databases on it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url

from tests.service.kit import free_port

_NUMBERS = count()


def binaries() -> Path | None:
    """Folder of initdb and postgres."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return installed[-1].parent if installed else None


class PostgresServer:
    """A throw-away server of its own folder, which may be stopped, put back to where it was, and started again."""

    def __init__(self, binary: Path, home: Path, port: int, options: dict[str, Any]) -> None:
        self._control, self._home, self._options = [binary / "pg_ctl", "-D", home / "data", "-w"], home, options
        # Processes are killed here, not machines, and what is in the kernel's hands survives that.
        self._server = f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off -k {home}"
        self.url = f"postgresql+psycopg://forecaster@127.0.0.1:{port}/postgres"

    def start(self) -> None:
        """Begin to serve."""
        self._run([*self._control, "-o", self._server, "-l", self._home / "log", "start"])

    def stop(self) -> None:
        """End at once."""
        self._run([*self._control, "-m", "immediate", "stop"])

    def copy(self, source: str, target: str) -> None:
        """Of a folder; while it is stopped."""
        shutil.rmtree(self._home / target, ignore_errors=True)
        self._run(["cp", "-a", self._home / source, self._home / target])

    def _run(self, command: Sequence[str | Path]) -> None:
        subprocess.run(command, **self._options)


@contextmanager
def postgres_server() -> Iterator[str]:
    """A throw-away server; the URL of its database. Skips the test where there is no server binary."""
    with postgres() as server:
        yield server.url


@contextmanager
def postgres() -> Iterator[PostgresServer]:
    """A throw-away server, running. Skips the test where there is no server binary."""
    pytest.importorskip("psycopg")
    folder = binaries()
    if folder is None:
        pytest.skip("there is no PostgreSQL server binary here")
    user = None
    if os.geteuid() == 0:
        # PostgreSQL refuses to run as root.
        try:
            user = pwd.getpwnam("postgres").pw_name
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    home = Path(subprocess.run(["mktemp", "-d"], check=True, capture_output=True, text=True, user=user).stdout.strip())
    port = free_port()
    run = {
        "check": True,
        "capture_output": True,
        "user": user,
        "cwd": home,
        "env": {"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]},
    }
    options = ["-U", "forecaster", "--auth=trust", "-E", "UTF8", "--no-sync"]
    subprocess.run([folder / "initdb", "-D", home / "data", *options], **run)
    server = PostgresServer(folder, home, port, run)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


def new_database(server: str) -> str:
    """URL of a new database on a server."""
    name = f"test{next(_NUMBERS)}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return make_url(server).set(database=name).render_as_string(hide_password=False)
