"""Traces by OpenTelemetry: a span per request, and one per micro-batch with its parts below, from statements to commit.

A micro-batch serves many requests, so its span belongs to none of them and links to each. Imported only if asked for
(``FORECASTER_OPEN_TELEMETRY=true``, extra ``otel``); OpenTelemetry's own ``OTEL_*`` variables say where spans go.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any, Self
from weakref import WeakKeyDictionary

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.errors import ServiceError

__all__ = ["Tracing"]

_MOST_LINKS = 128  # OpenTelemetry's own default
_current: ContextVar[Span | None] = ContextVar("forecaster_request_span", default=None)


class Tracing:
    """Makes spans.

    Parameters
    ----------
    provider
        Where they go.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("forecaster")
        # Weak, as an item that is refused before it reaches the engine is in no micro-batch.
        self._waiting: WeakKeyDictionary[object, SpanContext] = WeakKeyDictionary()
        self._epoch = time.time_ns() - int(time.perf_counter() * 1e9)

    @classmethod
    def open(cls) -> Self:
        """Export by OTLP over HTTP, as the ``OTEL_EXPORTER_OTLP_*`` variables say.

        Raises
        ------
        ServiceError
            The exporter is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ServiceError("traces need the extra otel: pip install 'forecaster[otel]'") from error
        resource = Resource.create({SERVICE_NAME: "forecaster"}).merge(OTELResourceDetector().detect())
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    # -- requests, on the event loop -------------------------------------------------------------------------------

    def begin(self, method: str, headers: Iterable[tuple[bytes, bytes]], started: float) -> Span:
        """The span of a request, below the one that the client names in its headers (W3C Trace Context)."""
        carrier = {
            name.decode(): value.decode("latin-1") for name, value in headers if name in (b"traceparent", b"tracestate")
        }
        parent = TraceContextTextMapPropagator().extract(carrier)
        span = self._tracer.start_span(method, parent, SpanKind.SERVER, start_time=self._at(started))
        _current.set(span)
        return span

    @staticmethod
    def end(span: Span, method: str, route: str, status: int, request_id: str) -> None:
        """Say how it ended."""
        span.update_name(f"{method} {route}")
        span.set_attributes(
            {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
                "forecaster.request_id": request_id,
            }
        )
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def submitted(self, items: Iterable[object]) -> None:
        """These go to the engine for the request that this task answers."""
        span = _current.get()
        if span is not None:
            context = span.get_span_context()
            self._waiting.update({item: context for item in items})

    # -- micro-batches, by whoever has the engine's turn -----------------------------------------------------------

    def batch(self, items: list[Any], started: float, ended: float, parts: list[tuple[str, float, float]]) -> None:
        """One micro-batch and its parts."""
        contexts = [context for item in items if (context := self._waiting.pop(item, None)) is not None]
        requests = {(context.trace_id, context.span_id): context for context in contexts}
        links = [Link(context) for context in requests.values()][:_MOST_LINKS]
        span = self._tracer.start_span(
            "micro-batch",
            Context(),
            links=links,
            attributes={"forecaster.streams": len(items)},
            start_time=self._at(started),
        )
        below = set_span_in_context(span)
        for name, begin, end in parts:
            self._tracer.start_span(name, below, start_time=self._at(begin)).end(self._at(end))
        span.end(self._at(ended))

    def _at(self, seconds: float) -> int:
        return self._epoch + int(seconds * 1e9)
