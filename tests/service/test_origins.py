"""What a browser's page may do where no API key is needed: nothing for other origins, and nothing by rebound names."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from service.app import create_app
from service.settings import Settings
from tests.service.kit import LocalClient, ds, history
from tests.service.test_bodies import ASKED, content_of


@pytest.fixture
def client(settings: Settings):
    named = settings.model_copy(update={"allowed_hosts": "forecasts.example, Load.Example"})
    with LocalClient(create_app(named)) as running:
        running.put("/v1/streams/a", json=history([1.0] * 10))
        yield running


WRITES = [*ASKED, ("DELETE", "/v1/streams/a", {})]
BULK = ("POST", "/v1/observations", {"unique_id": "a", "ds": ds(10), "y": 1.0})
FOREIGN = [
    {"sec-fetch-site": "cross-site", "origin": "https://example.com"},
    {"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:8888"},
    {"origin": "https://example.com"},
    {"origin": "http://127.0.0.1.example.com:8000"},
    {"origin": "http://127.0.0.1"},
    {"origin": "null"},
    {"origin": ""},
]
OURS = [
    {"sec-fetch-site": "same-origin", "origin": "https://behind-a-proxy.example.com"},
    {"sec-fetch-site": "none"},
    {"origin": "http://127.0.0.1:8000"},
]


def sent(client: LocalClient, asked: tuple[str, str, dict[str, Any]], headers: dict[str, str]) -> Any:
    method, path, body = asked
    kind = {"content-type": "application/x-ndjson"} if asked is BULK else {}
    headers = kind | {"host": "127.0.0.1:8000"} | headers
    return client.request(method, path, content=b"" if method == "DELETE" else content_of(body), headers=headers)


@pytest.mark.parametrize("asked", [*WRITES, BULK], ids=lambda asked: f"{asked[0]} {asked[1]}")
def test_what_a_page_of_another_origin_sends_is_refused_and_changes_nothing(client: LocalClient, asked: Any) -> None:
    """Though it needs no type that a browser would ask about first; pages cannot change these headers."""
    for headers in FOREIGN:
        reply = sent(client, asked, headers)
        assert (reply.status_code, reply.json()["type"]) == (403, "urn:forecaster:problem:foreign-origin")
        assert "Sec-Fetch-Site is" in reply.text or "Origin is" in reply.text
    assert client.get("/v1/streams/a", headers=FOREIGN[0]).json()["version"] == 1
    assert client.get("/v1/streams/new").status_code == 404


@pytest.mark.parametrize("headers", OURS)
def test_what_the_pages_of_this_service_send_is_read(client: LocalClient, headers: dict[str, str]) -> None:
    assert all(sent(client, asked, headers).is_success for asked in [BULK, *WRITES])


NEAR = [
    "localhost:8000",
    "LOCALHOST",
    "a.localhost:1",
    "service:8000",
    "127.0.0.1:8000",
    "127.0.0.1",
    "10.1.2.3:80",
    "[::1]:8000",
    "[::ffff:127.0.0.1]",
    "Forecasts.example:8000",
    "forecasts.example",
    "load.example.:443",
]
FAR = [
    "attacker.example",
    "attacker.example:8000",
    "sub.forecasts.example",
    "forecasts.example.attacker.example:8000",
    "127.0.0.1.attacker.example",
    "localhost.attacker.example:8000",
    "127.0.0.1:8000@attacker.example",
    "x" * 2_000 + ".example",
]


@pytest.mark.parametrize("host", FAR, ids=lambda host: host[:40])
def test_nothing_is_said_or_done_for_a_name_that_anybody_may_have_pointed_at_this_machine(
    client: LocalClient, host: str
) -> None:
    """To a browser such a page has the origin of this service, so it may send and read whatever it likes."""
    page = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
    for method, path, body in [*WRITES, ("GET", "/v1/streams/a", {}), ("GET", "/metrics", {}), ("GET", "/healthz", {})]:
        reply = client.request(method, path, content=b"" if method == "GET" else content_of(body), headers=page)
        assert (reply.status_code, reply.json()["type"]) == (421, "urn:forecaster:problem:foreign-host")
        assert "FORECASTER_ALLOWED_HOSTS" in reply.text
        assert len(reply.content) < 1_500
    assert client.get("/v1/streams/a").json()["version"] == 1
    assert client.get("/v1/streams/new").status_code == 404


@pytest.mark.parametrize("host", NEAR)
def test_addresses_names_without_a_dot_and_allowed_names_are_answered(client: LocalClient, host: str) -> None:
    page = {"host": host, "origin": f"http://{host.lower()}"}
    assert client.get("/v1/streams/a", headers=page).status_code == 200
    assert sent(client, BULK, page).status_code == 200


def test_a_client_that_names_no_host_is_answered(client: LocalClient) -> None:
    """As HTTP/1.0 allows; every browser names one."""
    request = httpx.Request("GET", "http://service/v1/streams/a")
    del request.headers["host"]

    assert client.call(client._client.send(request)).status_code == 200
