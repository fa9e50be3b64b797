"""`/v1/scenes`: the scenes that the service holds, with the fidelity of each."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, Field

from cloud_server.api.fidelity import BundleName, DistortionFigures, age_of, bundle_of
from cloud_server.api.held import Held
from cloud_server.api.paging import NAME, Limit, Page, SceneCursor, page
from cloud_server.api.visit import caller_of
from cloud_server.frontend.scenes import HeldScene

DeviceName = Annotated[str | None, Query(pattern=NAME, description="only of this device")]
TenantName = Annotated[
    str | None,
    Query(pattern=NAME, description="tenant, for operators of the service"),
]


class SceneEntry(BaseModel):
    """A scene that is held."""

    id: str
    object: Literal["scene"] = "scene"
    tenant: str
    device: str
    accepted_at: float = Field(description="seconds since 1970")
    age_s: float
    point: str = Field(description="operating point; `picture` for a picture")
    token_map: list[str] = Field(
        description="a text for each row of the grid: 1 for a token that was sent, else 0; empty "
        "for a picture"
    )
    delta: bool = Field(description="whether the frame holds what changed since an earlier one")
    payload_bytes: int = Field(description="size of the payload; for a delta frame, of the change")
    distortion: DistortionFigures
    risk: float | None = Field(
        description="probability that the answer to an average question differs from the "
        "picture's; null if unknown"
    )
    risk_unknown: str | None = Field(description="why the risk is null; null if it is known")
    fallback: str = Field(description="why the device sent a picture; empty if it did not")
    warnings: list[str]
    bundle: BundleName | None = Field(description="null for a picture")


class Scenes:
    """The routes of scenes.

    Args:
        held: the scenes.
    """

    def __init__(self, held: Held) -> None:
        self._held = held

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v1/scenes", tags=["scenes"])

        @router.get("")
        async def scenes(
            request: Request,
            device: DeviceName = None,
            tenant: TenantName = None,
            cursor: SceneCursor = None,
            limit: Limit = 20,
        ) -> Page[SceneEntry]:
            """List the scenes held, the newest first."""
            caller = caller_of(request)
            caller.require("read")
            found = self._held.of(caller, tenant or caller.tenant, device)
            found.sort(key=_place)
            if cursor is not None:
                microseconds, _, scene_id = cursor.partition("-")
                found = [one for one in found if _place(one) > (-int(microseconds), scene_id)]
            return page(found, _tell, _cursor, limit)

        @router.get("/{scene}")
        async def scene(
            request: Request,
            scene: Annotated[str, Path(max_length=64)],
            tenant: TenantName = None,
        ) -> SceneEntry:
            """One scene."""
            caller = caller_of(request)
            caller.require("read")
            return _tell(self._held.by_id(caller, tenant or caller.tenant, scene))

        return router


def _tell(scene: HeldScene) -> SceneEntry:
    return SceneEntry(
        id=scene.scene_id,
        tenant=scene.tenant,
        device=scene.device,
        accepted_at=scene.accepted_at,
        age_s=age_of(scene),
        point=scene.point,
        token_map=_rows(scene),
        delta=scene.delta,
        payload_bytes=scene.payload_bytes,
        distortion=DistortionFigures.of(scene.distortion),
        risk=scene.risk,
        risk_unknown=scene.risk_unknown or None,
        fallback=scene.fallback,
        warnings=list(scene.warnings),
        bundle=bundle_of(scene),
    )


def _place(scene: HeldScene) -> tuple[int, str]:
    """Sort key of a scene: newest first."""
    return -round(scene.accepted_at * 1e6), scene.scene_id


def _cursor(scene: HeldScene) -> str:
    return f"{round(scene.accepted_at * 1e6)}-{scene.scene_id}"


def _rows(scene: HeldScene) -> list[str]:
    width = scene.grid[1]
    text = "".join("1" if kept else "0" for kept in scene.kept)
    return [text[place : place + width] for place in range(0, len(text), width)]
