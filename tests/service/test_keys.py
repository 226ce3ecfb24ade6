"""API keys: what is at rest, who is let in to what, how often, and when the service refuses to start without them."""

from __future__ import annotations

import json
import subprocess
import sys
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.app import create_app
from service.errors import ServiceError
from service.keys import SCOPES, ApiKey, KeyRing, is_loopback, main
from service.settings import Settings
from tests.service.kit import ROOT, LocalClient, assert_problem, history, observations
from tests.service.test_events import Reader

READER, WRITER, BUSY = "fck_reader", "fck_writer", "fck_busy"


def line(name: str, scopes: str, key: str, rest: str = "") -> str:
    """As `forecaster keys new` writes it."""
    return f"{name} {scopes} sha256:{sha256(key.encode()).hexdigest()} {rest}\n"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "api-keys"
    path.write_text(
        "# who may call\n\n"
        + line("reader", "read", READER)
        + line("writer", "write", WRITER, "# no reading")
        + line("busy", "read", BUSY, "0.001/s")
    )
    return path


@pytest.fixture
def guarded(settings, file):
    """The application with keys."""
    guarded = settings.model_copy(update={"api_keys_file": file, "host": "0.0.0.0"})
    with LocalClient(create_app(guarded)) as running:
        yield running


def test_a_page_of_another_origin_that_has_a_key_may_send_what_a_proxy_lets_in(guarded):
    """A browser adds none by itself, so it cannot be made to send anything."""
    page = {"sec-fetch-site": "cross-site", "origin": "https://example.com"}
    assert guarded.put("/v1/streams/a", json=history([1.0]), headers=page | bearer(WRITER)).status_code == 201
    assert guarded.put("/v1/streams/b", json=history([1.0]), headers=page).status_code == 401


def test_who_has_a_key_may_ask_for_any_name(guarded):
    """A page of a rebound name has none, and a browser adds none by itself."""
    named = {"host": "forecasts.example"}
    assert guarded.put("/v1/streams/a", json=history([1.0]), headers=named | bearer(WRITER)).status_code == 201
    assert guarded.get("/v1/streams/a", headers=named).status_code == 401
    assert guarded.get("/healthz", headers=named).status_code == 200


def test_without_a_known_key_nothing_but_health_is_answered(guarded):
    for headers, word in (
        ({}, "Authorization: Bearer"),
        (bearer("fck_other"), "not known"),
        ({"authorization": f"Basic {WRITER}"}, "not known"),
        ({"authorization": "Bearer"}, "not known"),
        (bearer("x" * 10_000), "not known"),
    ):
        reply = guarded.put("/v1/streams/a", json=history([1.0]), headers=headers)
        assert_problem(reply, 401, word)
        assert reply.headers["www-authenticate"].startswith('Bearer realm="forecaster"')
    for path in ("/v1/streams", "/v1/models", "/metrics"):
        assert guarded.get(path).status_code == 401
    assert [guarded.get(path).status_code for path in ("/healthz", "/readyz", "/openapi.json")] == [200] * 3
    assert guarded.get("/v1/streams", headers=bearer(READER)).json()["streams"] == []


def test_a_key_does_what_its_scopes_say(guarded):
    body = {"series": [{"unique_id": "x", **history([1.0, 2.0])}]}

    assert guarded.put("/v1/streams/a", json=history([1.0]), headers=bearer(WRITER)).status_code == 201
    refused = guarded.post("/v1/streams/a/observations", json=observations((1, 2.0)), headers=bearer(READER))
    assert_problem(refused, 403, "'reader'", "'write'")
    assert 'error="insufficient_scope", scope="write"' in refused.headers["www-authenticate"]
    assert guarded.delete("/v1/streams/a", headers=bearer(READER)).status_code == 403
    assert_problem(guarded.get("/v1/streams/a", headers=bearer(WRITER)), 403, "'read'")
    # Reads, though they are POST.
    assert guarded.post("/v1/forecasts", json=body, headers=bearer(READER)).status_code == 200
    assert guarded.post("/v1/streams/a/forecast", json={}, headers=bearer(READER)).status_code == 200
    assert guarded.get("/v1/streams/a", headers=bearer(READER)).json()["version"] == 1


