"""`projector hub sign`: verify a hub's bytes and sign it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from projector.bundle.keys import SigningKey
from projector.commands.arguments import add_command
from projector.commands.settings import check, settings_of
from protos.process.console import printable


def register(commands: Any) -> None:
    """Add the command."""
    sign = add_command(
        commands,
        "sign",
        "verify a hub's bytes and sign it with an Ed25519 key",
        _run,
        examples=("projector hub sign hub/ --key signing.pem",),
    )
    sign.add_argument("hub", type=Path, metavar="HUB", help="a hub's folder")
    sign.add_argument(
        "--key", type=Path, required=True, metavar="FILE", help="the private key, in PEM"
    )
    sign.add_argument(
        "--create", action="store_true", help="make the key first; refused if FILE exists"
    )


def _run(args: argparse.Namespace) -> int:
    from projector.hub.hub import Hub, sign_hub

    if args.check_config:
        return check(settings_of(args))
    info = Hub.peek(args.hub)
    key = SigningKey.create(args.key) if args.create else SigningKey.load(args.key)
    signature = sign_hub(args.hub, key)
    print(
        f"{printable(info.id)} version {info.version} is signed; to trust the key, list it under "
        f'[keys]:\n"NAME" = "{signature.key}"'
    )
    return 0
