"""`cloud-server devices`: manages devices and their one-time codes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cloud_server.commands import device_orders
from cloud_server.commands.database import (
    actor,
    add_group,
    add_verb,
    changed,
    opened,
    reading,
    settings_of,
    tenant_of,
    writing,
)
from cloud_server.commands.output import as_json, facts, minute, moment, say, table, told

if TYPE_CHECKING:
    from cloud_server.frontend.shadowing.record import Fit
    from cloud_server.state.device_reports import DeviceStanding
    from cloud_server.state.device_settings import WantedSettings
    from cloud_server.state.directory import Certificate, Device


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    verbs = add_group(commands, "devices", "add, list, show, look after and remove devices")
    for name, text, run in (
        ("add", "add a device and print its one-time code for enrolment", _add),
        ("code", "print a new one-time code; earlier codes become invalid", _code),
        ("list", "list the devices of every tenant, or of one", _list),
        ("show", "show a device and its certificates", _show),
        ("disable", "disable a device at once and revoke its certificates", _disable),
        ("revoke", "revoke a device's certificates; it can enrol again with a new code", _revoke),
        ("refit", "forget what its shadowed pictures have shown: its camera was moved", _refit),
        ("enable", "allow a disabled device to enrol again, with a new code", _enable),
        ("remove", "remove a device for good and revoke its certificates", _remove),
    ):
        shown = name if name == "list" else f"{name} gate-3"
        examples = (f"cloud-server devices {shown}",)
        parser = add_verb(verbs, name, text, run, examples, tenant=True)
        if name != "list":
            parser.add_argument("name", metavar="NAME", help="the device's name")
        if name == "add":
            parser.add_argument("--no-code", action="store_true", help="print no one-time code")
        if name == "revoke":
            parser.add_argument(
                "--serial",
                metavar="DIGITS",
                help="only the certificate whose serial number begins so (devices show NAME)",
            )
    device_orders.add(verbs)


def _add(given: argparse.Namespace) -> int:
    from cloud_server.state import codes, devices

    root = b"" if given.no_code else _root_der(given)
    with opened(given) as store, store.write(actor()) as tx:
        device = devices.add(tx, tenant_of(given, tx.session), given.name)
        code = None if given.no_code else codes.fresh(tx, device, root)
    said = f"added device '{device.name}' of tenant '{device.tenant}'"
    if code is None:
        told(given.json, vars(device), said)
    else:
        _show_code(given, device, *code, said)
    return 0


def _code(given: argparse.Namespace) -> int:
    from cloud_server.state import codes, devices

    root = _root_der(given)
    with writing(given) as tx:
        device = devices.show(tx.session, tenant_of(given, tx.session), given.name)
        text, expires_s = codes.fresh(tx, device, root)
    _show_code(
        given, device, text, expires_s, f"device '{device.name}' of tenant '{device.tenant}'"
    )
    return 0


def _root_der(given: argparse.Namespace) -> bytes:
    """The root certificate; a code carries its fingerprint.

    Raises:
        ConfigError: there is no directory with an authority.
        CertificateError: the authority cannot be read.
    """
    from cloud_server.identity.authority import Authority
    from cloud_server.identity.tls import AUTHORITY

    return Authority.open(settings_of(given).directory_path / AUTHORITY).root_der


def _show_code(
    given: argparse.Namespace, device: Device, code: str, expires_s: float, said: str
) -> None:
    if given.json:
        as_json({**vars(device), "code": code, "expires_s": expires_s})
        return
    say(
        f"{said}\n\nOne-time code, shown only now, for one use until {moment(expires_s)} UTC:\n\n"
        f"  {code}\n\nOn the device:\n\n"
        f"  edge-agent enrol --server HOST:{settings_of(given).open_port or 'PORT'} --code {code}"
    )


def _list(given: argparse.Namespace) -> int:
    from cloud_server.state import certificates, device_reports, devices

    with reading(given) as session:
        found = devices.every(session, given.tenant)
        newest = certificates.newest(session)
        stand = device_reports.standings(session)
    shown = [(one, newest.get(one.id)) for one in found]
    if given.json:
        as_json(
            [
                {
                    **vars(one),
                    **_standing(one, last),
                    "attended_s": stand.get(one.id, (None, None))[0],
                    "left_s": stand.get(one.id, (None, None))[1],
                }
                for one, last in shown
            ]
        )
        return 0
    table(
        ("tenant", "name", "state", "takes orders", "certificate until", "last renewal"),
        [
            (
                one.tenant,
                one.name,
                _standing(one, last)["state"],
                _takes_orders(stand.get(one.id)),
                minute(None if last is None else last.not_after_s),
                minute(None if last is None else last.issued_s),
            )
            for one, last in shown
        ],
        "no devices: cloud-server devices add NAME",
    )
    return 0


def _takes_orders(stands: tuple[float, float | None] | None) -> str:
    if stands is None:
        return "never did"
    attended_s, left_s = stands
    return f"since {minute(attended_s)}" if left_s is None else f"until {minute(left_s)}"


def _show(given: argparse.Namespace) -> int:
    from cloud_server.frontend.shadowing.ledger import fits
    from cloud_server.state import certificates, device_reports, device_settings, devices, shadows

    with reading(given) as session:
        tenant = tenant_of(given, session)
        device = devices.show(session, tenant, given.name)
        held = certificates.of(session, tenant, given.name)
        stands = device_reports.standing(session, tenant, given.name)
        wanted = device_settings.show(session, tenant, given.name)
        shadowed = fits(shadows.of(session, tenant, given.name)).get(given.name, [])
    last = held[0] if held else None
    if given.json:
        as_json(
            {
                **vars(device),
                **_standing(device, last),
                "certificates": [vars(one) for one in held],
                "standing": None if stands is None else vars(stands),
                "settings": vars(wanted),
                "fits": [asdict(fit) for fit in shadowed],
            }
        )
        return 0
    facts(
        {
            "tenant": device.tenant,
            "name": device.name,
            "state": _standing(device, last)["state"],
            "added": moment(device.created_s),
            "last renewal": moment(last.issued_s if last else None),
        }
    )
    if stands is not None:
        say("")
        _standing_of(stands, wanted)
    if shadowed:
        say("")
        _fits(shadowed)
    say("")
    _certificates(held)
    return 0


def _fits(shadowed: Sequence[Fit]) -> None:
    """What shadowed frames have shown, one row a bundle."""
    from cloud_server.frontend.shadowing.usual import FRAMES

    def share(fit: Fit) -> str:
        found = fit.differ
        return f"{found.mean:.1%} ({found.low:.1%} to {found.high:.1%})" if found else ""

    def state(fit: Fit) -> str:
        if fit.drifting_since_s is not None:
            return f"no longer fits since {moment(fit.drifting_since_s)}"
        if fit.usual_frames < FRAMES:
            return f"fits so far ({fit.usual_frames} of {FRAMES} frames of what is usual)"
        return "fits"

    table(
        ("bundle", "pictures measured", "the last", "answers differ (95 %)", "limit", "the map"),
        [
            (
                fit.bundle,
                fit.measured,
                minute(fit.last_s),
                share(fit),
                f"{fit.limit:.1%}" if fit.limit else "",
                state(fit),
                fit.cause,
            )
            for fit in shadowed
        ],
        "",
        below=True,
    )


def _standing_of(stands: DeviceStanding, wanted: WantedSettings) -> None:
    """What a device said of itself when it last began to take orders."""
    runs = [" ".join(filter(None, (one["kind"], one["name"], one["version"]))) for one in
            stands.running]  # fmt: skip
    settings = f"revision {stands.revision} of {wanted.revision}" if wanted.revision else None
    facts(
        {
            "takes orders": f"since {moment(stands.attended_s)}"
            if stands.left_s is None
            else f"until {moment(stands.left_s)}",
            "agent": stands.agent_version or None,
            "runs": ", ".join(runs) or None,
            "settings from here": settings,
        }
    )
    if stands.refused:
        say("")
        table(
            ("setting not taken", "code"),
            [(one["name"], one["code"], one["message"]) for one in stands.refused],
            "",
            below=True,
        )


def _certificates(held: Sequence[Certificate]) -> None:
    now_s = time.time()

    def state(one: Certificate) -> str:
        if one.revoked_s is not None:
            return "revoked"
        return "valid" if one.not_after_s > now_s else "ended"

    def until(one: Certificate) -> float:
        return one.not_after_s if one.revoked_s is None else min(one.revoked_s, one.not_after_s)

    table(
        ("certificate", "given", "until", "state"),
        [(one.serial, minute(one.issued_s), minute(until(one)), state(one)) for one in held],
        "no certificate yet",
    )


def _standing(device: Device, last: Certificate | None) -> dict[str, object]:
    """A device's state in a word, and when its last certificate was issued."""
    if device.disabled:
        state = "disabled"
    elif last is None:
        state = "not enrolled"
    elif last.revoked_s is not None:
        state = "revoked"
    else:
        state = "enrolled" if last.not_after_s > time.time() else "certificate ended"
    return {"state": state, "last_renewal_s": None if last is None else last.issued_s}


