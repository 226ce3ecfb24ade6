"""The API's own description: complete, and true of its examples and of the answers to requests made from it."""

from __future__ import annotations

import re
import sqlite3
from contextlib import ExitStack, closing

import jsonschema_rs
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.app import create_app
from service.settings import Settings
from tests.service.kit import ROOT, LocalClient

DOCUMENT = create_app(Settings(model="nothing-is-opened", store="sqlite:///nothing.db")).openapi()
OPERATIONS = {
    operation["operationId"]: (method, path, operation)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
}
ENDLESS = {"stream_events"}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
STREAM = "plant-1"
NAMED = "/models/named"


@schemathesis.serializer("application/x-ndjson", "application/vnd.apache.arrow.stream")
def as_it_is(_context, value):
    """Bulk bodies are text or bytes to begin with."""
    return value if isinstance(value, bytes) else str(value).encode()


def test_what_the_connection_answers_before_any_route_is_told():
    """Those of `service.connections`, which no operation describes."""
    assert {"400", "408", "431", "503"} <= set(re.findall(r"\d{3}", DOCUMENT["info"]["description"]))


def contents():
    """(where, media type, content) of every body that is sent or answered."""
    for name, (_, _, operation) in OPERATIONS.items():
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            yield f"{name} takes", kind, content
        for status, told in operation["responses"].items():
            for kind, content in told.get("content", {}).items():
                yield f"{name} answers {status}", kind, content


# -- the description by itself -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_has_a_summary_a_tag_and_an_answer_that_says_what_it_is(name):
    _, _, operation = OPERATIONS[name]

    assert operation["summary"]
    assert operation["tags"]
    assert len(OPERATIONS) == sum(map(len, DOCUMENT["paths"].values())), "operation ids repeat"
    good = [status for status in operation["responses"] if status.startswith("2")]
    assert good
    for status in good:
        told = operation["responses"][status]
        assert "content" in told or status == "204" or name in ("mlflow_ping", "mlflow_health")


def test_every_body_has_an_example_that_its_shape_allows():
    """Binary ones apart: what an Arrow stream holds cannot be written down in JSON."""
    missing = []
    for where, kind, content in contents():
        if content["schema"].get("format") == "binary":
            continue
        if "example" not in content:
            missing.append((where, kind))
            continue
        shape = {**content["schema"], "components": DOCUMENT["components"]}
        jsonschema_rs.validate(shape, content["example"])

    assert missing == []


def test_an_example_of_a_problem_is_of_a_kind_that_there_is():
    """By name it stands in the service, beside the description itself."""
    written = "".join(path.read_text() for path in (ROOT / "service").rglob("*.py") if path.name != "describing.py")
    several = create_app(Settings(models={"load": "m"}, store="sqlite:///nothing.db")).openapi()
    told = [
        told["content"]["application/problem+json"]["example"]["type"]
        for document in (DOCUMENT, several)
        for operations in document["paths"].values()
        for operation in operations.values()
        for told in operation["responses"].values()
        if "application/problem+json" in told.get("content", {})
    ]

    assert {kind for kind in set(told) if f'"{kind.removeprefix("urn:forecaster:problem:")}"' not in written} == set()
    assert "urn:forecaster:problem:unknown-model" in told


def test_the_description_is_one_that_tools_can_read():
    """Schemathesis, which generates requests from it, as a client generator would."""
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    schema.validate()

    assert len([operation.ok() for operation in schema.get_all_operations()]) == len(OPERATIONS)


# -- the description and the service -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(artifact, tmp_path_factory):
    """The whole application, a named model beside the one at the root, over stores of its own."""
    model = {"model": str(artifact), "max_history_steps": 5000}
    store = f"sqlite:///{tmp_path_factory.mktemp('fuzz') / 'log.db'}"
    with LocalClient(create_app(Settings(**model, models={"named": model}, store=store))) as running:
        yield running


