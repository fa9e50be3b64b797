"""The views of the live page as data: fleet, one device, one request. All times are UTC seconds."""

from __future__ import annotations

import math

from pydantic import BaseModel, Field

from cloud_server.api.fidelity import DistortionFigures
from cloud_server.engine.jobs import FAR_STEPS
from cloud_server.frontend.scenes import HeldScene
from cloud_server.page.belief import Belief, belief_of
from cloud_server.page.requests import Seen
from cloud_server.page.timeline import SLOT_S, Slot
from cloud_server.page.watch import Heard
from protos.neuralbridge.v1 import bridge_pb2 as pb


class SceneSummary(BaseModel):
    """A device's newest scene."""

    id: str
    accepted_at: float
    point: str
    payload_bytes: int
    delta: bool
    risk: float | None = Field(description="of an answer to an average question; null if unknown")
    risk_limit: float | None = Field(description="above it the picture is advised; null: no guard")
    unfamiliarity: float = Field(description="about 1 for pictures like those of calibration")
    fallback: str
    warnings: list[str]

    @classmethod
    def of(cls, scene: HeldScene) -> SceneSummary:
        """From a scene that is held."""
        return cls(
            id=scene.scene_id,
            accepted_at=scene.accepted_at,
            point=scene.point,
            payload_bytes=scene.payload_bytes,
            delta=scene.delta,
            risk=scene.risk,
            risk_limit=None if scene.risk_model is None else scene.risk_model.limit,
            unfamiliarity=scene.distortion.unfamiliarity,
            fallback=scene.fallback,
            warnings=list(scene.warnings),
        )


class DeviceStatus(BaseModel):
    """How a device said that it is."""

    at: float
    spool_frames: int = Field(description="frames that wait on its disk")
    spool_oldest_s: float = Field(description="age of the oldest of them")
    watts: float | None = Field(description="null if the device does not measure it")
    celsius: float | None = Field(description="of its hottest part; null if it is not measured")
    throttled: bool = Field(description="whether heat slows it down")

    @classmethod
    def of(cls, vitals: pb.Vitals, at_s: float) -> DeviceStatus:
        """From the message."""
        return cls(
            at=at_s,
            spool_frames=vitals.spool_frames,
            spool_oldest_s=vitals.spool_oldest_age_s,
            watts=vitals.power_watts if vitals.HasField("power_watts") else None,
            celsius=vitals.temperature_celsius if vitals.HasField("temperature_celsius") else None,
            throttled=vitals.throttled,
        )


class FleetRow(BaseModel):
    """A device in the fleet."""

    tenant: str
    device: str
    enabled: bool
    heard_at: float | None = Field(description="when it was heard last; null: not since the start")
    attends: bool = Field(description="whether it is connected now and takes orders")
    belief: Belief = Field(description="whether answers about its newest scene can be believed")
    why: str = Field(description="the reason for `belief`")
    scene: SceneSummary | None
    status: DeviceStatus | None = Field(description="null if it never said")


class FleetView(BaseModel):
    """The devices that a caller may see."""

    now: float = Field(description="the service's clock")
    silent_s: float = Field(description="a device that was not heard for so long counts as silent")
    whole: bool = Field(description="whether these are all rows, or those that changed")
    rows: list[FleetRow]
    left_out: int = Field(description="devices that were left out, because there are too many")


class Grid(BaseModel):
    """The newest scene's tokens, a text or a list for each row of the grid."""

    kept: list[str] = Field(description="1 for a token that was sent, else 0")
    far: list[list[float | None]] | None = Field(
        description="distance of each token from calibration, about 1 is usual; null for one that "
        "was not sent. Null as a whole if the engine did not measure it"
    )


class TimelineColumns(BaseModel):
    """A device's last hours, a list a figure; null where nothing was measured."""

    slot_s: int = Field(description="length of a slot, seconds")
    at: list[int] = Field(description="where each slot begins; slots without anything are left out")
    frames: list[int]
    bytes: list[int]
    alarms: list[int] = Field(description="fallbacks, warnings, refusals, risks above the limit")
    risk: list[float | None]
    risk_most: list[float | None]
    quantize: list[float | None]
    dropped_attention: list[float | None]
    latent_residual: list[float | None]
    unfamiliarity: list[float | None]

    @classmethod
    def of(cls, slots: list[Slot]) -> TimelineColumns:
        """From slots."""

        def means(name: str) -> list[float | None]:
            return [_known(getattr(slot, name)) for slot in slots]

        return cls(
            slot_s=SLOT_S,
            at=[slot.number * SLOT_S for slot in slots],
            frames=[slot.frames for slot in slots],
            bytes=[slot.bytes for slot in slots],
            alarms=[slot.alarms for slot in slots],
            risk=means("risk"),
            risk_most=means("risk_most"),
            quantize=means("quantize"),
            dropped_attention=means("dropped_attention"),
            latent_residual=means("latent_residual"),
            unfamiliarity=means("unfamiliarity"),
        )


class RequestSummary(BaseModel):
    """A request in a device's list."""

    id: str
    at: float
    asked_by: str
    question: str
    answer: str
    risk: float | None
    total_ms: float
    refused: str

    @classmethod
    def of(cls, seen: Seen) -> RequestSummary:
        """From what is remembered."""
        return cls(
            id=seen.id,
            at=seen.at_s,
            asked_by=seen.asked_by,
            question=seen.question,
            answer=seen.answer[:200],
            risk=seen.risk,
            total_ms=round(seen.total_ms, 3),
            refused=seen.refused,
        )