def _disable(given: argparse.Namespace) -> int:
    from cloud_server.state import devices

    return changed(given, "device", devices.disable, "; its certificates are revoked")


def _revoke(given: argparse.Namespace) -> int:
    from cloud_server.state import devices

    with writing(given) as tx:
        tenant = tenant_of(given, tx.session)
        revoked = devices.revoke(tx, tenant, given.name, given.serial)
    said = f"device '{given.name}' of tenant '{tenant}' has no valid certificate"
    if revoked:
        said = (
            f"revoked {len(revoked)} of the certificates of device '{given.name}' of tenant "
            f"'{tenant}': {', '.join(one.serial for one in revoked)}"
        )
    told(given.json, [vars(one) for one in revoked], said)
    return 0


def _enable(given: argparse.Namespace) -> int:
    from cloud_server.state import devices

    needs = f"; it needs a new code: cloud-server devices code {given.name}"
    return changed(given, "device", devices.enable, needs)


def _refit(given: argparse.Namespace) -> int:
    from cloud_server.state import shadows

    with writing(given) as tx:
        device = shadows.forget(tx, tenant_of(given, tx.session), given.name)
    said = f"device '{device.name}' of tenant '{device.tenant}': what is usual is measured anew"
    told(given.json, vars(device), said)
    return 0


def _remove(given: argparse.Namespace) -> int:
    from cloud_server.state import devices

    return changed(given, "device", devices.remove)
