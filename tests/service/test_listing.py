"""The list of streams: pages, filters, cursors."""

from __future__ import annotations

import pytest

from service.app import create_app
from service.routes.listing import _Cursor
from service.store import Filter
from tests.forecaster.kit import TINY, forecaster_of
from tests.service.kit import LocalClient, ds, history


@pytest.fixture
def names(client):
    """Streams that end at hour 0, 1, 2 and so on."""
    found = ["a", "a%", "a%b", "aB", "ab", "b/1", "b/2", "é"]
    for hour, name in enumerate(found):
        assert client.put(f"/v1/streams/{name.replace('%', '%25')}", json=history([1.0], hour)).status_code == 201
    return found


def walk(client, path):
    """Names of all pages, by their links."""
    seen = []
    while path:
        reply = client.get(path)
        assert reply.status_code == 200, reply.text
        seen.append([stream["unique_id"] for stream in reply.json()["streams"]])
        path = reply.headers.get("link", "").partition(">")[0].removeprefix("<")
        assert bool(path) == (reply.json()["next_cursor"] is not None)
    return seen


def test_the_pages_show_every_stream_once_in_order(client, names):
    assert walk(client, "/v1/streams?limit=3") == [names[:3], names[3:6], names[6:]]
    assert walk(client, "/v1/streams?limit=4") == [names[:4], names[4:]]
    assert walk(client, "/v1/streams") == [names]


def test_streams_that_come_and_go_meanwhile_hide_none_of_the_others(client, names):
    page = client.get("/v1/streams?limit=4").json()
    client.delete("/v1/streams/aB")
    client.put("/v1/streams/0", json=history([1.0]))
    client.put("/v1/streams/c", json=history([1.0]))
    rest = walk(client, f"/v1/streams?limit=4&cursor={page['next_cursor']}")

    assert rest == [["ab", "b/1", "b/2", "c"], ["é"]]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("prefix=a", ["a", "a%", "a%b", "aB", "ab"]),
        ("prefix=a%25", ["a%", "a%b"]),
        ("prefix=A", []),
        ("prefix=b/", ["b/1", "b/2"]),
        ("prefix=%C3%A9", ["é"]),
        (f"cutoff_from={ds(6)}", ["b/2", "é"]),
        (f"cutoff_before={ds(2)}", ["a", "a%"]),
        (f"cutoff_from={ds(1)}&cutoff_before={ds(3)}", ["a%", "a%b"]),
        (f"prefix=a&cutoff_from={ds(2)}", ["a%b", "aB", "ab"]),
    ],
)
def test_filters_choose_streams_on_every_page(client, names, query, expected):
    assert [name for page in walk(client, f"/v1/streams?limit=2&{query}") for name in page] == expected


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("limit=1001", "1 to 1000"),
        ("limit=0000000001000", "1 to 1000"),
        ("cursor=!!", "cursor"),
        ("cursor=YQ", "cursor"),
        ("cursor=WzFd", "cursor"),
        (f"cursor={_Cursor('', Filter('', 2**63, None)).text()}", "cursor"),
        (f"cursor={_Cursor('', Filter('b')).text()}&prefix=a", "other filters"),
        ("prefix=%00", "printable"),
        ("cutoff_from=yesterday", "ISO 8601"),
        (f"cutoff_before={ds(0)[:-5]}30", "grid"),
        ("sort=y", "sort"),
    ],
)
def test_a_list_that_cannot_be_given_is_refused(client, query, word):
    reply = client.get(f"/v1/streams?{query}")

    assert (reply.status_code, reply.headers["content-type"]) == (422, "application/problem+json")
    assert word in reply.json()["detail"]


@pytest.mark.parametrize("offset", ["%2B01:00", "+01:00", " 01:00", "%2B01", "-00:30", "Z"])
def test_the_plus_of_an_offset_need_not_be_escaped(settings, tmp_path, offset):
    """It reads as a space, as one between date and time does, which stays one."""
    forecaster_of(TINY.with_overrides({"time_zone": "Europe/Berlin"})).save(tmp_path / "zoned")
    with LocalClient(create_app(settings.model_copy(update={"model": str(tmp_path / "zoned")}))) as client:
        for hour in range(3):
            reply = client.put(f"/v1/streams/{hour}", json={"ds": [f"{ds(hour)}+01:00"], "y": [1.0]})
            assert reply.status_code == 201, reply.text
        for separator in ("T", "%20"):
            begin = {"Z": ds(0), "-00:30": ds(0).replace(":00:", ":30:", 1)}.get(offset, ds(1)).replace("T", separator)
            found = client.get(f"/v1/streams?cutoff_from={begin}{offset}")
            assert found.status_code == 200, found.text
            names = [stream["unique_id"] for stream in found.json()["streams"]]
            assert names == {"Z": ["1", "2"], "-00:30": ["2"]}.get(offset, ["1", "2"])


def test_a_space_between_date_and_time_is_no_plus(client, names):
    found = client.get(f"/v1/streams?cutoff_from={ds(6)[:10]}%20{ds(6)[11:16]}")

    assert [stream["unique_id"] for stream in found.json()["streams"]] == ["b/2", "é"]
