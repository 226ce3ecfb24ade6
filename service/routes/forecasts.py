"""Stateless forecasts: histories in, forecasts out, nothing kept; the same fold and decode as for streams."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from service.bodies.schemas import ForecastsRequest
from service.routes.common import body_of, model_body, needs, refuse_query, service_of

__all__ = ["add_to"]


def add_to(app: FastAPI) -> None:
    """Add the routes of this resource."""
    app.add_api_route(
        "/v1/forecasts",
        _forecast,
        methods=["POST"],
        tags=["forecasts"],
        summary="Forecast from histories in the request",
        openapi_extra={**model_body(ForecastsRequest), **needs("read")},
    )


async def _forecast(request: Request) -> Response:
    refuse_query(request)
    body = await body_of(request, ForecastsRequest)
    content = await service_of(request).stateless(body)
    return Response(content, media_type="application/json")
