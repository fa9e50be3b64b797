"""`cloud-server quotas`: shows and sets quotas of tenants and devices."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from cloud_server.commands.database import (
    add_group,
    add_verb,
    reading,
    settings_of,
    tenant_of,
    writing,
)
from cloud_server.commands.output import as_json, say, table
from cloud_server.state.quota import QUOTA_FIELDS
from protos.errors import ConfigError

_HELP = {
    "requests_per_s": "requests a second, on average",
    "request_burst": "requests at once; 0 means as many as in two seconds",
    "bytes_per_s": "message bytes a second, on average",
    "byte_burst": "bytes at once; 0 means as many as in two seconds",
    "concurrent": "requests under way",
    "scenes": "scenes held",
    "weight": "share of a busy engine; the others have weight 1",
}


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    verbs = add_group(
        commands, "quotas", "show and set quotas; a running service follows within seconds"
    )
    shown = add_verb(
        verbs,
        "show",
        "show the quotas of a tenant, of each of its devices, and of devices that differ",
        _show,
        ("cloud-server quotas show --tenant acme", "cloud-server quotas show --device gate-3"),
        tenant=True,
    )
    shown.add_argument("--device", dest="one_device", metavar="NAME", help="only this device")
    parser = add_verb(
        verbs,
        "set",
        "set bounds for a tenant's devices together, for each device, or for one; 0 means no bound",
        _set,
        (
            "cloud-server quotas set --tenant acme --requests-per-s 200 --scenes 5000",
            "cloud-server quotas set --each-device --requests-per-s 5",
            "cloud-server quotas set --device gate-3 --weight 2 --unset requests-per-s",
        ),
        tenant=True,
    )
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument("--device", dest="one_device", metavar="NAME", help="for one device")
    whose.add_argument(
        "--each-device", action="store_true", help="for each device without a quota of its own"
    )
    for name in QUOTA_FIELDS:
        parser.add_argument(f"--{_flag(name)}", dest=f"set_{name}", metavar="N", help=_HELP[name])
    parser.add_argument(
        "--unset",
        action="append",
        default=[],
        metavar="NAME",
        help="back to the default, repeatable: " + ", ".join(map(_flag, QUOTA_FIELDS)),
    )


def _show(given: argparse.Namespace) -> int:
    from cloud_server.state import devices, quotas

    with reading(given) as session:
        tenant = tenant_of(given, session)
        own = {one.device: one.values for one in quotas.every(session, tenant)}
        if given.one_device is not None:
            devices.find(session, tenant, given.one_device)
    _print(given, tenant, own, None if given.one_device is None else [given.one_device])
    return 0


def _print(
    given: argparse.Namespace,
    tenant: str,
    own: Mapping[str | None, Mapping[str, float]],
    whose: Sequence[str | None] | None = None,
) -> None:
    """Print the quotas in force: a device's own bounds, else each device's, else the settings'.

    Args:
        given: the command line.
        tenant: the tenant's name.
        own: bounds that were set, by `SetQuota.device`.
        whose: which to print; by default the tenant, each device, and those that differ.
    """
    settings = settings_of(given)
    each = settings.device_quota.changed(own.get("*", {}))
    if whose is None:
        whose = [None, "*", *(device for device in own if device not in (None, "*"))]
    counts = {
        device: settings.tenant_quota.changed(own.get(None, {}))
        if device is None
        else each.changed(own.get(device, {}))
        for device in whose
    }
    if given.json:
        as_json(
            [
                {
                    "tenant": tenant,
                    "device": device,
                    "set": own.get(device, {}),
                    "counts": vars(quota),
                }
                for device, quota in counts.items()
            ]
        )
        return
    rows = [
        (
            _whose(device),
            *(
                f"{getattr(quota, name):.12g}{'*' if name in own.get(device, {}) else ''}"
                for name in QUOTA_FIELDS
            ),
        )
        for device, quota in counts.items()
    ]
    table(("of", *map(_head, QUOTA_FIELDS)), rows, "")
    say("* was set; the others are defaults. 0 is no bound.")


def _set(given: argparse.Namespace) -> int:
    from cloud_server.state import quotas

    values = {
        name: _number(_flag(name), text)
        for name in QUOTA_FIELDS
        if (text := getattr(given, f"set_{name}")) is not None
    }
    unset = [name.replace("-", "_") for name in given.unset]
    if not values and not unset:
        raise ConfigError("nothing to set: give a bound (see cloud-server quotas set --help)")
    device = quotas.EACH_DEVICE if given.each_device else given.one_device
    with writing(given) as tx:
        tenant = tenant_of(given, tx.session)
        quotas.change(tx, tenant, device, values, unset)
        own = {one.device: one.values for one in quotas.every(tx.session, tenant)}
    _print(given, tenant, own, [device])
    return 0


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _head(name: str) -> str:
    """A field's name in at most two lines."""
    return {"concurrent": "con-\ncurrent"}.get(name, _flag(name).replace("-", "\n", 1))


def _whose(device: str | None) -> str:
    return {None: "the tenant", "*": "each device"}.get(device, device or "")


def _number(flag: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"--{flag} {text[:40]!r}: expected a number") from None
    return int(value) if value.is_integer() else value
