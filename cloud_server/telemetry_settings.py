"""Settings of what the service tells about itself: metrics, the event log, traces."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from protos.process.trace_settings import TraceSettings


class TelemetrySettings(TraceSettings):
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
    event_log: Path | None = Field(
        None,
        description="file that gets a JSON line for each event of a request, enough to compute "
        "the metrics again ('cloud-server recompute'); kept in two halves, FILE and FILE.1",
    )
    event_log_bytes: int = Field(
        256 << 20,
        ge=1 << 16,
        description="size of the event log, both halves together, in bytes; the older half goes "
        "when it is full",
    )
