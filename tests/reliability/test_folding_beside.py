"""R1, R25 of logs that are folded beside the engine: a server that ends meanwhile loses and doubles nothing."""

from __future__ import annotations

import asyncio
import random

import pytest

from service.engine.folding import LONGEST
from service.store import Store
from service.store.copying import LogRow, StreamRow
from tests.reliability.kit import BASE, Book, Writer, audit, audit_states, create_all, load
from tests.service.kit import observations, until
from tests.service.processes import HTTP

# So long that nobody is done with it before a server is told to stop.
LONG = [float(3 + hour % 7) for hour in range(6 * LONGEST)]


@pytest.fixture
def long_log(any_store_url) -> Book:
    """A stream of which there is a long log and no state, as after an import; booked."""
    store = Store.open(any_store_url)
    store.claim_calendar("h", None)
    row = StreamRow("long", BASE, BASE + len(LONG) - 1, 1, len(LONG), 0, None, None)
    store.load([row], [[LogRow("long", BASE + hour, y, None) for hour, y in enumerate(LONG)]], [], replace=False)
    store.close()
    book = Book([])
    book.possible["long"] = {hour: {y} for hour, y in enumerate(LONG)}
    return book


def observe(server, book: Book) -> int:
    """One more observation of the long log, booked; the status."""
    hour = book.last("long") if "sent" in vars(book) else book.last("long") + 1
    book.sent = hour
    book.sends("long", hour, 4.0)
    reply = HTTP.post(f"{server.url}/v1/streams/long/observations", json=observations((hour, 4.0), horizon=1))
    if reply.status_code == 200:
        book.hears("long", hour, 4.0)
        del book.sent
    else:
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1"), reply.text
        assert "is being folded" in reply.json()["detail"]
    return reply.status_code


def forget(server) -> None:
    """Take away the state of the long log, the store's first stream: it may have been there before the kill."""
    store = Store.open(server.store)
    store.drop_snapshots([], 0, 1)
    store.close()


def revise(server, book: Book) -> int:
    """Another value far back in the long log, booked; the status."""
    book.sends("long", 3, 9.5)
    body = observations((3, 9.5), on_conflict="revise", horizon=1)
    reply = HTTP.post(f"{server.url}/v1/streams/long/observations", json=body)
    if reply.status_code == 200:
        book.hears("long", 3, 9.5)
    return reply.status_code


@pytest.mark.parametrize("kills", [2, pytest.param(40, marks=pytest.mark.soak)])
def test_kills_while_a_long_log_is_folded_lose_and_double_nothing(server, long_log, tiny_forecaster, seed, kills):
    """R1, beside other streams under load."""
    chance = random.Random(seed)
    writers = [Writer(number, seed) for number in range(4)]
    server.start()
    create_all(writers, server.port)
    acknowledged = 0
    for _ in range(kills):
        assert observe(server, long_log) == 503
        acknowledged += chance.randint(1, 60)

        async def killed(wanted: int = acknowledged) -> None:
            while sum(writer.book.acknowledged for writer in writers) < wanted:
                await asyncio.sleep(0.001)
            server.kill()

        load(writers, server.port, killed)
        forget(server)
        server.start()
    until(lambda: observe(server, long_log) == 200)
    assert observe(server, long_log) == 200
    server.kill()
    books = [long_log, *(writer.book for writer in writers)]
    logs = audit(books, server.store)
    server.start()
    audit_states(server, logs, tiny_forecaster)
    found = sum(writer.book.acknowledged for writer in writers)
    print(f"{kills} kills, {found} observations of others acknowledged")  # noqa: T201
    assert found >= acknowledged


def test_a_server_that_is_told_to_stop_while_a_long_log_is_folded_ends_in_order(server, long_log, tiny_forecaster):
    """R25, for want of a state and after a change far back; a kill right after that was taken."""
    server.start()
    assert observe(server, long_log) == 503
    assert server.stop() == 0
    assert "Traceback" not in server.log_text()
    server.start()
    until(lambda: observe(server, long_log) == 200)
    assert revise(server, long_log) == 503
    assert server.stop() == 0
    assert "Traceback" not in server.log_text()
    audit([long_log], server.store)
    server.start()
    until(lambda: revise(server, long_log) == 200)
    server.kill()
    logs = audit([long_log], server.store)
    server.start()
    until(lambda: HTTP.get(f"{server.url}/v1/streams/long").status_code == 200)  # killed before there was a snapshot
    audit_states(server, logs, tiny_forecaster)
