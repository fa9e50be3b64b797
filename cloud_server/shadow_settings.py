"""Settings of shadowing: what is measured of pictures that devices send beside their frames."""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from protos.process.settings import TypedSettings


class ShadowSettings(TypedSettings):
    """These settings; a base class of the service's settings."""

    shadow_memory_bytes: int = Field(
        64 << 20,
        ge=0,
        le=1 << 40,
        description="memory of shadowed pictures that arrive or wait to be measured; 0 takes none",
    )
    shadow_wait_s: float = Field(
        120.0,
        gt=0.0,
        le=3600.0,
        description="how long a shadowed picture waits for an engine that has time for it, seconds",
    )
    shadow_questions: int = Field(
        16,
        ge=1,
        le=32,
        description="questions that are answered from a shadowed frame and its picture: those that "
        "were asked about the frame, then others of its session, then the bundle's own",
    )
    shadow_margin: float = Field(
        0.05,
        gt=0.0,
        lt=1.0,
        description="margin above the bundle's calibrated share of answers that differ from the "
        "picture's; beyond it the map no longer fits what a camera sees",
    )
    shadow_false_alarms: float = Field(
        0.01,
        gt=0.0,
        le=1.0,
        description="most false alarms of drift in a year of one device",
    )
    shadow_pictures_bytes: int = Field(
        64 << 20,
        ge=0,
        le=1 << 40,
        description="memory of shadowed pictures kept for viewers; the oldest go first",
    )
    shadow_pictures_of: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="tenant whose viewers may see shadowed pictures, repeatable (environment: a "
        "JSON list, or names separated by commas); default: nobody may, and none is kept",
    )

    @field_validator("shadow_pictures_of", mode="before")
    @classmethod
    def _split_tenants(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            return json.loads(value)
        return [part.strip() for part in value.split(",") if part.strip()]
