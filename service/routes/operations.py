"""Operations: liveness, readiness, metrics, all models, and the one that serves."""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.bodies.described import HostedReply, ModelsReply, StatusReply
from service.bodies.replies import json_reply
from service.front import AT_ROOT
from service.hosting import Hosted
from service.metrics import exposition
from service.problems import Problem
from service.routes.common import host_of, needs, refuse_query, service_of
from service.routes.describing import answer, described
from service.runtime import Readiness

__all__ = ["add_to"]

_METRICS = {"text/plain": {"schema": {"type": "string"}, "example": "# TYPE forecaster_requests_total counter"}}


def add_to(app: FastAPI) -> None:
    """Add the routes of this resource."""
    add = partial(app.add_api_route, tags=["operations"], methods=["GET"], response_class=Response)
    alive, ready = answer("it is alive", StatusReply), answer("it can", StatusReply)
    text = answer("Prometheus' text format", content=_METRICS)
    models = answer("the model, none while there is none yet", ModelsReply)
    listed = answer("the model at the root, if there is one, and all named models", HostedReply)
    for path, endpoint, name, summary, told in (
        ("/healthz", _health, "health", "Is the process alive?", alive),
        ("/readyz", _ready, "ready", "Can it serve: model, engine, store? Of several models, one at least?", ready),
    ):
        add(path, endpoint, name=name, summary=summary, openapi_extra=described({200: told}, keyed=False) | needs(None))
    for path, endpoint, name, summary, told in (
        ("/metrics", _metrics, "metrics", "Prometheus metrics of all models", described({200: text}) | AT_ROOT),
        (
            "/models",
            _list,
            "list_models",
            "All models, each served below a prefix",
            described({200: listed}, 422) | AT_ROOT,
        ),
        ("/v1/models", _models, "models", "The model that serves", described({200: models}, 422)),
    ):
        add(path, endpoint, name=name, summary=summary, openapi_extra=told)


async def _health(request: Request) -> Response:
    trouble = host_of(request).healthy()
    if trouble is not None:
        raise Problem(503, "not-alive", trouble)
    return json_reply({"status": "alive"})


async def _ready(request: Request) -> Response:
    hosted: Hosted | None = request.scope["hosted"]
    found: dict[str | None, Readiness]
    if hosted is None or hosted.name is None:
        ready, found = await host_of(request).readiness()
    else:
        alone = await hosted.readiness()
        ready, found = alone.ready, {None: alone}
    said: dict[str, Any] = {"checks": found[None].details if None in found else {}}
    others = {name: checks for name, checks in found.items() if name is not None}
    if others:
        said["models"] = {name: {"ready": checks.ready, "checks": checks.details} for name, checks in others.items()}
    if not ready:
        failing = "; ".join(
            f"{part}: {text}" if name is None else f"model {name!r}, {part}: {text}"
            for name, checks in found.items()
            for part, text in checks.failing.items()
        )
        raise Problem(503, "not-ready", failing, headers={"retry-after": "1"}, **said)
    whole = all(checks.ready for checks in found.values())
    return json_reply({"status": "ready" if whole else "partly ready", **said})


async def _metrics(request: Request) -> Response:
    host = host_of(request)
    counted = {None: host.requests, **{name: hosted.metrics for name, hosted in host.hosted.items()}}
    return Response(exposition(counted), media_type=CONTENT_TYPE_LATEST)


async def _list(request: Request) -> Response:
    refuse_query(request)
    return json_reply({"models": [hosted.describe() for hosted in host_of(request).hosted.values()]})


async def _models(request: Request) -> Response:
    refuse_query(request)
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
        "covariates": [
            {"name": name, "role": role, "values": config.covariates.values_of(name)}
            for role in ("known", "past", "static")
            for name in getattr(config.covariates, role)
            if name != "unique_id"  # of which nobody tells it more than the name
        ],
        "further_covariates": sorted(model.further),
        "quantile_levels": config.quantile_levels,
        "max_gap_steps": service.max_gap_steps(model),
    }
    replay, kept = switch.replay, switch.kept
    coming = replay and {**replay.model.label, "streams": replay.streams, "derived": min(replay.done, replay.streams)}
    before = kept and {**kept.model.label, "kept_seconds": round(max(kept.until - monotonic(), 0))}
    found = {"models": [served], "coming": coming, "before": before, "challenger": service.challenged()}
    return json_reply(found | reply)
