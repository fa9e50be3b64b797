"""`projector package sign`: verify a package and sign it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from projector import package as packages
from projector.bundle.keys import SigningKey
from projector.commands.arguments import add_command
from projector.commands.settings import check, settings_of
from projector.package import SUFFIX
from protos.errors import ConfigError
from protos.process.console import printable


def register(commands: Any) -> None:
    """Add the command to those of `projector package`."""
    parser = add_command(
        commands,
        "sign",
        "verify a package and sign it",
        _run,
        examples=(
            f"projector package sign yard{SUFFIX} --key maker.pem",
            f"projector package sign yard{SUFFIX} --key maker.pem --output signed{SUFFIX}",
        ),
    )
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="the file")
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="the private key")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write another file instead of this one"
    )
    parser.add_argument(
        "--replace", action="store_true", help="replace the signature of another key"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --output")


def _run(args: argparse.Namespace) -> int:
    chosen = settings_of(args)
    if args.check_config:
        return check(chosen)
    key = SigningKey.load(args.key)
    package = packages.read(args.package)
    before = package.info.provenance.signature
    if before is not None and before.key != key.public and not args.replace:
        raise ConfigError(
            f"{args.package} is signed by the key {before.key[:12]}…; --replace takes that away"
        )
    output = args.output or args.package
    in_place = os.path.realpath(output) == os.path.realpath(args.package)
    signed = packages.sign(package, key)
    packages.write(signed, output, overwrite=in_place or args.overwrite)
    print(printable(f"{output}: {signed.info.digest[:12]} signed by {key.public}"))
    return 0
