"""R1: killed at random under load, on each store: all acknowledged is in the log, once, and the state is its fold."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.reliability.kit import Writer, audit, audit_states, create_all, load

WRITERS = 8


@pytest.mark.parametrize("kills", [3, pytest.param(200, marks=pytest.mark.soak)])
def test_kills_under_load_lose_and_double_nothing(server, any_store_url, tiny_forecaster, seed, kills):
    chance = random.Random(seed)
    writers = [Writer(number, seed) for number in range(WRITERS)]
    books = [writer.book for writer in writers]
    server.start()
    create_all(writers, server.port)
    audited = 0
    for _ in range(kills):
        before = sum(book.acknowledged for book in books)
        wanted, pause = before + chance.randint(5, 60), chance.uniform(0, 0.01)

        async def until(wanted: int = wanted, pause: float = pause) -> None:
            while sum(book.acknowledged for book in books) < wanted:
                await asyncio.sleep(0.001)
            await asyncio.sleep(pause)
            server.kill()

        load(writers, server.port, until)
        if chance.random() < 0.1:
            audit(books, any_store_url)
            audited += 1
        server.start()
    logs = audit(books, any_store_url)
    audit_states(server, logs, tiny_forecaster)
    acknowledged = sum(book.acknowledged for book in books)
    print(f"{kills} kills, {acknowledged} observations acknowledged, {audited + 1} audits")  # noqa: T201
    assert acknowledged >= 5 * kills
