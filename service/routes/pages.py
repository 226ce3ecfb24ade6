"""The page that describes the API to people. All that it needs comes from this process: many have no way to others."""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.staticfiles import StaticFiles

from service.front import AT_ROOT
from service.routes.common import needs

__all__ = ["add_to"]

_ASSETS = "docs/assets"  # relative to the page: a proxy may have put all of it below a path of its own


def add_to(app: FastAPI) -> None:
    """Add the page, and the files that its browser asks for."""
    app.mount(f"/{_ASSETS}", StaticFiles(directory=str(files("fastapi_offline") / "static")), name="assets")
    app.add_api_route("/docs", _page, methods=["GET"], include_in_schema=False, openapi_extra=needs(None) | AT_ROOT)


async def _page(_: Request) -> Response:
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title="Forecaster",
        swagger_js_url=f"{_ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{_ASSETS}/swagger-ui.css",
        swagger_favicon_url="data:,",
    )
