"""`cloud-server audit`: who changed what, and when."""

from __future__ import annotations

import argparse
import json
import re
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from cloud_server.commands.database import add_verb, reading
from cloud_server.commands.output import as_json, moment, table
from protos.errors import ConfigError

if TYPE_CHECKING:
    from cloud_server.state.audit import AuditEntry

_DIGEST = re.compile(r"^([0-9a-f]{12})[0-9a-f]{52}$")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_TIMES = ("expires_s", "not_after_s", "made_s")
_MOST = 100_000


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    parser = add_verb(
        commands,
        "audit",
        "read the audit log: who changed what, and when",
        _run,
        (
            "cloud-server audit --since 7d",
            "cloud-server audit --tenant acme --action device. --json",
        ),
    )
    parser.add_argument("--tenant", metavar="NAME", help="only lines about this tenant")
    parser.add_argument("--actor", metavar="WHO", help="only lines of this actor, such as cli:anna")
    parser.add_argument(
        "--action",
        metavar="WHAT",
        help="only this action, such as device.disable; or a prefix, such as device.",
    )
    parser.add_argument(
        "--since",
        metavar="WHEN",
        help="only lines since then: 30m, 12h, 7d or 2026-11-30T12:00 (UTC)",
    )
    parser.add_argument("--before", metavar="ID", help="only lines older than the one with this id")
    parser.add_argument("--limit", metavar="N", default="50", help="number of lines (default: 50)")


def _run(given: argparse.Namespace) -> int:
    from cloud_server.state import audit

    limit = _whole("--limit", given.limit)
    if not 1 <= limit <= _MOST:
        raise ConfigError(f"--limit {limit}: expected 1 to {_MOST}")
    with reading(given) as session:
        found = audit.entries(
            session,
            tenant=given.tenant,
            actor=given.actor,
            action=given.action,
            since_s=None if given.since is None else since(given.since, time.time()),
            before=None if given.before is None else _whole("--before", given.before),
            limit=limit,
        )
    if given.json:
        as_json([vars(one) for one in found])
        return 0
    table(
        ("id", "when (UTC)", "who", "what", "tenant", "which"),
        [
            (
                one.id,
                moment(one.at_s),
                one.actor,
                one.action,
                one.tenant,
                _DIGEST.sub(r"\1…", one.subject),
                _text(one),
            )
            for one in found
        ],
        "nothing was changed" if given.since is None else "nothing was changed since then",
        below=True,
    )
    return 0


def since(text: str, now_s: float) -> float:
    """Parse a time: a span before now, or a date.

    Args:
        text: `30m`, `12h`, `7d`, `2026-11-30` or `2026-11-30T12:00`, in UTC.
        now_s: seconds since 1970.

    Raises:
        ConfigError: it is neither.
    """
    span = re.fullmatch(r"(\d{1,9})([smhdw])", text)
    if span:
        return now_s - int(span[1]) * _UNITS[span[2]]
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"--since {text[:40]!r}: expected a span (30m, 12h, 7d) or a date (2026-11-30T12:00)"
        ) from None
    return (read if read.tzinfo else read.replace(tzinfo=timezone.utc)).timestamp()


def _whole(flag: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,15}", text, re.ASCII):
        raise ConfigError(f"{flag} {text[:40]!r}: expected a whole number")
    return int(text)


def _text(one: AuditEntry) -> str:
    """The details that are set; times are shown as dates."""
    said = []
    for name, value in one.detail.items():
        if name in _TIMES and isinstance(value, int | float):
            said.append(f"{name.removesuffix('_s')}={moment(value)}")
        elif value not in (None, [], ""):
            said.append(f"{name}={json.dumps(value)}")
    return " ".join(said)
