"""Settings of the live page: how long a session lasts, how much of the past it keeps."""

from __future__ import annotations

from pydantic import Field

from protos.process.settings import TypedSettings


class PageSettings(TypedSettings):
    """These settings; a base class of the service's settings."""

    page_session_h: float = Field(
        12.0,
        gt=0.0,
        le=720.0,
        description="how long a person stays signed in to the live page, hours; never longer than "
        "the key is valid",
    )
    page_silent_s: float = Field(
        150.0,
        gt=0.0,
        le=86400.0,
        description="the live page calls a device silent if nothing was heard of it for this time, "
        "seconds",
    )
    page_timeline_h: float = Field(
        6.0, gt=0.0, le=72.0, description="time that the live page's timelines reach back, hours"
    )
    page_timeline_bytes: int = Field(
        32 << 20,
        ge=1 << 16,
        description="memory of all timelines, in bytes; when full, the largest tenant loses its "
        "oldest half of one",
    )
    page_request_bytes: int = Field(
        16 << 20,
        ge=1 << 16,
        description="memory of the requests that the live page can show, in bytes; when full, the "
        "largest tenant loses its oldest ones",
    )