def test_a_key_that_is_withdrawn_takes_its_readers_of_events_along(settings, file, monkeypatch):
    """All readers come back and are asked for their keys anew."""
    monkeypatch.setattr("service.hosting._KEYS_SECONDS", 0.02)
    guarded = settings.model_copy(update={"api_keys_file": file, "host": "0.0.0.0"})
    headers = tuple(bearer(READER).items())
    with LocalClient(create_app(guarded)) as client:
        assert client.put("/v1/streams/a", json=history([1.0] * 10), headers=bearer(WRITER)).status_code == 201
        with Reader(client, headers=headers) as first, Reader(client, headers=headers) as second:
            assert first.next() is not None
            assert second.next() is not None
            file.write_text(line("writer", "write", WRITER))

            assert first.next() is None
            assert second.next() is None
        with Reader(client, headers=headers) as again:
            assert again.next() is None
        assert again.status == 401


def test_a_body_is_not_read_before_its_key(guarded):
    async def receive():
        raise AssertionError("the body was asked for")

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "PUT", "path": "/v1/streams/a", "query_string": b"", "headers": []}
    guarded.call(guarded.app(scope, receive, send))

    assert sent[0]["status"] == 401


def test_who_asks_too_often_waits(guarded):
    assert guarded.get("/v1/streams", headers=bearer(BUSY)).status_code == 200
    refused = guarded.get("/v1/streams", headers=bearer(BUSY))
    assert_problem(refused, 429, "0.001 requests per second")
    assert 900 <= int(refused.headers["retry-after"]) <= 1000
    assert guarded.get("/v1/streams", headers=bearer(READER)).status_code == 200


@given(st.floats(0.01, 1000), st.lists(st.floats(0, 10), min_size=1, max_size=200))
def test_a_bucket_lets_through_its_rate_and_one_second_more(rate, pauses):
    """Over any stretch of time, and who was told to wait gets in after that time."""
    key = ApiKey("a", ["read"], b"", rate)
    now, through = 0.0, []
    for pause in pauses:
        now += pause
        seconds = key.wait(now)
        if not seconds:
            through.append(now)
        else:
            assert ApiKey.wait(copied(key), now + seconds * 1.000001 + 1e-9) == 0.0
    for first in range(0, len(through), 7):
        stretch = through[first:]
        assert len(stretch) <= max(rate, 1.0) + (stretch[-1] - stretch[0]) * rate + 1e-6


def copied(key: ApiKey) -> ApiKey:
    other = ApiKey(key.name, key.scopes, key.digest, key.rate)
    other._tokens, other._filled_at = key._tokens, key._filled_at
    return other


def test_keys_come_and_go_without_a_restart_and_a_broken_file_changes_nothing(file):
    ring = KeyRing.open(file)
    busy = ring.admit(b"Bearer fck_busy", "read", None, 0.0)
    assert ring.refresh() is False

    file.write_text(line("busy", "read", BUSY, "0.001/s") + line("new", "write", "fck_new"))
    assert ring.refresh() is True
    assert ring.admit(b"bearer fck_new", "write", None, 0.0).name == "new"
    with pytest.raises(Exception, match="not known"):
        ring.admit(b"Bearer fck_reader", "read", None, 0.0)
    with pytest.raises(Exception, match=r"0\.001"):
        ring.admit(b"Bearer fck_busy", "read", None, 1.0)
    assert busy.name == "busy"

    for broken, word in (
        ("what is this\n", "line 1"),
        (line("a", "read,fly", "k"), "'fly'"),
        (line("a", "read", "k", "0/s"), "rate of 0"),
        (line("a", "read", "k", "models:"), "expected NAME SCOPES"),
        (line("a", "read", "k", "models:load,"), "found ''; / is"),
        (line("a", "read", "k", "models:load,Bikes"), "found 'Bikes'"),
        (line("a", "read", "k") + line("a", "read", "l"), "twice"),
        ("# nothing\n", "no key"),
    ):
        file.write_text(broken)
        with pytest.raises(ServiceError, match=word) as caught:
            ring.refresh()
        assert "\n" not in str(caught.value)
        assert ring.admit(b"Bearer fck_new", "write", None, 0.0).name == "new"
    file.unlink()
    with pytest.raises(ServiceError, match="cannot be read"):
        ring.refresh()


