"""`projector package keygen`: make a key that signs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from projector.bundle.keys import SigningKey
from projector.commands.arguments import add_command
from projector.commands.settings import check, settings_of


def register(commands: Any) -> None:
    """Add the command to those of `projector package`."""
    parser = add_command(
        commands,
        "keygen",
        "make an Ed25519 key that only its owner can read, and print its public half",
        _run,
        examples=("projector package keygen maker.pem",),
    )
    parser.add_argument("key", type=Path, metavar="FILE", help="where the private key goes")


def _run(args: argparse.Namespace) -> int:
    chosen = settings_of(args)
    if args.check_config:
        return check(chosen)
    print(SigningKey.create(args.key).public)
    return 0
