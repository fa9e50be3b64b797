"""Settings of what the service tells about itself: its metrics."""

from __future__ import annotations

from pydantic import Field

from protos.process.settings import TypedSettings


class TelemetrySettings(TypedSettings):
    """These settings; a base class of the service's settings."""

    device_series: int = Field(
        0,
        ge=0,
        le=10_000,
        description="devices that /metrics shows one by one; those beyond count together as "
        "'other'. 0 shows none",
    )
    genai_metrics: bool = Field(
        False,
        description="show answers' times under OpenTelemetry's names for model servers too "
        "(gen_ai_server_*, semantic conventions 1.41.0)",
    )
