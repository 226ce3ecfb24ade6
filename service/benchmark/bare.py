"""The reference endpoint: stock FastAPI with the request and reply shapes of a single observation, and nothing behind.

``python -m service.benchmark.bare PORT HORIZON`` runs it with the service's uvicorn settings.
"""

from __future__ import annotations

import sys
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from service import serving
from service.bodies.schemas import ObservationsRequest

__all__ = ["bare_app"]


class _Model(BaseModel):
    name: str
    version: str


class _Reply(BaseModel):
    unique_id: str
    cutoff: str
    model: _Model
    ds: list[str]
    quantiles: dict[str, list[float]]
    version: int
    accepted: int
    late: int
    duplicate: int
    revised: int
    filled: int


def bare_app(horizon: int) -> FastAPI:
    """Answers every observation with the same forecast."""
    ds = [f"2024-01-{1 + i // 24:02d}T{i % 24:02d}:00:00" for i in range(horizon)]
    quantiles = {f"0.{i}": [100 / 7 + i + j / 3 for j in range(horizon)] for i in range(1, 10)}
    app = FastAPI()

    async def observe(unique_id: str, body: ObservationsRequest) -> Any:
        return _Reply(
            unique_id=unique_id,
            cutoff=str(body.observations[-1].ds),
            model=_Model(name="bare", version="1"),
            ds=ds,
            quantiles=quantiles,
            version=1,
            accepted=1,
            late=0,
            duplicate=0,
            revised=0,
            filled=0,
        )

    app.add_api_route("/v1/streams/{unique_id}/observations", observe, methods=["POST"], response_model=_Reply)
    return app


if __name__ == "__main__":
    serving.run(bare_app(int(sys.argv[2])), host="127.0.0.1", port=int(sys.argv[1]))
