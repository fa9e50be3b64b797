"""How far an answer can be trusted: the fields in every answer and every scene."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pydantic import BaseModel, Field

from cloud_server.frontend.scenes import HeldScene
from protos.neuralbridge.v1 import bridge_pb2 as pb


class DistortionFigures(BaseModel):
    """What each stage on the device lost; see `DistortionReport` in bridge.proto."""

    quantize: float = Field(description="relative error of the latents after quantization")
    dropped_attention: float = Field(description="share of attention on dropped tokens, 0..1")
    latent_residual: float = Field(description="share of the cache outside the latents, 0..1")
    unfamiliarity: float = Field(description="about 1 for pictures like those of calibration")

    @classmethod
    def of(cls, report: pb.DistortionReport) -> DistortionFigures:
        """From the message."""
        return cls(
            quantize=report.quantize,
            dropped_attention=report.dropped_attention,
            latent_residual=report.latent_residual,
            unfamiliarity=report.unfamiliarity,
        )


class BundleName(BaseModel):
    """The bundle that maps a scene into the large model."""

    id: str
    version: str
    digest: str


class Timings(BaseModel):
    """Where an answer's time went, milliseconds."""

    queue: float
    prefill: float
    generate: float
    first_token: float
    total: float

    @classmethod
    def of(cls, timings: pb.Timings) -> Timings:
        """From the message."""
        return cls(
            queue=timings.queue_ms,
            prefill=timings.prefill_ms,
            generate=timings.generate_ms,
            first_token=timings.ttft_ms,
            total=timings.total_ms,
        )


class Fidelity(BaseModel):
    """Where an answer comes from and how far it can be trusted."""

    scene: str | None = Field(description="id of the scene; null for a picture in the request")
    device: str | None = Field(description="device that sent it; null for a picture in the request")
    age_s: float = Field(description="seconds since the service accepted the scene")
    point: str = Field(description="operating point; `picture` if the answer is about a picture")
    payload_bytes: int | None = Field(
        description="size of the scene's frame, for a delta frame of the change; null for a "
        "picture in the request"
    )
    distortion: DistortionFigures
    risk: float | None = Field(
        description="probability that the answer differs from the picture's; null if it is not "
        "known"
    )
    risk_unknown: str | None = Field(description="why the risk is null; null if it is known")
    fallback: str = Field(description="why the device sent a picture; empty if it did not")
    warnings: list[str] = Field(description="names of reasons not to rely on the answer")
    bundle: BundleName | None = Field(description="null for a picture")
    timings_ms: Timings | None = Field(None, description="of the answer")
    ignored: list[str] = Field(
        default_factory=list, description="fields of the request that had no effect on the answer"
    )


def of_scene(
    scene: HeldScene,
    risk: float | None,
    warnings: Sequence[str] = (),
    timings: Timings | None = None,
    ignored: Sequence[str] = (),
) -> Fidelity:
    """The fidelity of an answer about a held scene.

    Args:
        scene: the scene.
        risk: the answer's risk.
        warnings: warnings beside the scene's own.
        timings: the answer's timings.
        ignored: fields of the request without effect.
    """
    return Fidelity(
        scene=scene.scene_id,
        device=scene.device,
        age_s=age_of(scene),
        point=scene.point,
        payload_bytes=scene.payload_bytes,
        distortion=DistortionFigures.of(scene.distortion),
        risk=risk,
        risk_unknown=scene.risk_unknown or None,
        fallback=scene.fallback,
        warnings=sorted({*scene.warnings, *warnings}),
        bundle=bundle_of(scene),
        timings_ms=timings,
        ignored=list(ignored),
    )


def of_picture(
    warnings: Sequence[str], timings: Timings | None, ignored: Sequence[str]
) -> Fidelity:
    """The fidelity of an answer about a picture in the request."""
    return Fidelity(
        scene=None,
        device=None,
        age_s=0.0,
        point="picture",
        payload_bytes=None,
        distortion=DistortionFigures.of(pb.DistortionReport()),
        risk=0.0,
        risk_unknown=None,
        fallback="",
        warnings=list(warnings),
        bundle=None,
        timings_ms=timings,
        ignored=list(ignored),
    )


def bundle_of(scene: HeldScene) -> BundleName | None:
    """The bundle of a scene; None for a picture."""
    if scene.point == "picture":
        return None
    return BundleName(id=scene.bundle_id, version=scene.bundle_version, digest=scene.bundle)


def age_of(scene: HeldScene) -> float:
    """Time since the service accepted a scene, seconds."""
    return max(0.0, round(time.time() - scene.accepted_at, 3))
