"""Versions as ETags: a write that names the version it expects happens at that version or not at all."""

from __future__ import annotations

import asyncio

import pytest

from service.app import create_app
from service.engine.items import Precondition
from tests.service.kit import LocalClient, history, observations

WRITERS = 64
BASE = 473352
PATH = "/v1/streams/a"


@pytest.fixture
def stream(client):
    """A stream at version 1."""
    assert client.put(PATH, json=history([1.0] * 10)).headers["etag"] == '"1"'
    return PATH


def write(client, kind, headers):
    """One of the three writes to the stream."""
    if kind == "observe":
        return client.post(f"{PATH}/observations", json=observations((10, 2.0)), headers=headers)
    if kind == "replace":
        return client.put(PATH, json=history([5.0]), headers=headers)
    return client.delete(PATH, headers=headers)


def test_every_reply_about_a_stream_carries_its_version_as_etag(client, stream):
    observed = client.post(f"{stream}/observations", json=observations((10, 2.0)))
    replies = [
        observed,
        client.get(stream),
        client.get(f"{stream}/forecast"),
        client.post(f"{stream}/forecast", json={}),
    ]

    assert [reply.headers["etag"] for reply in replies] == ['"2"'] * 4
    assert {reply.json()["version"] for reply in replies} == {2}


@pytest.mark.parametrize("kind", ["observe", "replace", "delete"])
@pytest.mark.parametrize(
    ("headers", "holds"),
    [
        ({"if-match": '"1"'}, True),
        ({"if-match": '"9" , "1"'}, True),
        ({"if-match": "*"}, True),
        ({"if-match": '"2"'}, False),
        ({"if-none-match": "*"}, False),
    ],
)
def test_a_write_happens_if_its_precondition_holds(client, stream, kind, headers, holds):
    reply = write(client, kind, headers)

    assert reply.status_code == ({"observe": 200, "replace": 200, "delete": 204}[kind] if holds else 412)
    if not holds:
        assert (reply.json()["version"], reply.headers["content-type"]) == (1, "application/problem+json")
        assert client.get(stream).headers["etag"] == '"1"'


@pytest.mark.parametrize("header", ['"1"', "*"])
def test_no_version_of_a_stream_that_is_not_there_can_match(client, header):
    assert write(client, "replace", {"if-match": header}).status_code == 412
    assert client.get(PATH).status_code == 404
    assert write(client, "replace", {"if-none-match": "*"}).status_code == 201


@pytest.mark.parametrize(
    "headers",
    [{"if-match": "1"}, {"if-match": 'W/"1"'}, {"if-match": '"one"'}, {"if-match": ""}, {"if-match": '"1",'},
     {"if-none-match": '"1"'}, {"if-match": '"1"', "if-none-match": "*"}],
)  # fmt: skip
def test_a_precondition_that_cannot_be_read_is_refused(client, stream, headers):
    assert write(client, "observe", headers).status_code == 422
    assert client.get(stream).headers["etag"] == '"1"'


def test_a_service_can_require_preconditions(settings):
    with LocalClient(create_app(settings.model_copy(update={"require_if_match": True}))) as client:
        assert write(client, "replace", {}).status_code == 428
        assert write(client, "replace", {"if-none-match": "*"}).status_code == 201
        refused = [write(client, kind, {}) for kind in ("observe", "replace", "delete")]

        assert [reply.status_code for reply in refused] == [428] * 3
        assert "If-Match" in refused[0].json()["detail"]
        assert client.get(PATH).headers["etag"] == '"1"'
        assert write(client, "delete", {"if-match": '"1"'}).status_code == 204


def test_of_sixty_four_writers_one_wins_each_version_and_no_update_is_lost(settings):
    """Half of them talk to another service over the same store, which has states of its own in memory."""
    wins: dict[int, tuple[int, float]] = {}
    losses: list[int] = []

    async def write_once(client, number):
        while True:
            found = (await client._client.get(PATH)).json()
            body = observations((found["counts"]["observations"], 100.0 + number), horizon=1)
            reply = await client._client.post(
                f"{PATH}/observations", json=body, headers={"if-match": f'"{found["version"]}"'}
            )
            if reply.status_code == 200:
                version = reply.json()["version"]
                assert version not in wins
                assert version == found["version"] + 1
                wins[version] = (body["observations"][0]["ds"], 100.0 + number)
                return
            assert reply.status_code == 412, reply.text
            losses.append(number)

    async def write_all(client, numbers):
        await asyncio.gather(*(write_once(client, number) for number in numbers))

    with LocalClient(create_app(settings)) as one, LocalClient(create_app(settings)) as other:
        assert one.put(PATH, json=history([1.0])).status_code == 201
        half = asyncio.run_coroutine_threadsafe(write_all(other, range(WRITERS // 2, WRITERS)), other._loop)
        one.call(write_all(one, range(WRITERS // 2)))
        half.result(120)
        log = one.service.store.log(one.service.store.page("", 1)[0].id)

    assert sorted(wins) == list(range(2, WRITERS + 2))
    assert losses
    # The k-th version holds the k-th observation, by whoever won it; nobody's was overwritten.
    assert [y for _, y in log] == [1.0, *(wins[version][1] for version in sorted(wins))]
    assert [step for step, _ in log] == list(range(BASE, BASE + WRITERS + 1))


def test_a_precondition_says_what_it_asks_for():
    assert str(Precondition((1, 2))) == "version 1 or 2"
    assert [Precondition((1, 2)).holds(v) for v in (None, 1, 3)] == [False, True, False]
    assert [Precondition().holds(v) for v in (None, 1)] == [False, True]
    assert [Precondition(absent=True).holds(v) for v in (None, 1)] == [True, False]


def test_what_was_asked_of_a_deleted_stream_does_not_hold_of_the_next_one_of_its_name(settings, any_store_url):
    with LocalClient(create_app(settings.model_copy(update={"store": any_store_url}))) as client:
        for name in ("a", "b"):
            client.put(f"/v1/streams/{name}", json=history([1.0] * 10))
        for hour in range(10, 13):
            client.post(f"{PATH}/observations", json=observations((hour, 2.0)))
        client.delete("/v1/streams/b")
        client.delete(PATH)
        assert client.put(PATH, json=history([3.0] * 9)).headers["etag"] == '"5"'
        for version in range(1, 5):
            assert write(client, "observe", {"if-match": f'"{version}"'}).status_code == 412
        assert client.put("/v1/streams/b", json=history([1.0])).headers["etag"] == '"5"'
        assert write(client, "observe", {"if-match": '"5"'}).json()["version"] == 6
