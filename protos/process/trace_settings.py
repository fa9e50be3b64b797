"""Settings of traces, alike in both halves."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field, field_validator

from protos.process.settings import TypedSettings


class TraceSettings(TypedSettings):
    """These settings; a base class of each half's settings."""

    otlp_endpoint: str = Field(
        "",
        description="URL of an OpenTelemetry collector (OTLP over HTTP), such as "
        "http://localhost:4318; traces are sent there. By default none are made",
    )
    trace_share: float = Field(
        0.01,
        ge=0.0,
        le=1.0,
        description="share of ordinary requests whose trace is sent; those that are slow, refused "
        "or risky are sent in any case",
    )
    trace_slow_s: float = Field(
        2.0, gt=0.0, le=3600.0, description="a request that takes longer is slow, seconds"
    )
    trace_risk: float = Field(
        0.5, gt=0.0, le=1.0, description="an answer of a higher risk is risky"
    )

    @field_validator("otlp_endpoint")
    @classmethod
    def _a_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError(f"{value!r} is no URL of HTTP, such as http://localhost:4318")
        if parts.query or parts.fragment:
            raise ValueError(f"{value!r}: leave out what follows ? or #")
        return value
