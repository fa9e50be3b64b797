"""`GET /v1/models`: the one large model that answers."""

from __future__ import annotations

import time
from typing import Literal

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel

from cloud_server.api.visit import caller_of
from protos.errors import MissingError


class Model(BaseModel):
    """A model that answers."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["neural-bridge"] = "neural-bridge"


class ModelList(BaseModel):
    """Every model that answers."""

    object: Literal["list"] = "list"
    data: list[Model]


class Models:
    """The model that answers.

    Args:
        name: its id.
    """

    def __init__(self, name: str) -> None:
        self._model = Model(id=name, created=int(time.time()))

    def require(self, name: str) -> Model:
        """Find a model by name.

        Raises:
            MissingError: there is no such model.
        """
        if name != self._model.id:
            raise MissingError(f"there is no model '{name}': this service has '{self._model.id}'")
        return self._model

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v1/models", tags=["models"])

        @router.get("")
        async def models(request: Request) -> ModelList:
            """List the models that answer."""
            caller_of(request)
            return ModelList(data=[self._model])

        @router.get("/{model}")
        async def model(request: Request, model: str = Path(max_length=256)) -> Model:
            """One model."""
            return self.require(model)

        return router
