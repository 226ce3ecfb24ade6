"""R12: PostgreSQL crashes, or stands still, below a server under load."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import create_engine, text

from tests.reliability.kit import Writer, audit, audit_states, create_all, load
from tests.service.processes import Server
from tests.service.servers import binaries, new_database, postgres_server


@pytest.fixture(scope="module")
def database_server() -> Iterator[tuple[str, Path]]:
    """A server of its own, since it will be mistreated: its URL and its folder."""
    with postgres_server() as url:
        engine = create_engine(url)
        with engine.connect() as connection:
            folder = Path(str(connection.execute(text("SHOW data_directory")).scalar()))
        engine.dispose()
        yield url, folder


def processes(folder: Path) -> list[int]:
    """The server's process and its children."""
    parent = int((folder / "postmaster.pid").read_text().splitlines()[0])
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [parent, *map(int, children)]


@contextmanager
def standing_still(folder: Path) -> Iterator[None]:
    """As on a machine that was paused, or behind a network that swallows everything."""
    stopped = processes(folder)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(stopped):
            os.kill(pid, signal.SIGCONT)


def crash_and_restart(folder: Path) -> None:
    """Every process of it ends at once; then it recovers from its log."""
    binary = binaries()
    assert binary is not None
    user = "postgres" if os.geteuid() == 0 else None
    command = [binary / "pg_ctl", "-D", folder, "-w", "-m", "immediate", "-l", folder.parent / "log", "restart"]
    environment = {"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]}
    subprocess.run(command, check=True, capture_output=True, user=user, cwd=folder.parent, env=environment)


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.soak)])
def test_a_database_that_crashes_or_hangs_costs_nothing_that_was_acknowledged(
    template, artifact, database_server, tmp_path, tiny_forecaster, seed, rounds
):
    """Meanwhile 503 with Retry-After, also for those who wait; afterwards the same process goes on."""
    url, folder = database_server
    store = new_database(url)
    server = Server(template, artifact, store, tmp_path / "log", snapshot_every="8", stall_seconds="2")
    writers = [Writer(number, seed) for number in range(8)]
    books = [writer.book for writer in writers]

    def acknowledged() -> int:
        return sum(book.acknowledged for book in books)

    async def more(count: int) -> None:
        wanted = acknowledged() + count
        while acknowledged() < wanted:
            await asyncio.sleep(0.01)

    with server:
        server.start()
        create_all(writers, server.port)

        async def faults() -> None:
            for _ in range(rounds):
                await more(40)
                await asyncio.to_thread(crash_and_restart, folder)
                await more(40)
                with standing_still(folder):
                    before, at_work = acknowledged(), sum(len(writer.at_work) for writer in writers)
                    async with httpx.AsyncClient(base_url=server.url, timeout=30, verify=False) as client:
                        await asyncio.sleep(3.0)
                        name = next(iter(books[0].possible))
                        refused = await client.post(f"/v1/streams/{name}/observations", json={"observations": []})
                        # Nothing is even asked of the database for this one.
                        assert refused.status_code in (422, 503)
                        ready = await client.get("/readyz")
                        assert ready.status_code == 503, ready.text
                    # What was at work when it stopped may have been answered; nothing new is.
                    middle = acknowledged()
                    assert middle - before <= at_work
                    await asyncio.sleep(0.5)
                    assert acknowledged() == middle
                await more(40)

        load(writers, server.port, faults)
        assert server.alive
        logs = audit(books, store)
        audit_states(server, logs, tiny_forecaster)
        refusals = sum(writer.refused for writer in writers)
        print(f"{acknowledged()} acknowledged, {refusals} refused meanwhile")  # noqa: T201
        assert refusals > 0
        server.kill()
        server.start()
        audit_states(server, logs, tiny_forecaster)
