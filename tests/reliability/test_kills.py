"""R1: killed at random under load, on each store: all acknowledged is in the log, once, and the state is its fold."""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from service.naming import prefix_of, store_of
from tests.reliability.kit import Writer, audit, audit_states, create_all, load
from tests.service.processes import Server

WRITERS = 8
LONG = pytest.mark.soak


@pytest.mark.parametrize(
    ("names", "kills"),
    [
        ((None,), 3),
        pytest.param((None,), 200, marks=LONG),
        (("one", "two"), 2),
        pytest.param(("one", "two"), 60, marks=LONG),
    ],
    ids=["3", "200", "two models-2", "two models-60"],
)
def test_kills_under_load_lose_and_double_nothing(
    template, artifact, any_store_url, tmp_path, tiny_forecaster, seed, names, kills
):
    """Of several models in one process each keeps its own, also where streams have the same names."""
    chance = random.Random(seed)
    writers = {name: [Writer(number, seed, prefix=prefix_of(name)) for number in range(WRITERS)] for name in names}
    everybody = [writer for some in writers.values() for writer in some]
    books = {name: [writer.book for writer in some] for name, some in writers.items()}
    model, more = (
        (artifact, {}) if None in names else (None, {"models": json.dumps(dict.fromkeys(names, str(artifact)))})
    )

    def acknowledged() -> int:
        return sum(writer.book.acknowledged for writer in everybody)

    def audit_all() -> dict:
        return {name: audit(books[name], store_of(any_store_url, name)) for name in names}

    with Server(template, model, any_store_url, tmp_path / "log", snapshot_every="8", **more).start() as server:
        create_all(everybody, server.port)
        audited = 0
        for _ in range(kills):
            wanted, pause = acknowledged() + chance.randint(5, 60), chance.uniform(0, 0.01)

            async def until(wanted: int = wanted, pause: float = pause) -> None:
                while acknowledged() < wanted:
                    await asyncio.sleep(0.001)
                await asyncio.sleep(pause)
                server.kill()

            load(everybody, server.port, until)
            if chance.random() < 0.1:
                audit_all()
                audited += 1
            server.start()
        for name, logs in audit_all().items():
            audit_states(server, logs, tiny_forecaster, prefix_of(name))
    each = [sum(book.acknowledged for book in some) for some in books.values()]
    print(f"{kills} kills, {' + '.join(map(str, each))} observations acknowledged, {audited + 1} audits")  # noqa: T201
    assert acknowledged() >= 5 * kills
    assert min(each) > 0
