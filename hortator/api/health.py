"""The probes: `/health` says that the process lives, `/ready` tells the truth about what it needs to answer.

Load balancers and operators call them, without a key. They hold no secrets and no addresses.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from hortator import __version__

Readiness = Callable[[], Awaitable[dict[str, Any]]]
"""Returns the document of `/ready`; its `ready` decides the status."""


def router(readiness: Readiness) -> APIRouter:
    """Return the two routes."""
    routes = APIRouter(tags=["probes"])

    @routes.head("/", include_in_schema=False)
    async def root() -> None:
        """Some clients look whether anybody is there before they send anything."""

    @routes.head("/health", include_in_schema=False)
    @routes.get("/health", operation_id="health")
    async def health() -> dict[str, str]:
        """The process is alive and its event loop turns."""
        return {"status": "ok", "version": __version__}

    @routes.head("/ready", include_in_schema=False)
    @routes.get("/ready", operation_id="ready", responses={503: {"description": "Not ready; the body says why"}})
    async def ready() -> JSONResponse:
        """Whether a request would be answered now: store, providers, embedded model, ledger."""
        document = await readiness()
        return JSONResponse(document, status_code=200 if document["ready"] else 503)

    return routes
