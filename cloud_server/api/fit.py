"""How well a bundle's map fits what a device sees: the fields in lists of devices."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel, Field

from cloud_server.frontend.shadowing.ledger import ShadowLedger
from cloud_server.frontend.shadowing.record import Figure, Fit


class MeanWithInterval(BaseModel):
    """A mean with the 95 % interval that holds at all times at once."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, figure: Figure | None) -> MeanWithInterval | None:
        """From a figure; None before the first."""
        if figure is None:
            return None
        return cls(mean=figure.mean, low=figure.low, high=figure.high)


class DeviceFit(BaseModel):
    """What shadowed frames of a device with one bundle have shown."""

    bundle: str = Field(description="the bundle's id")
    digest: str
    measured: int = Field(description="shadowed frames measured")
    last_s: float = Field(description="when the last one was, seconds since 1970")
    differ: MeanWithInterval | None = Field(
        description="share of answers that differ from those from the picture"
    )
    limit: float | None = Field(
        description="largest share that is no drift; null if the bundle has no calibrated share, "
        "so that the share is not tested"
    )
    usual_frames: int = Field(
        description="frames that made what is usual for this camera, so far; a change is tested "
        "once there are 1000"
    )
    drifting_since_s: float | None = Field(
        description="since when the map no longer fits what the camera sees; null if it does, as "
        "far as is known"
    )
    cause: str = Field(description="why it no longer fits; else empty")
    alarms: int = Field(description="alarms of drift so far")
    error: MeanWithInterval | None = Field(
        description="relative error of the projected cache, mean over the layers"
    )
    layer_errors: list[float] = Field(description="the same by layer")
    kl_nats: MeanWithInterval | None = Field(
        description="divergence of an answer's first token from the picture's"
    )

    @classmethod
    def of(cls, fit: Fit) -> DeviceFit:
        """From the ledger's."""
        return cls(
            bundle=fit.bundle,
            digest=fit.digest,
            measured=fit.measured,
            last_s=fit.last_s,
            differ=MeanWithInterval.of(fit.differ),
            limit=fit.limit,
            usual_frames=fit.usual_frames,
            drifting_since_s=fit.drifting_since_s,
            cause=fit.cause,
            alarms=fit.alarms,
            error=MeanWithInterval.of(fit.error),
            layer_errors=list(fit.layer_errors),
            kl_nats=MeanWithInterval.of(fit.kl_nats),
        )


async def fits_of(ledger: ShadowLedger, tenant: str) -> dict[str, list[DeviceFit]]:
    """What is known of a tenant's devices, by device; the newest bundle first.

    Raises:
        StateError: the database cannot be used.
    """
    found = await asyncio.to_thread(ledger.of, tenant)
    return {device: [DeviceFit.of(fit) for fit in fits] for device, fits in found.items()}
