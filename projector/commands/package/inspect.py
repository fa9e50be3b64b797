"""`projector package inspect`: verify a package's bytes and show what it says of itself."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from projector import package as packages
from projector.commands.arguments import add_command
from projector.commands.settings import check, settings_of
from projector.package import SUFFIX
from projector.report import package_page


def register(commands: Any) -> None:
    """Add the command to those of `projector package`."""
    parser = add_command(
        commands,
        "inspect",
        "verify a package's bytes and show what it says of itself",
        _run,
        examples=(
            f"projector package inspect yard{SUFFIX}",
            f"projector package inspect yard{SUFFIX} --json | jq .metadata.certification",
        ),
    )
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="the file")
    parser.add_argument("--json", action="store_true", help="print JSON instead")


def _run(args: argparse.Namespace) -> int:
    chosen = settings_of(args)
    if args.check_config:
        return check(chosen)
    info = packages.verify(args.package).info
    if args.json:
        print(json.dumps({"path": str(args.package), **info.to_plain()}, indent=2))
    else:
        package_page.print_info(info)
    return 0
