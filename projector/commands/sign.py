"""`projector sign`: verify a bundle's bytes and sign it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from projector.bundle.keys import SigningKey
from projector.bundle.load import Bundle
from projector.bundle.sign import sign_bundle
from projector.commands.arguments import add_bundle, add_command, add_json
from projector.commands.bundles import bundle_folder
from projector.commands.settings import check, settings_of
from protos.process.console import printable


def register(commands: Any) -> None:
    """Add the command to the program's parser."""
    sign = add_command(
        commands,
        "sign",
        "verify a bundle's bytes and sign it with an Ed25519 key",
        _run,
        ("bundles",),
        (
            "projector sign bundles/edge-a-cloud --key signing.pem --create",
            "projector sign bundles/edge-a-cloud --key signing.pem --json | jq -r .key",
        ),
    )
    add_bundle(sign)
    sign.add_argument(
        "--key", type=Path, required=True, metavar="FILE", help="the private key, in PEM"
    )
    sign.add_argument(
        "--create", action="store_true", help="make the key first; refused if FILE exists"
    )
    add_json(sign)


def _run(args: argparse.Namespace) -> int:
    chosen = settings_of(args)
    folder = bundle_folder(args.bundle, chosen)
    if args.check_config:
        return check(chosen, bundles=[folder])
    info = Bundle.peek(folder)  # fails before a key is made, unless this is a bundle
    key = SigningKey.create(args.key) if args.create else SigningKey.load(args.key)
    signature = sign_bundle(folder, key)
    if args.json:
        done = {"bundle": info.id, "version": info.version, "digest": info.digest}
        print(json.dumps({**done, "key": signature.key}, indent=2))
    else:
        print(
            f"{printable(info.id)} version {info.version} is signed; to trust the key, list "
            f'it under [keys]:\n"NAME" = "{signature.key}"'
        )
    return 0
