"""Settings of shadowing: whether, and how much of, what the cameras see may leave this device."""

from __future__ import annotations

from pydantic import Field

from protos.process.settings import TypedSettings


class ShadowSettings(TypedSettings):
    """These settings; a base class of the agent's settings. The service can set none of them."""

    allow_shadow: bool = Field(
        False,
        description="let the pictures of a share of frames go to the service, which measures with "
        "them how far its answers can be trusted; masks are painted over first",
    )
    shadow_share: float = Field(
        0.01, gt=0.0, le=1.0, description="share of frames whose picture goes too, drawn by chance"
    )
    shadow_day_bytes: int = Field(
        16 << 20,
        ge=1024,
        le=1 << 40,
        description="most bytes of such pictures in any 24 hours, spread over them",
    )
    shadow_memory_mib: int = Field(
        16,
        ge=1,
        le=1 << 20,
        description="memory of such pictures that wait for their turn, in mebibytes",
    )
