"""`cloud-server tenants`: manages tenants, the owners of devices and keys."""

from __future__ import annotations

import argparse
from typing import Any

from cloud_server.commands.database import add_group, add_verb, reading, writing
from cloud_server.commands.output import agreed, as_json, facts, moment, table, told


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    verbs = add_group(commands, "tenants", "add, list, show, disable, enable and remove tenants")
    for name, text, run in (
        ("add", "add a tenant", _add),
        ("list", "list the tenants", _list),
        ("show", "show a tenant", _show),
        ("disable", "refuse a tenant's devices and keys until it is enabled again", _shut),
        ("enable", "enable a disabled tenant with its devices and keys", _open),
        ("remove", "remove a tenant for good", _remove),
    ):
        shown = name if name == "list" else f"{name} acme"
        parser = add_verb(verbs, name, text, run, (f"cloud-server tenants {shown}",))
        if name != "list":
            parser.add_argument("name", metavar="NAME", help="the tenant's name")
        if name == "remove":
            parser.add_argument(
                "--force", action="store_true", help="remove its devices and keys too"
            )


def _add(given: argparse.Namespace) -> int:
    from cloud_server.state import tenants

    with writing(given) as tx:
        made = tenants.add(tx, given.name)
    told(given.json, vars(made), f"added tenant '{made.name}'")
    return 0


def _list(given: argparse.Namespace) -> int:
    from cloud_server.state import tenants

    with reading(given) as session:
        found = [
            {**vars(one), **tenants.counts(session, one.name)} for one in tenants.every(session)
        ]
    if given.json:
        as_json(found)
        return 0
    table(
        ("name", "state", "devices", "keys", "added"),
        [
            (one["name"], _state(one), one["devices"], one["keys"], moment(one["created_s"]))
            for one in found
        ],
        "no tenants",
    )
    return 0


def _show(given: argparse.Namespace) -> int:
    from cloud_server.state import tenants

    with reading(given) as session:
        found = {
            **vars(tenants.show(session, given.name)),
            **tenants.counts(session, given.name),
        }
    if given.json:
        as_json(found)
    else:
        facts(
            {
                "name": found["name"],
                "state": _state(found),
                "devices": found["devices"],
                "keys": found["keys"],
                "added": moment(found["created_s"]),
            }
        )
    return 0


def _shut(given: argparse.Namespace) -> int:
    from cloud_server.state import tenants

    with writing(given) as tx:
        now = tenants.disable(tx, given.name)
    told(given.json, vars(now), f"disabled tenant '{now.name}': its devices and keys are shut out")
    return 0


def _open(given: argparse.Namespace) -> int:
    from cloud_server.state import tenants

    with writing(given) as tx:
        now = tenants.enable(tx, given.name)
    told(given.json, vars(now), f"enabled tenant '{now.name}'")
    return 0


def _remove(given: argparse.Namespace) -> int:
    from cloud_server.state import tenants

    agreed(given.yes, f"remove tenant '{given.name}' for good")
    with writing(given) as tx:
        tenants.remove(tx, given.name, everything=given.force)
    told(given.json, {"removed": given.name}, f"removed tenant '{given.name}'")
    return 0


def _state(one: dict[str, Any]) -> str:
    return "disabled" if one["disabled"] else "enabled"
