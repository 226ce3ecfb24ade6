"""Operations: liveness, readiness, metrics and the models being served."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from prometheus_client import CONTENT_TYPE_LATEST

from service.problems import Problem
from service.replies import json_reply
from service.routes.common import service_of

__all__ = ["router"]


def router() -> APIRouter:
    """The routes of this resource."""
    routes = APIRouter(tags=["operations"])
    routes.add_api_route("/healthz", _health, methods=["GET"], summary="Is the process alive?")
    routes.add_api_route("/readyz", _ready, methods=["GET"], summary="Can it serve: model, engine, store?")
    routes.add_api_route("/metrics", _metrics, methods=["GET"], summary="Prometheus metrics")
    routes.add_api_route("/v1/models", _models, methods=["GET"], summary="The model that serves")
    return routes


async def _health() -> Response:
    return json_reply({"status": "alive"})


async def _ready(request: Request) -> Response:
    checks = await run_in_threadpool(service_of(request).readiness)
    if not checks.ready:
        failing = "; ".join(f"{name}: {text}" for name, text in checks.failing.items())
        raise Problem(503, "not-ready", failing, headers={"retry-after": "1"}, checks=checks.details)
    return json_reply({"status": "ready", "checks": checks.details})


async def _metrics(request: Request) -> Response:
    return Response(service_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def _models(request: Request) -> Response:
    service = service_of(request)
    engine = service.engine
    if engine is None:
        return json_reply({"models": [], "reference": service.settings.model, "trouble": service.watcher_trouble()})
    model = engine.model
    config = model.forecaster.config
    served = {
        **model.label,
        "fingerprint": model.key,
        "freq": config.freq,
        "time_zone": config.time_zone,
        "horizon": config.horizon,
        "max_horizon": config.max_horizon,
        "seasonality": config.seasonality,
        "quantile_levels": config.quantile_levels,
        "max_gap_steps": service.max_gap_steps(model),
    }
    return json_reply({"models": [served], "reference": service.settings.model, "trouble": service.watcher_trouble()})
