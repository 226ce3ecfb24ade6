"""The application: routes, middleware, error replies and the service's life, put together by `create_app`.

Importing it builds nothing; everything belongs to the application that `create_app` returns.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service import problems
from service.bodies.schemas import ForecastsRequest, ObservationsRequest, Row, StreamHistory
from service.middleware import BodyLimit, RequestMetrics
from service.routes import forecasts, observations, operations, streams
from service.routes.lean import LeanRoute
from service.runtime import Service
from service.settings import Settings

__all__ = ["create_app"]


def create_app(settings: Settings, service: Service | None = None) -> FastAPI:
    """Build the application.

    Parameters
    ----------
    settings
        What the operator chose.
    service
        Already opened; default: opened when the application starts.

    Examples
    --------
    >>> app = create_app(Settings(model="an-artifact-folder", store="sqlite:///log.db"))
    >>> sorted(app.openapi()["paths"])[-1]
    '/v1/streams/{unique_id}/observations'
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = service or Service.open(settings)
        app.state.service = running
        await running.start()
        try:
            yield
        finally:
            await running.stop()

    app = _Application(
        title="Forecaster",
        summary="Probabilistic forecasts from durable recurrent state",
        version="1",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.router.route_class = LeanRoute
    # The busiest first: routes are tried in order.
    for resource in (streams, observations, forecasts, operations):
        resource.add_to(app)
    problems.install(app)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    app.add_middleware(RequestMetrics)
    return app


class _Application(FastAPI):
    """Adds to the OpenAPI document the bodies that routes read by themselves."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        document = super().openapi()
        bodies: list[type[BaseModel]] = [ForecastsRequest, ObservationsRequest, Row, StreamHistory]
        _, described = models_json_schema(
            [(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}"
        )
        document.setdefault("components", {}).setdefault("schemas", {}).update(described["$defs"])
        return document
