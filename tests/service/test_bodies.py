"""JSON bodies of every route: of what type they may be, and which are read beside the event loop."""

from __future__ import annotations

import threading
from typing import Any

import orjson
import pytest

from service.app import create_app
from service.bodies.schemas import read_body
from service.settings import Settings
from tests.service.kit import LocalClient, ds, history, observations

ASKED: list[tuple[str, str, dict[str, Any]]] = [
    ("PUT", "/v1/streams/new", history([1.0])),
    ("POST", "/v1/streams/a/observations", observations((10, 1.0))),
    ("POST", "/v1/streams/a/forecast", {}),
    ("POST", "/v1/forecasts", {"streams": ["a"]}),
    ("POST", "/v1/forecasts", {"series": [{"unique_id": "b", **history([1.0, 2.0])}]}),
    (
        "POST",
        "/v1/timeseries/forecast",
        {
            "model": "tiny",
            "inputs": [{"type": "univariate_time_series", "name": "b", "series": [1.0, 2.0], "frequency": "H"}],
            "options": {"horizon": 1},
        },
    ),
    ("POST", "/v2/forecast", {"series": {"y": [1.0, 2.0], "sizes": [2]}, "freq": "h", "h": 1}),
]
OWN = [asked for asked in ASKED if asked[1].startswith(("/v1/streams", "/v1/forecasts"))]
LARGE = 2**19


@pytest.fixture
def client(settings: Settings):
    with LocalClient(create_app(settings.model_copy(update={"max_body_bytes": 2**21}))) as running:
        running.put("/v1/streams/a", json=history([1.0] * 10))
        yield running


def content_of(body: dict[str, Any], size: int = 0) -> bytes:
    """As JSON, filled up with spaces."""
    return orjson.dumps(body).ljust(size)


def answered(client: LocalClient, method: str, path: str, content: bytes, kind: str | None) -> Any:
    headers = {} if kind is None else {"content-type": kind}
    return client.request(method, path, content=content, headers=headers)


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: asked[1])
@pytest.mark.parametrize(
    "kind", [None, "application/json", "Application/JSON; charset=utf-8", "application/vnd.own+json", ""]
)
def test_a_body_that_says_it_is_json_or_nothing_is_read(client: LocalClient, asked: Any, kind: str | None) -> None:
    method, path, body = asked

    assert answered(client, method, path, content_of(body), kind).is_success


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: asked[1])
@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "text/plain;charset=application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/vnd.apache.arrow.stream",
        "application/x-ndjson",
        "application/jsonp",
    ],
)
def test_a_body_that_says_it_is_something_else_is_refused_and_changes_nothing(
    client: LocalClient, asked: Any, kind: str
) -> None:
    """What a page may have any browser send without asking is among it: text and forms."""
    method, path, body = asked
    reply = answered(client, method, path, content_of(body), kind)

    assert reply.status_code == 415
    assert kind.partition(";")[0] in reply.text
    assert "expected application/json" in reply.text
    assert client.get("/v1/streams/a").json()["version"] == 1
    assert client.get("/v1/streams/new").status_code == 404


@pytest.mark.parametrize("asked", OWN, ids=lambda asked: asked[1])
def test_a_large_body_is_read_beside_the_event_loop(client: LocalClient, asked: Any, monkeypatch: Any) -> None:
    """Health checks and others' observations come between; small ones are read at once."""
    method, path, body = asked
    threads = []

    def seen(*given: Any) -> Any:
        threads.append(threading.current_thread())
        return read_body(*given)

    monkeypatch.setattr("service.routes.common.read_body", seen)
    large, small = (answered(client, method, path, content_of(body, size), None) for size in (LARGE, 0))

    assert large.is_success
    assert small.is_success
    assert [thread is client._thread for thread in threads] == [False, True]


@pytest.mark.parametrize("asked", OWN, ids=lambda asked: asked[1])
def test_a_large_body_is_refused_in_the_words_of_a_small_one(client: LocalClient, asked: Any) -> None:
    method, path, body = asked
    wrong = {**body, "horizons": [ds(0)] * 5, "observations": 1, "ds": {}, "future": 7}
    large, small = (answered(client, method, path, content_of(wrong, size), None).json() for size in (LARGE, 0))

    assert large["status"] == 422
    assert large | {"request_id": ""} == small | {"request_id": ""}


def test_a_large_body_does_what_a_small_one_does(client: LocalClient) -> None:
    """Observations with what they lead to: accepted, in conflict, and a second time."""
    path = "/v1/streams/a/observations"
    for body, status in (
        (observations(*((hour, 1.0) for hour in range(10, 20))), 200),
        (observations((19, 2.0)), 409),
        ({**observations((21, 2.0)), "horizon": 999}, 422),
    ):
        assert answered(client, "POST", path, content_of(body, LARGE), None).status_code == status
    again = answered(client, "POST", path, content_of(observations((19, 1.0))), None)

    assert again.json()["duplicate"] == 1
    assert client.get("/v1/streams/a").json()["cutoff"] == ds(19)