def test_a_new_key_is_shown_once_and_its_line_holds_only_a_hash(tmp_path):
    command = [sys.executable, "-m", "service.keys", "new", "meters", "--scopes", "read,write", "--rate", "50"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)})
    key = done.stderr.split()[-1]
    file = tmp_path / "api-keys"
    file.write_text(done.stdout)

    assert key.startswith("fck_")
    assert len(key) > 40
    assert key not in done.stdout
    assert KeyRing.open(file).admit(f"Bearer {key}".encode(), "write", None, 0.0).rate == 50.0


@pytest.mark.parametrize("rate", ["0.00001", "2.5", "1000000", "12345678.5"])
def test_a_new_key_has_the_rate_that_was_asked_for(tmp_path, capsys, rate):
    assert main(["new", "--rate", rate]) == 0
    made, key = capsys.readouterr()
    file = tmp_path / "api-keys"
    file.write_text(made)

    assert f" {rate}/s" in made
    assert KeyRing.open(file).admit(f"Bearer {key.split()[-1]}".encode(), "write", None, 0.0).rate == float(rate)


def test_two_new_keys_differ_and_json_carries_both_parts(capsys):
    made = []
    for _ in range(2):
        assert main(["new", "--json", "--scopes", "admin"]) == 0
        made.append(json.loads(capsys.readouterr().out))

    assert made[0]["key"] != made[1]["key"]
    assert made[0]["line"].startswith(f"{made[0]['name']} admin sha256:")
    assert made[0]["models"] is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["a b"],
        *(["--scopes", scopes] for scopes in ("fly", "")),
        *(["--rate", rate] for rate in ("0", "-1", "inf", "nan", "many")),
        *(["--models", models] for models in ("", "a,,b", "Bikes", "a b", "/models/a")),
    ],
)
def test_a_key_that_could_not_be_read_back_is_not_made(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["new", *arguments])

    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert (said.err.startswith("forecaster: "), said.err.count("\n")) == (True, 1)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "forecasts.example"])
def test_other_machines_are_listened_to_only_with_keys(artifact, tmp_path, capsys, monkeypatch, host):
    from service.__main__ import main as serve

    assert serve(["--model", str(artifact), "--store", f"sqlite:///{tmp_path / 'log.db'}", "--host", host]) == 2
    error = capsys.readouterr().err
    assert "FORECASTER_API_KEYS_FILE" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "log.db").exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_is(host):
    assert is_loopback(host)


def test_what_each_route_needs_stands_in_its_description():
    """Whatever changes something needs more than `read`, unless it says so here."""
    app = create_app(Settings())
    document = app.openapi()["paths"]
    found = {
        (method.upper(), path): [scope for entry in operation["security"] for scope in entry["key"]]
        for path, operations in document.items()
        for method, operation in operations.items()
    }

    assert {what for what, scopes in found.items() if not scopes} == {
        ("GET", path) for path in ("/healthz", "/readyz", "/ping", "/health")
    }
    assert {scope for scopes in found.values() for scope in scopes} <= set(SCOPES)
    reads = {what for what, scopes in found.items() if scopes == ["read"] and what[0] != "GET"}
    assert reads == {
        ("POST", "/v1/forecasts"),
        ("POST", "/v1/streams/{unique_id}/forecast"),
        ("POST", "/invocations"),
        ("POST", "/v1/timeseries/forecast"),
        ("POST", "/v2/forecast"),
    }
