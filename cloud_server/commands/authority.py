"""`cloud-server authority`: manages the service's own authority."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud_server.commands.database import actor, add_group, add_verb, opened, settings_of
from cloud_server.commands.output import agreed, as_json, moment, say, table, told

if TYPE_CHECKING:
    from cryptography import x509

    from cloud_server.identity.authority import Authority


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    verbs = add_group(
        commands, "authority", "manage the service's own authority and its certificates"
    )
    key = " --root-key /media/usb/root-key.pem"
    for name, text, run, example in (
        ("show", "show each certificate and when it expires", _show, ""),
        (
            "server-certificate",
            "make a new server certificate; a running service uses it within seconds (a service "
            "renews its certificate by itself)",
            _server_certificate,
            " --name bridge.example",
        ),
        (
            "renew-intermediate",
            "replace the intermediate; certificates of devices stay valid",
            _renew_intermediate,
            key,
        ),
        (
            "new-root",
            "make the root's successor, signed by the present root; devices get it when they renew",
            _new_root,
            key,
        ),
        (
            "retire-root",
            "stop trusting the old root; do this after every device has renewed",
            _retire_root,
            "",
        ),
    ):
        examples = (f"cloud-server authority {name}{example}",)
        parser = add_verb(verbs, name, text, run, examples)
        if example == key:
            parser.add_argument(
                "--root-key",
                type=Path,
                required=True,
                metavar="FILE",
                help="file of the root's private key, which is kept offline"
                + (", or of its successor's" if run is _renew_intermediate else ""),
            )
        if name == "server-certificate":
            parser.add_argument(
                "--name",
                action="append",
                default=[],
                metavar="HOST",
                help="host name or address, repeatable (default: those of the old certificate)",
            )


def _show(given: argparse.Namespace) -> int:
    from cloud_server.identity import certificates as made
    from cloud_server.identity.tls import AUTHORITY, SERVER

    authority, folder = _authority(given), settings_of(given).directory_path
    path = folder / SERVER
    server = made.read_certificates(made.read_file(path), path)[0]
    shown = {
        "root": authority.roots[0],
        **dict(zip(("successor",), authority.roots[1:], strict=False)),
        "intermediate": authority.intermediate.certificate,
        "server": server,
    }
    keys = sorted(map(str, (folder / AUTHORITY).glob("*-key.pem")))
    if given.json:
        as_json({**{name: _facts(one) for name, one in shown.items()}, "root_keys_here": keys})
        return 0
    table(
        ("certificate", "SHA-256", "ends"),
        [
            (name, f"{facts['sha256'][:32]}…", moment(facts["not_after_s"]))
            for name, facts in ((name, _facts(one)) for name, one in shown.items())
        ],
        "",
    )
    for key in keys:
        say(f"{key} is still on this machine: move it offline")
    return 0


def _server_certificate(given: argparse.Namespace) -> int:
    from cloud_server.identity.tls import SERVER, server_names

    path = settings_of(given).directory_path / SERVER
    # A front end that was given only the shared authority has none yet.
    before = server_names(path) if path.exists() or not given.name else []
    names = given.name or before
    gone = ", ".join(name for name in before if name not in names)
    _serve_with(given, _authority(given), names)
    _note(given, "authority.server_certificate", names=", ".join(names))
    told(
        given.json,
        {"names": names},
        f"made a server certificate for {', '.join(names)}"
        + (f"\nno longer in it, repeat --name to keep one: {gone}" if gone else ""),
    )
    return 0


def _renew_intermediate(given: argparse.Namespace) -> int:
    after = _authority(given).renew_intermediate(given.root_key, time.time())
    _serve_with(given, after)
    facts = _facts(after.intermediate.certificate)
    _note(given, "authority.renew_intermediate", **facts)
    told(
        given.json,
        facts,
        f"made an intermediate that expires {moment(facts['not_after_s'])}, and a server "
        "certificate signed by it",
    )
    return 0


def _new_root(given: argparse.Namespace) -> int:
    from cloud_server.identity.authority import SUCCESSOR_KEY

    after = _authority(given).new_root(given.root_key, time.time())
    facts = _facts(after.roots[1])
    _note(given, "authority.new_root", **facts)
    key = after.folder / SUCCESSOR_KEY
    told(
        given.json,
        {**facts, "key": str(key)},
        f"made a successor that expires {moment(facts['not_after_s'])}\n\n"
        f"MOVE ITS KEY OFFLINE, now:\n  {key}\n\n"
        "Devices get it when they renew their certificates. When every device has renewed:\n"
        "  cloud-server authority renew-intermediate --root-key THAT_KEY\n"
        "and when every device has renewed again:\n"
        "  cloud-server authority retire-root",
    )
    return 0


def _retire_root(given: argparse.Namespace) -> int:
    agreed(given.yes, "trust the old root no longer")
    after = _authority(given).retire_root()
    _serve_with(given, after)
    facts = _facts(after.roots[0])
    _note(given, "authority.retire_root", **facts)
    told(given.json, facts, "the old root is no longer trusted")
    return 0


def _authority(given: argparse.Namespace) -> Authority:
    from cloud_server.identity.authority import Authority
    from cloud_server.identity.tls import AUTHORITY

    return Authority.open(settings_of(given).directory_path / AUTHORITY)


def _serve_with(
    given: argparse.Namespace, authority: Authority, names: list[str] | None = None
) -> None:
    """Make a server certificate of this authority, by default for the old one's names."""
    from cloud_server.identity.tls import SERVER, server_names, write_server

    path = settings_of(given).directory_path / SERVER
    write_server(path, authority, names or server_names(path), time.time())


def _note(given: argparse.Namespace, action: str, **detail: object) -> None:
    from cloud_server.identity.caller import SERVICE_TENANT

    with opened(given) as store, store.write(actor()) as tx:
        tx.audit(action, SERVICE_TENANT, "authority", **detail)


def _facts(certificate: x509.Certificate) -> dict[str, Any]:
    from cloud_server.identity import certificates as made

    return {
        "sha256": made.fingerprint_of(certificate),
        "not_after_s": made.end_of(certificate),
    }
