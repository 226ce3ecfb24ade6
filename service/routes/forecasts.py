"""Stateless forecasts: histories in, forecasts out, nothing kept; the same fold and decode as for streams."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.routes.common import body_of, model_body, refuse_query, service_of
from service.schemas import ForecastsRequest

__all__ = ["router"]


def router() -> APIRouter:
    """The routes of this resource."""
    routes = APIRouter(tags=["forecasts"])
    routes.add_api_route(
        "/v1/forecasts",
        _forecast,
        methods=["POST"],
        summary="Forecast from histories in the request",
        openapi_extra=model_body(ForecastsRequest),
    )
    return routes


async def _forecast(request: Request) -> Response:
    refuse_query(request)
    body = await body_of(request, ForecastsRequest)
    content = await service_of(request).stateless(body)
    return Response(content, media_type="application/json")
