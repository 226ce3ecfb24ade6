"""A body full of mistakes costs no more than one with a few: they are not collected, and a few are told."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from service.adapters import kserve, timegpt
from service.adapters.answering import read_json
from service.app import create_app
from service.bodies.schemas import (
    ForecastsRequest,
    ObservationsRequest,
    RequestBody,
    Row,
    StreamForecastRequest,
    StreamHistory,
    read_body,
)
from service.engine.items import HEAVIEST
from service.problems import Problem
from service.settings import Settings
from tests.service.kit import LocalClient, ds, history

MODELS = (ForecastsRequest, ObservationsRequest, Row, StreamForecastRequest, StreamHistory)
FOREIGN = (*kserve.MODELS, *timegpt.MODELS)
MOST = 25  # mistakes, whatever is sent
MANY = 2_000


@pytest.fixture
def client(settings: Settings) -> Iterator[LocalClient]:
    """A service that takes large bodies."""
    with LocalClient(create_app(settings.model_copy(update={"max_body_bytes": 2**23}))) as running:
        yield running


def schemas(part: Any) -> Any:
    """Every schema within a schema."""
    if isinstance(part, dict):
        if isinstance(part.get("type"), str):
            yield part
        for inner in part.values():
            yield from schemas(inner)
    elif isinstance(part, list | tuple):
        for inner in part:
            yield from schemas(inner)


@pytest.mark.parametrize("model", [*MODELS, *FOREIGN], ids=lambda model: model.__name__)
def test_no_part_of_a_request_model_collects_mistakes_without_end(model: type[BaseModel]) -> None:
    found = list(schemas(model.__pydantic_core_schema__))

    for part in found:
        match part["type"]:
            case "list":
                assert part.get("fail_fast") or part.get("items_schema", {"type": "any"})["type"] == "any", part
            case "dict":  # which cannot be told to stop
                assert part.get("values_schema", {"type": "any"})["type"] == "any", part
            case "model":
                assert part["config"].get("extra_fields_behavior") != "forbid", part
    assert any(part["type"] == "model" for part in found)


def each(value: str) -> str:
    """An object of very many names with the same value, as JSON."""
    return "{" + ",".join(f'"n{number}":{value}' for number in range(MANY)) + "}"


def many(value: str) -> str:
    """A list of very many times the same, as JSON."""
    return f"[{','.join([value] * MANY)}]"


ONE = f'{{"ds":"{ds(10)}","y":1.0}}'
COVERED = f'{{"ds":"{ds(10)}","y":1.0,"covariates":%s}}'
SERIES = f'{{"unique_id":"a","ds":["{ds(0)}"],"y":[1.0],%s}}'
OBSERVE, CREATE, MANY_FORECASTS = "/v1/streams/a/observations", "/v1/streams/new", "/v1/forecasts"
LOOK, KSERVE, TIMEGPT, MLFLOW = "/v1/streams/a/forecast", "/v1/timeseries/forecast", "/v2/forecast", "/invocations"
HOSTILE = [
    (OBSERVE, f'{{"observations":{many("1")}}}'),
    (OBSERVE, f'{{"observations":{many("{}")}}}'),
    (OBSERVE, f'{{"observations":[{each("1")}]}}'),
    (OBSERVE, f'{{"observations":[{COVERED % each("[]")}]}}'),
    (OBSERVE, f'{{"observations":[{ONE}],"quantile_levels":{many("7")}}}'),
    (OBSERVE, f'{{"observations":[{ONE}],"future":{each("1")}}}'),
    (OBSERVE, f'{{"observations":[{ONE}],"future":{each("[[]]")}}}'),
    (OBSERVE, f'{{"observations":[{ONE}],"future":{{"price":{many("[]")}}}}}'),
    (OBSERVE, f'{{"observations":[{ONE}],{each("1")[1:]}'),
    (OBSERVE, f'{{"observations":[{ONE}],"horizon":{each("1")}}}'),
    (OBSERVE, each("1")),
    (OBSERVE, many("1")),
    (CREATE, f'{{"ds":{many("[]")},"y":{many("[]")}}}'),
    (CREATE, f'{{"ds":["{ds(0)}"],"y":[1],"covariates":{each("1")}}}'),
    (CREATE, f'{{"ds":["{ds(0)}"],"y":[1],"covariates":{each("[{}]")}}}'),
    (CREATE, f'{{"ds":["{ds(0)}"],"y":[1],"static":{each("[]")}}}'),
    (CREATE, each("1")),
    (LOOK, f'{{"future":{each("1")}}}'),
    (LOOK, each("null")),
    (MANY_FORECASTS, f'{{"series":{many("{}")}}}'),
    (MANY_FORECASTS, f'{{"series":[{SERIES % each("1")[1:-1]}]}}'),
    (MANY_FORECASTS, '{"series":[%s]}' % (SERIES % f'"future":{each("1")}')),
    (MANY_FORECASTS, f'{{"streams":{many("1")}}}'),
    (MANY_FORECASTS, f'{{"streams":["a"],"future":{each("1")}}}'),
    (MANY_FORECASTS, f'{{"streams":["a"],"future":{{"a":{each("[]")}}}}}'),
    (KSERVE, f'{{"model":"tiny","inputs":{many("1")},"options":{{"horizon":1,"quantiles":{many("[]")}}}}}'),
    (TIMEGPT, f'{{"series":{{"y":[1],"sizes":{many("0")},"X":{many("1")},"start_datetime":{many("[]")}}}}}'),
    (TIMEGPT, f'{{"series":{{"y":[1],"sizes":[1]}},"freq":"h","h":1,"level":{many("700")}}}'),
    (MLFLOW, f'{{"inputs":[{{"unique_id":"a","ds":"{ds(0)}","y":[]}}],"params":{each("1")}}}'),
    (MLFLOW, f'{{"inputs":{{"unique_id":{many("1")},"ds":{many("[]")},"y":{many("[]")}}}}}'),
]  # fmt: skip


def mistakes(model: type[BaseModel], body: str) -> int:
    """How many are collected."""
    read = model.model_validate if model in FOREIGN else partial(read_body, model)
    given = read_json(body.encode()) if model in FOREIGN else body.encode()
    with pytest.raises((ValidationError, Problem)) as caught:
        read(given)
    return caught.value.error_count() if isinstance(caught.value, ValidationError) else 1


@pytest.mark.parametrize("model", [*MODELS, *FOREIGN], ids=lambda model: model.__name__)
@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_very_many_mistakes_become_few_errors(model: type[BaseModel], number: int) -> None:
    assert mistakes(model, HOSTILE[number][1]) <= MOST


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_very_many_mistakes_are_one_short_refusal(client: LocalClient, number: int) -> None:
    path, body = HOSTILE[number]
    client.put("/v1/streams/a", json=history([1.0] * 10))

    reply = client.request(
        "PUT" if path == CREATE else "POST", path, content=body, headers={"content-type": "application/json"}
    )

    assert reply.status_code in (400, 422), reply.text[:500]
    assert len(reply.content) < 20_000
    assert client.get("/v1/streams/a").json()["version"] == 1
    assert client.get(CREATE).status_code == 404


@pytest.mark.parametrize("model", [ForecastsRequest, ObservationsRequest, StreamHistory], ids=lambda m: m.__name__)
@pytest.mark.parametrize("bracket", [b"{", b"["])
def test_what_opens_too_many_brackets_is_refused_before_it_is_parsed(model: type[RequestBody], bracket: bytes) -> None:
    """It has no end, which nobody finds out: a parser makes something of each bracket and keeps everybody waiting."""
    body = b'{"observations":' + bracket * model.most_brackets
    with pytest.raises(Problem) as caught:
        read_body(model, body)
    assert f"opens {model.most_brackets + 1:,} brackets" in str(caught.value)
    assert caught.value.status == 422
    with pytest.raises(ValidationError):
        read_body(model, body[:-1])


@pytest.mark.parametrize(
    ("path", "most"), [("/invocations", 2**21), ("/v1/timeseries/forecast", 2**20), ("/v2/forecast", 2**20)]
)
def test_adapters_count_brackets_too(client: LocalClient, path: str, most: int) -> None:
    kind = {"content-type": "application/json"}
    reply = client.post(path, content=b"[" * (most + 1), headers=kind)
    assert reply.status_code == (400 if path == "/invocations" else 422)
    assert f"opens {most + 1:,} brackets" in reply.text
    assert "is not JSON" in client.post(path, content=b"[" * most, headers=kind).text


def test_the_most_that_a_request_may_hold_opens_fewer_brackets_than_are_refused() -> None:
    one = ONE[:-1] + ',"covariates":{"a":1,"b":"{x}"}}'
    most = read_body(ObservationsRequest, f'{{"observations":[{",".join([one] * HEAVIEST)}]}}'.encode())
    assert len(most.observations) == HEAVIEST
    columns = "{" + ",".join(f'"c{number}":[1]' for number in range(40)) + "}"
    series = ",".join(SERIES.replace('"a"', f'"{n}"') % f'"covariates":{columns}' for n in range(10_000))
    read = read_body(ForecastsRequest, f'{{"series":[{series}]}}'.encode())
    assert read.series is not None
    assert len(read.series) == 10_000


def test_a_line_full_of_mistakes_is_one_invalid_row(client: LocalClient) -> None:
    client.put("/v1/streams/a", json=history([1.0] * 10))
    lines = f'{{"unique_id":"a","ds":"{ds(10)}","y":1,{each("[]")[1:]}\n{{"unique_id":"a","ds":"{ds(10)}","y":1}}'

    reply = client.post("/v1/observations", content=lines, headers={"content-type": "application/x-ndjson"})

    assert reply.json()["verdicts"] == ["invalid", "accepted"]
    assert len(reply.content) < 2_000


def test_few_mistakes_are_told_by_place(client: LocalClient) -> None:
    client.put("/v1/streams/a", json=history([1.0] * 10))
    body = {"observations": [{"ds": ds(10), "y": 1.0, "z": 1, "x": 2}], "horizons": 3}

    problem = client.post(OBSERVE, json=body).json()

    assert [error["at"] for error in problem["errors"]] == ["observations/0/z", "observations/0/x", "horizons"]
    assert problem["detail"] == "observations/0/z: this field is unknown, found 'z' (and 2 more)"


@pytest.mark.parametrize(
    "found", [[1] * 10**6, {"a": [{"b": "x" * 10**4}] * 100}, "x" * 10**6, {str(n): n for n in range(10**5)}]
)
def test_what_was_found_is_shown_as_far_as_there_is_room(client: LocalClient, found: Any) -> None:
    problem = client.post(LOOK, json={"horizon": found}).json()

    (error,) = problem["errors"]
    assert error["found"] == repr(found)[:79] + "…"
