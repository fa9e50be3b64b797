"""Settings of updates: where they are installed, who may sign them, what the service may do."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, field_validator

from protos.process.settings import TypedSettings

_HOURS = re.compile(r"([01]?\d|2[0-3])-([01]?\d|2[0-3])")


class UpdateSettings(TypedSettings):
    """These settings; a base class of the agent's settings."""

    slots: Path = Field(
        Path("/opt/neural-bridge"),
        description="directory of the two slots that the agent is installed and updated in",
    )
    update_keys: Path = Field(
        Path("/etc/neural-bridge/update-keys.toml"),
        description="TOML file of the keys that may sign updates ([keys], as for bundles)",
    )
    update_from_service: bool = Field(
        False,
        description="fetch and install the updates that the service offers this device, if a key "
        "in update_keys signed them (`run`)",
    )
    update_older: bool = Field(
        False, description="let the service go back to an older update, or install one again"
    )
    update_hours: str = Field(
        "",
        description="hours of this device's local time in which an update is fetched and "
        "installed, such as 22-5; default: any time. Outside them, and while the clock is not set, "
        "it waits",
    )
    update_bytes_per_s: int = Field(
        64 * 1024,
        ge=0,
        le=1 << 40,
        description="most bytes a second of an update that is fetched; it never takes more than "
        "half of the time of the link, and lets frames go first; 0: no limit besides",
    )
    update_check_s: float = Field(
        3600.0,
        ge=10.0,
        le=86400.0 * 30,
        description="seconds between questions to the service whether there is an update",
    )

    @field_validator("update_hours")
    @classmethod
    def _two_hours(cls, value: str) -> str:
        found = _HOURS.fullmatch(value.strip())
        if value.strip() and (found is None or int(found[1]) == int(found[2])):
            raise ValueError("two hours from 0 to 23, such as 22-5; or empty")
        return value.strip()
