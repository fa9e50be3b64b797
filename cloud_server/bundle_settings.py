"""Settings of bundles: which are served, how a new version is judged and comes into use."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from protos.process.settings import TypedSettings

CHANGEABLE = (
    "bundles",
    "trusted_keys",
    "canary_agreement",
    "bundle_move_s",
    "bundle_scenes_s",
    "bundle_margin",
)
"""Settings that may change while the service runs."""


class BundleSettings(TypedSettings):
    """These settings; a base class of the service's settings."""

    bundles: Annotated[tuple[Path, ...], NoDecode] = Field(
        (),
        description="bundle directory, repeatable: one per edge model, served side by side "
        "(environment: a JSON list, or directories separated by ':')",
    )
    trusted_keys: Path | None = Field(
        None,
        description="TOML file of trusted keys; with it, only bundles that one of them signed are "
        "served",
    )
    canary_s: float = Field(
        30.0,
        ge=0.0,
        le=3600.0,
        description="after this time without an answer the engine is asked a question of our own, "
        "seconds; without an answer to that the service is not ready; 0 asks none",
    )
    canary_timeout_s: float = Field(
        60.0,
        gt=0.0,
        le=3600.0,
        description="longest wait for an answer to our own question, seconds",
    )
    canary_question: str = Field(
        "What is this?", min_length=1, max_length=200, description="our own question"
    )
    canary_agreement: float = Field(
        0.8,
        ge=0.0,
        lt=1.0,
        description="share of a new bundle's canary set that must be answered as recorded (lower "
        "end of the 95 % interval)",
    )
    bundle_move_s: float = Field(
        60.0,
        ge=0.0,
        le=86400.0,
        description="time over which sessions are moved to another version of their bundle, "
        "seconds",
    )
    bundle_scenes_s: float = Field(
        3600.0,
        ge=0.0,
        le=1e7,
        description="longest time that held scenes keep a version loaded which no device gets, "
        "seconds",
    )
    bundle_margin: float = Field(
        0.05,
        ge=0.0,
        lt=1.0,
        description="margin by which a new version may be worse than the one before, in the share "
        "of frames refused, sent as pictures or answered unlike the picture, or in the risk",
    )

    @field_validator("bundles", mode="before")
    @classmethod
    def _split_bundles(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            return json.loads(value)
        return [part for part in value.split(os.pathsep) if part]
