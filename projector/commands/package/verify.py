"""`projector package verify`: verify a package, who signed it, and what it is derived from."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from projector import package as packages
from projector.commands.arguments import add_command, add_trusted
from projector.commands.bundles import trusted_keys
from projector.commands.settings import check, settings_of
from projector.package import SUFFIX
from projector.report import package_page


def register(commands: Any) -> None:
    """Add the command to those of `projector package`."""
    parser = add_command(
        commands,
        "verify",
        "verify every byte of a package, who signed it, and what it is derived from",
        _run,
        examples=(
            f"projector package verify yard{SUFFIX}",
            f"projector package verify small{SUFFIX} --trusted trusted.toml --among packages",
        ),
    )
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="the file")
    add_trusted(parser)
    parser.add_argument(
        "--among",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help=f"verify up to the root: files, or folders of *{SUFFIX}, that hold the parents",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead")


def _run(args: argparse.Namespace) -> int:
    chosen = settings_of(args)
    if args.check_config:
        return check(chosen)
    trusted = trusted_keys(args)
    if args.among:
        chain = packages.verify_chain(args.package, args.among, trusted)
    else:
        chain = (packages.verify(args.package, trusted),)
    if args.json:
        print(json.dumps(package_page.chain_plain(chain), indent=2))
    else:
        package_page.print_chain(chain)
    return 0
