"""What a service may set on a device, if the device allows it. Everything else is the device's own.

A setting that is not in `SETTABLE` can never be set from afar: what cameras may show (masks,
pictures, crops), whom the device trusts (servers, roots, identity, update keys), where things lie.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from protos.errors import ConfigError

LONGEST_SETTINGS = 16 << 10
"""Bytes of all settings together, as JSON."""
LONGEST_CAMERA = 63
"""Characters of the name of a camera in an order."""
SETTABLE = (
    "questions",
    "hold_every_s",
    "priority",
    "trigger",
    "highest_point",
    "latency_objective_ms",
    "distortion_limit",
    "joules_per_answer",
    "celsius_limit",
    "token_budget",
    "token_threshold",
    "delta",
    "max_new_tokens",
    "in_flight",
    "linger_ms",
    "ack_wait_ms",
    "keepalive_s",
    "backoff_s",
    "backoff_max_s",
    "answer_timeout_s",
    "connect_timeout_s",
    "server_back_s",
    "spool_age_s",
    "when_full",
    "cascade_limit",
    "log_level",
)
"""Names of settings of the agent."""


def checked_settings(values: Mapping[str, Any]) -> None:
    """Check settings before they are given to a device.

    Raises:
        ConfigError: a name can never be set from afar, or a value is no JSON scalar or list of
            text.
    """
    for name, value in values.items():
        if name not in SETTABLE:
            near = difflib.get_close_matches(name[:80], SETTABLE, n=1)
            hint = f"; did you mean {near[0]}?" if near else f": one of {', '.join(SETTABLE)}"
            raise ConfigError(f"{name[:80]!r} is no setting that a service can change{hint}")
        many = value if isinstance(value, list) else [value]
        scalar = all(isinstance(one, str | bool | int | float) for one in many)
        finite = all(not isinstance(one, float) or math.isfinite(one) for one in many)
        if not scalar or not finite:
            raise ConfigError(f"{name}: a text, a number, true or false, or a list of them")
