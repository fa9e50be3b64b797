"""`GET /healthz`: whether the service answers questions; for load balancers, needs no key."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter
from pydantic import BaseModel

from protos.errors import EngineUnavailableError

PATH = "/healthz"


class Healthy(BaseModel):
    """The service answers."""

    ready: bool = True


def router(not_ready: Callable[[], str]) -> APIRouter:
    """The route.

    Args:
        not_ready: why the service is not ready; empty if it is.
    """
    made = APIRouter(tags=["health"])

    @made.get(PATH, openapi_extra={"security": []})
    async def healthz() -> Healthy:
        """Whether the service answers questions."""
        if why := not_ready():
            raise EngineUnavailableError(f"the service is not ready: {why}")
        return Healthy()

    return made
