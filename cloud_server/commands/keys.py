"""`cloud-server keys`: manages bearer keys of applications and operators."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from cloud_server.commands.database import (
    add_group,
    add_verb,
    changed,
    reading,
    tenant_of,
    writing,
)
from cloud_server.commands.output import as_json, facts, minute, moment, say, table
from protos.errors import ConfigError

if TYPE_CHECKING:
    from cloud_server.state.directory import Key

_DAY_S = 86400.0
_DEFAULT_SCOPES = {"application": ("ask", "read"), "operator": ("read", "manage")}


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    verbs = add_group(
        commands,
        "keys",
        "add, list, show, disable, enable and remove bearer keys",
    )
    for name, text, run, example in (
        ("add", "make a key and print it (only now)", _add, "add dashboard --scope read"),
        ("list", "list the keys of every tenant, or of one", _list, "list"),
        ("show", "show what a key may do", _show, "show dashboard"),
        ("disable", "disable a key until it is enabled again", _disable, "disable dashboard"),
        ("enable", "enable a disabled key", _enable, "enable dashboard"),
        ("remove", "remove a key for good", _remove, "remove dashboard"),
    ):
        examples: tuple[str, ...] = (f"cloud-server keys {example}",)
        if name == "add":
            examples += (
                "cloud-server keys add porter --device gate-3 --device gate-4 --days 90",
                "cloud-server keys add anna --kind operator --tenant service",
            )
        parser = add_verb(verbs, name, text, run, examples, tenant=True)
        if name != "list":
            parser.add_argument("name", metavar="NAME", help="the key's name")
        if name == "add":
            _add_flags(parser)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kind",
        choices=("application", "operator"),
        default="application",
        help="application for a program, operator for a person who manages the tenant; operators "
        "of the tenant 'service' see every tenant (default: application)",
    )
    parser.add_argument(
        "--scope",
        action="append",
        metavar="ask|read|manage",
        help="what it may do, repeatable (default: ask, read; for an operator: read, manage)",
    )
    parser.add_argument(
        "--device",
        dest="only_device",
        action="append",
        metavar="NAME",
        help="limit it to this device, repeatable (default: every device, also later ones)",
    )
    parser.add_argument("--days", metavar="N", help="days until it expires (default: never)")


def _add(given: argparse.Namespace) -> int:
    from cloud_server.state import keys

    scopes = given.scope or _DEFAULT_SCOPES[given.kind]
    not_after_s = None if given.days is None else time.time() + _days(given.days) * _DAY_S
    with writing(given) as tx:
        key, token = keys.add(
            tx,
            tenant_of(given, tx.session),
            given.name,
            kind=given.kind,
            scopes=scopes,
            devices=given.only_device,
            not_after_s=not_after_s,
        )
    if given.json:
        as_json({**vars(key), "key": token})
    else:
        say(
            f"added key '{key.name}' of tenant '{key.tenant}': {_may(key)}\n\n"
            f"Shown only now; the service keeps only its hash:\n\n  {token}"
        )
    return 0


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = 0.0
    if not 0 < days <= 36500:
        raise ConfigError(f"--days {text[:40]!r}: expected a number of days, up to 36500")
    return days


def _list(given: argparse.Namespace) -> int:
    from cloud_server.state import keys

    with reading(given) as session:
        found = keys.every(session, given.tenant)
    if given.json:
        as_json([vars(one) for one in found])
        return 0
    table(
        ("tenant", "name", "kind", "state", "ends"),
        [
            (one.tenant, one.name, one.kind, _state(one), minute(one.not_after_s), _may(one))
            for one in found
        ],
        "no keys: cloud-server keys add NAME",
        below=True,
    )
    return 0


def _show(given: argparse.Namespace) -> int:
    from cloud_server.state import keys

    with reading(given) as session:
        key = keys.show(session, tenant_of(given, session), given.name)
    if given.json:
        as_json(vars(key))
        return 0
    facts(
        {
            "tenant": key.tenant,
            "name": key.name,
            "id": key.id,
            "kind": key.kind,
            "state": _state(key),
            "may": _may(key),
            "added": moment(key.created_s),
            "ends": moment(key.not_after_s),
        }
    )
    return 0


def _disable(given: argparse.Namespace) -> int:
    from cloud_server.state import keys

    return changed(given, "key", keys.disable)


def _enable(given: argparse.Namespace) -> int:
    from cloud_server.state import keys

    return changed(given, "key", keys.enable)


def _remove(given: argparse.Namespace) -> int:
    from cloud_server.state import keys

    return changed(given, "key", keys.remove)


def _state(key: Key) -> str:
    if key.disabled:
        return "disabled"
    return "enabled" if key.not_after_s > time.time() else "ended"


def _may(key: Key) -> str:
    devices = "every device" if key.devices is None else ", ".join(sorted(key.devices))
    return f"{', '.join(sorted(key.scopes))} ({devices or 'no device'})"
