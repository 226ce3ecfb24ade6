"""The application: routes, front door, error replies and the service's life, put together by `create_app`.

Importing it builds nothing; everything belongs to the application that `create_app` returns.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.types import ASGIApp

from service import problems
from service.adapters import kserve, mlflow, timegpt
from service.bodies.described import MODELS
from service.front import AT_ROOT, KEY_SCHEME, Front, scope_of
from service.hosting import Host
from service.logs import Answered
from service.naming import prefix_of
from service.routes import events, forecasts, listing, observations, operations, pages, quality, streams
from service.routes.describing import NO_MODEL
from service.settings import Settings

__all__ = ["create_app"]

_TAGS = {  # in the order of the page that describes them
    "streams": "A series each: its log of observations, its state, its forecasts as they are made.",
    "observations": "Of many streams at once.",
    "forecasts": "Of many streams, or of histories that are not kept.",
    "quality": "What past forecasts were worth, as their truth came.",
    "operations": "What operators and their tools ask.",
    "adapters": "For callers of other systems, as those describe them.",
}

_ERRORS = (
    "Errors are `application/problem+json` (RFC 9457), those of the adapters as their callers read them. A 503 to what "
    "changes or forecasts a stream comes with `Retry-After`: send it again. Beside the statuses of its operation, any "
    "request may get 400, 408, 431 or 503 from the connection: it is no HTTP, too slow, its head too large, or there "
    "are too many connections. Where no API key is needed, what a page of another origin sends gets 403, and a request "
    "for a name that the service is not known by 421."
)


def create_app(settings: Settings, host: Host | None = None, log: Callable[[Answered], None] | None = None) -> FastAPI:
    """Build the application.

    Parameters
    ----------
    settings
        What the operator chose.
    host
        Already opened; default: opened when the application starts.
    log
        Told of every request.

    Examples
    --------
    >>> app = create_app(Settings(model="an-artifact-folder", store="sqlite:///log.db"))
    >>> "/v1/streams/{unique_id}/observations" in app.openapi()["paths"]
    True
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = host or Host.open(settings)
        app.state.host = running
        await running.start()
        try:
            yield
        finally:
            await running.stop()

    app = _Application(
        body_limit=settings.max_body_bytes,
        pack_from=settings.compress_from,
        log=log,
        allowed=settings.hosts,
        names=settings.names,
        title="Forecaster",
        summary="Probabilistic forecasts from durable recurrent state",
        description=_ERRORS,
        version="1",
        openapi_tags=[{"name": name, "description": said} for name, said in _TAGS.items()],
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere; see `routes.pages`
        redoc_url=None,
        # Its question to each provider, whether it is configured, would be asked anew for every request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    # The busiest first, as routes are tried in order; but names may hold slashes, so what ends longer comes before.
    for resource in (
        quality,
        events,
        streams,
        listing,
        observations,
        forecasts,
        operations,
        mlflow,
        kserve,
        timegpt,
        pages,
    ):
        resource.add_to(app)
    problems.install(app)
    return app


class _Application(FastAPI):
    """Puts the front door before FastAPI's layers, and adds to OpenAPI the bodies that routes read by themselves."""

    def __init__(
        self,
        *,
        body_limit: int,
        pack_from: int,
        log: Callable[[Answered], None] | None,
        allowed: frozenset[str],
        names: Sequence[str | None],
        **options: Any,
    ) -> None:
        # The same operations at several places is what OpenAPI has servers for.
        places = [
            {
                "url": prefix_of(name) or "/",
                "description": "the model without a name" if name is None else f"model {name}",
            }
            for name in names
        ]
        super().__init__(servers=None if names == [None] else places, **options)
        self._several = names != [None]
        self._body_limit = body_limit
        self._pack_from = pack_from
        self._log = log
        self._allowed = allowed

    def build_middleware_stack(self) -> ASGIApp:
        """Everything a request passes through."""
        rest = super().build_middleware_stack()
        return Front(self, rest, self._body_limit, self._pack_from, self._log, self._allowed)

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        if self.openapi_schema is not None:
            return self.openapi_schema
        document = super().openapi()
        models: tuple[type[BaseModel], ...] = (*MODELS, *kserve.MODELS, *timegpt.MODELS)
        _, shapes = models_json_schema(
            [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
        )
        components = document.setdefault("components", {})
        components.setdefault("schemas", {}).update(shapes["$defs"])
        scheme = {"type": "http", "scheme": "bearer", "description": "An API key, with the scope that is named."}
        components["securitySchemes"] = {KEY_SCHEME: scheme}
        for route in self.routes:
            if isinstance(route, APIRoute) and route.include_in_schema:
                for method in route.methods or ():
                    needed = scope_of(route, method)
                    operation = document["paths"][route.path_format][method.lower()]
                    # Once more: FastAPI drops what is null, in examples too.
                    told = route.openapi_extra or {}
                    operation.update((part, told[part]) for part in ("requestBody", "responses") if part in told)
                    if self._several and AT_ROOT["servers"] != told.get("servers"):
                        operation["responses"] = {**NO_MODEL, **operation["responses"]}
                    operation["security"] = [] if needed is None else [{KEY_SCHEME: [needed]}]
        return document
