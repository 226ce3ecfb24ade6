"""Traces: a request's span continues the client's trace, and the micro-batch that served it links to it."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.app import create_app
from service.hosting import Host
from service.tracing import Tracing
from tests.service.kit import ROOT, LocalClient, history, observations, until

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def traced(settings):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    host = Host(settings, tracing=Tracing(provider))
    host.open_models()
    with LocalClient(create_app(settings, host)) as client:
        yield client, exporter


def finished(exporter, *names):
    """Spans by name, once these are among them: a micro-batch's own spans follow its replies, and it is the last."""
    until(lambda: set(names) <= {span.name for span in exporter.get_finished_spans()})
    return {span.name: span for span in exporter.get_finished_spans()}


def test_spans_tell_the_story_of_an_observation(traced):
    client, exporter = traced
    client.put("/v1/streams/a", json=history([1.0]))
    finished(exporter, "PUT /v1/streams/{unique_id}", "micro-batch")
    exporter.clear()
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "x-request-id": "r-1"}
    client.post("/v1/streams/a/observations", json=observations((1, 2.0)), headers=headers).raise_for_status()

    spans = finished(exporter, "POST /v1/streams/{unique_id}/observations", "micro-batch")
    request = spans["POST /v1/streams/{unique_id}/observations"]
    batch = spans["micro-batch"]
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == SPAN
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["forecaster.request_id"] == "r-1"
    assert [link.context.span_id for link in batch.links] == [request.context.span_id]
    for part in ("fold", "decode", "commit"):
        assert spans[part].parent.span_id == batch.context.span_id
        assert batch.start_time <= spans[part].start_time <= spans[part].end_time
    assert request.start_time <= batch.start_time <= batch.end_time <= request.end_time


def test_nothing_is_kept_of_requests_that_never_reach_the_engine(traced):
    client, _ = traced
    tracing = client.app.state.host.tracing
    client.service.engine._intake._max_waiting = 0
    for _ in range(20):
        assert client.get("/v1/streams/a").status_code == 503
    gc.collect()

    assert len(tracing._waiting) == 0


def test_a_request_without_a_trace_begins_one_and_a_failure_is_marked(traced, monkeypatch):
    client, exporter = traced
    client.get("/v1/streams/none")
    monkeypatch.setattr(client.service.store, "page", None)
    client.get("/v1/streams")
    first, second = (span for span in exporter.get_finished_spans() if span.name.startswith("GET"))

    assert first.parent is None
    assert first.attributes["http.response.status_code"] == 404
    assert first.status.is_ok
    assert second.attributes["http.response.status_code"] == 500
    assert not second.status.is_ok


def test_without_traces_nothing_of_it_is_even_imported():
    script = "import sys, service.app, service.__main__; print('service.tracing' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)}
    )

    assert done.stdout == "False\n"


def test_the_environment_names_the_service(monkeypatch):
    assert Tracing.open()._provider.resource.attributes["service.name"] == "forecaster"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "staging")
    assert Tracing.open()._provider.resource.attributes["service.name"] == "staging"
