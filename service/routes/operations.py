"""Operations: liveness, readiness, metrics and the models being served."""

from __future__ import annotations

from functools import partial
from time import monotonic

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.bodies.described import ModelsReply, StatusReply
from service.bodies.replies import json_reply
from service.problems import Problem
from service.routes.common import needs, service_of
from service.routes.describing import answer, described

__all__ = ["add_to"]

_METRICS = {"text/plain": {"schema": {"type": "string"}, "example": "# TYPE forecaster_requests_total counter"}}


def add_to(app: FastAPI) -> None:
    """Add the routes of this resource."""
    add = partial(app.add_api_route, tags=["operations"], methods=["GET"], response_class=Response)
    alive, ready = answer("it is alive", StatusReply), answer("it can", StatusReply)
    text = answer("Prometheus' text format", content=_METRICS)
    models = answer("the models, none while there is none yet", ModelsReply)
    for path, endpoint, name, summary, told in (
        ("/healthz", _health, "health", "Is the process alive?", alive),
        ("/readyz", _ready, "ready", "Can it serve: model, engine, store?", ready),
    ):
        add(path, endpoint, name=name, summary=summary, openapi_extra=described({200: told}, keyed=False) | needs(None))
    add("/metrics", _metrics, name="metrics", summary="Prometheus metrics", openapi_extra=described({200: text}))
    add("/v1/models", _models, name="models", summary="The model that serves", openapi_extra=described({200: models}))


async def _health(request: Request) -> Response:
    trouble = service_of(request).healthy()
    if trouble is not None:
        raise Problem(503, "not-alive", trouble)
    return json_reply({"status": "alive"})


async def _ready(request: Request) -> Response:
    checks = await service_of(request).readiness()
    if not checks.ready:
        failing = "; ".join(f"{name}: {text}" for name, text in checks.failing.items())
        raise Problem(503, "not-ready", failing, headers={"retry-after": "1"}, checks=checks.details)
    return json_reply({"status": "ready", "checks": checks.details})


async def _metrics(request: Request) -> Response:
    return Response(service_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def _models(request: Request) -> Response:
    service = service_of(request)
    switch, reply = service.switch, {"reference": service.settings.model, "trouble": service.watcher_trouble()}
    if switch.engine is None:
        return json_reply({"models": [], **reply})
    model = switch.engine.model
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
    replay, kept = switch.replay, switch.kept
    coming = replay and {**replay.model.label, "streams": replay.streams, "derived": min(replay.done, replay.streams)}
    before = kept and {**kept.model.label, "kept_seconds": round(max(kept.until - monotonic(), 0))}
    challenger = service.challenger and service.challenger.describe()
    return json_reply({"models": [served], "coming": coming, "before": before, "challenger": challenger, **reply})