@pytest.fixture(scope="module")
def look(client):
    """What the stores of both models hold: streams and their logs."""
    with ExitStack() as stack:
        connections = [
            stack.enter_context(closing(sqlite3.connect(hosted.settings.store.removeprefix("sqlite:///"))))
            for hosted in client.app.state.host.hosted.values()
        ]

        def look():
            return [
                connection.execute(question).fetchall()
                for connection in connections
                for question in (
                    "SELECT unique_id, version, last_step, observations FROM streams ORDER BY id",
                    "SELECT count(*), total(y), total(step) FROM observations",
                )
            ]

        yield look


def reset(client, prefix=""):
    body = {"ds": ["2025-01-01T00:00:00", "2025-01-01T01:00:00", "2025-01-01T02:00:00"], "y": [98.1, None, 104.7]}
    assert client.put(f"{prefix}/v1/streams/{STREAM}", json=body).is_success


JSON_EXAMPLES = [
    name
    for name, (_, _, operation) in OPERATIONS.items()
    if "application/json" in operation.get("requestBody", {}).get("content", {})
]


@pytest.mark.parametrize("name", JSON_EXAMPLES)
def test_an_example_is_taken_and_answered_as_described(client, name):
    method, path, operation = OPERATIONS[name]
    reset(client)
    example = operation["requestBody"]["content"]["application/json"]["example"]
    if name == "kserve_forecast":
        example = {**example, "model": "tiny"}
    reply = client.request(method, path.replace("{unique_id}", STREAM), json=example)

    assert reply.is_success, reply.text
    content = operation["responses"][str(reply.status_code)]["content"]["application/json"]
    jsonschema_rs.validate({**content["schema"], "components": DOCUMENT["components"]}, reply.json())
    assert set(content["example"]) <= set(reply.json()), "the example shows what is not there"


def fuzz(client, look, name, examples, document=DOCUMENT, prefix=""):
    """Requests made from the description, sound and unsound ones, at streams of any name and at one that is there."""
    schema = schemathesis.openapi.from_dict(document)
    (operation,) = [
        found for result in schema.get_all_operations() if (found := result.ok()).definition.raw["operationId"] == name
    ]
    for mode in GenerationMode:
        for fixed in [{}, {"unique_id": STREAM}] if "{unique_id}" in operation.path else [{}]:
            strategy = operation.as_strategy(generation_mode=mode, **({"path_parameters": fixed} if fixed else {}))
            try:
                ask_all(client, look, strategy, examples, prefix)
            except Unsatisfiable:
                assert mode is GenerationMode.NEGATIVE  # of what takes anything, nothing is unsound


def headers_of(request):
    """As they would go over the wire."""
    return [
        (name, value.encode("latin-1", "replace") if isinstance(value, str) else value)
        for name, value in request.headers.items()
    ]


def ask_all(client, look, strategy, examples, prefix):
    @seed(20261125)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def ask(case):
        if case.path_parameters.get("unique_id") == STREAM:
            reset(client, prefix)
        before = look()
        request = requests.Request(**case.as_transport_kwargs(base_url=f"http://service{prefix}")).prepare()
        assert request.path_url.startswith(f"{prefix}/")
        reply = client.request(request.method, request.url, headers=headers_of(request), content=request.body)
        case.validate_response(reply, checks=CHECKS)
        if reply.status_code >= 400 or case.method == "GET":
            assert look() == before, "a refused request has changed something"

    ask()


FUZZED = sorted(set(OPERATIONS) - ENDLESS)


@pytest.mark.parametrize("name", FUZZED)
def test_requests_made_from_the_description_are_answered_as_described(client, look, name):
    fuzz(client, look, name, examples=5)


@pytest.mark.parametrize("name", [name for name in FUZZED if "servers" not in OPERATIONS[name][2]])
def test_requests_below_the_prefix_of_a_named_model_are_answered_as_described(client, look, name):
    """The description says by its servers that the same operations are there."""
    document = client.app.openapi()
    assert NAMED in [server["url"] for server in document["servers"]]
    fuzz(client, look, name, 2, document, NAMED)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUZZED)
def test_many_requests_made_from_the_description_are_answered_as_described(client, look, name):
    fuzz(client, look, name, examples=400)