class DeviceDetail(BaseModel):
    """One device."""

    now: float = Field(description="the service's clock")
    silent_s: float
    whole: bool = Field(description="whether the timeline is whole, or its newest two slots alone")
    row: FleetRow
    grid: Grid | None = Field(description="null without a scene, and for a picture")
    distortion: DistortionFigures | None
    timeline: TimelineColumns
    requests: list[RequestSummary] = Field(description="the newest first")


class Stage(BaseModel):
    """A stage of a request in the service."""

    name: str = Field(
        description="queue, decode, project, inject, prefill, generate, or rest: between the stages"
    )
    begins_ms: float
    ms: float


class StageLoss(BaseModel):
    """What one stage lost, beside its limit and what is usual."""

    name: str = Field(description="quantize, dropped_attention, latent_residual or unfamiliarity")
    value: float
    limit: float | None = Field(
        description="value at which the risk would reach its limit, the other losses unchanged; "
        "null if none would"
    )
    usual: float | None = Field(description="mean of the device's last hours; null if unknown")


class RequestDetail(BaseModel):
    """One request that has ended."""

    id: str
    tenant: str
    device: str
    scene: str | None = Field(description="id of the scene; null if it is not held any more")
    asked_by: str
    at: float
    question: str
    answer: str
    tokens: int
    point: str
    delta: bool
    payload_bytes: int = Field(description="0 for a question about a scene that was held")
    picture_bytes: float | None = Field(
        description="mean size of the pictures that this device sent; null if none was seen"
    )
    stages: list[Stage]
    first_token_ms: float | None
    total_ms: float
    distortion: list[StageLoss] = Field(description="empty for a picture")
    risk: float | None
    risk_limit: float | None
    risk_unknown: str
    fallback: str
    warnings: list[str]
    refused: str = Field(description="name of the error; empty if it was answered or held")
    why_refused: str
    has_picture: bool = Field(
        description="whether the picture was shadowed and may be seen: GET …/requests/{id}/picture"
    )


_LOSSES = ("quantize", "dropped_attention", "latent_residual", "unfamiliarity")


def row_of(
    tenant: str,
    device: str,
    enabled: bool,
    attends: bool,
    heard: Heard | None,
    scene: HeldScene | None,
) -> FleetRow:
    """A device's row."""
    status = None
    if heard is not None and heard.vitals is not None:
        status = DeviceStatus.of(heard.vitals, heard.vitals_at_s)
    belief, why = belief_of(scene)
    return FleetRow(
        tenant=tenant,
        device=device,
        enabled=enabled,
        heard_at=None if heard is None or not heard.at_s else heard.at_s,
        attends=attends,
        belief=belief,
        why=why,
        scene=None if scene is None else SceneSummary.of(scene),
        status=status,
    )


def grid_of(scene: HeldScene | None) -> Grid | None:
    """The tokens of a scene."""
    if scene is None or not scene.kept:
        return None
    width = scene.grid[1]
    text = "".join("1" if kept else "0" for kept in scene.kept)
    far = [each / FAR_STEPS if each else None for each in scene.far]
    starts = range(0, len(text), width)
    return Grid(
        kept=[text[place : place + width] for place in starts],
        far=[far[place : place + width] for place in starts] if far else None,
    )


def request_of(
    seen: Seen, picture_bytes: float | None, slots: list[Slot], has_picture: bool
) -> RequestDetail:
    """One request.

    Args:
        seen: what is remembered of it.
        picture_bytes: mean size of the device's pictures; None if unknown.
        slots: the device's timeline.
        has_picture: whether its picture may be seen.
    """
    stages: list[Stage] = []
    begins = 0.0
    for name, ms in seen.stages_ms.items():
        stages.append(Stage(name=name, begins_ms=round(begins, 3), ms=round(ms, 3)))
        begins += ms
    if seen.total_ms > begins:
        rest = round(seen.total_ms - begins, 3)
        stages.append(Stage(name="rest", begins_ms=round(begins, 3), ms=rest))
    lost = seen.lost or ()  # a picture has none
    limits = seen.limits or (None,) * len(lost)
    return RequestDetail(
        id=seen.id,
        tenant=seen.device[0],
        device=seen.device[1],
        scene=seen.scene or None,
        asked_by=seen.asked_by,
        at=seen.at_s,
        question=seen.question,
        answer=seen.answer,
        tokens=seen.tokens,
        point=seen.point,
        delta=seen.delta,
        payload_bytes=seen.payload_bytes,
        picture_bytes=picture_bytes,
        stages=stages,
        first_token_ms=seen.first_token_ms,
        total_ms=round(seen.total_ms, 3),
        distortion=[
            StageLoss(name=name, value=value, limit=limit, usual=_usual(slots, name))
            for name, value, limit in zip(_LOSSES, lost, limits, strict=False)
        ],
        risk=seen.risk,
        risk_limit=seen.risk_limit,
        risk_unknown=seen.risk_unknown,
        fallback=seen.fallback,
        warnings=list(seen.warnings),
        refused=seen.refused,
        why_refused=seen.why,
        has_picture=has_picture,
    )


def _usual(slots: list[Slot], name: str) -> float | None:
    known = [value for slot in slots if not math.isnan(value := getattr(slot, name))]
    return sum(known) / len(known) if known else None


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
