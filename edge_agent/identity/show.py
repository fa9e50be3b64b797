"""Shows an identity to people and scripts, without its private key."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from edge_agent.identity.identity import Identity

_DAY_S = 86400.0


def figures(identity: Identity, path: Path, now_s: float | None = None) -> dict[str, Any]:
    """An identity's fields, without its private key.

    Args:
        identity: the identity.
        path: its file.
        now_s: this device's clock, by default the system's. If it is before the certificate's
        issue, it is wrong, and the expiry cannot be checked.
    """
    now = time.time() if now_s is None else now_s
    wrong = now < identity.issued_s
    return {
        "tenant": identity.tenant,
        "device": identity.device,
        "enrolled_at": identity.service,
        "frames_go_to": identity.server or None,
        "serial": identity.serial,
        "made": date(identity.issued_s),
        "renewed_from": date(identity.renew_at_s),
        "ends": date(identity.not_after_s),
        "days_left": None if wrong else round((identity.not_after_s - now) / _DAY_S, 1),
        "ended": not wrong and now >= identity.not_after_s,
        "clock": f"wrong: it says {date(now)}" if wrong else "plausible",
        "file": str(path),
    }


def table(shown: dict[str, Any]) -> str:
    """Figures as lines of a name and a value."""
    width = max(map(len, shown))
    return "\n".join(f"{name.replace('_', ' '):<{width}}  {_said(v)}" for name, v in shown.items())


def until(identity: Identity) -> str:
    """When the certificate expires and when it is renewed, in words."""
    return (
        f"the certificate is valid until {date(identity.not_after_s)}, the agent renews it from "
        f"{date(identity.renew_at_s)} on"
    )


def date(at_s: float) -> str:
    """A time as text, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at_s))


def _said(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
