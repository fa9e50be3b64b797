"""`projector catalogue`: list the bundles of a folder with their grades and tiers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from projector.bundle.load import Bundle
from projector.commands.arguments import add_command, add_json, add_trusted
from projector.commands.as_json import bundle_json
from projector.commands.bundles import bundles_in, intact, trusted_keys
from projector.commands.settings import PREFIX, check, settings_of
from projector.report import bundle_page
from protos.errors import BridgeError, BundleMissingError, ConfigError
from protos.process import console


def register(commands: Any) -> None:
    """Add the command to the program's parser."""
    catalogue = add_command(
        commands,
        "catalogue",
        "list the bundles in a folder and the two levels below it",
        _run,
        ("bundles",),
        ("projector catalogue bundles", f"{PREFIX}BUNDLES=bundles projector catalogue --json"),
    )
    catalogue.add_argument(
        "folder", nargs="?", type=Path, metavar="FOLDER", help="folder to list (default: --bundles)"
    )
    add_json(catalogue)
    add_trusted(catalogue)


def _run(args: argparse.Namespace) -> int:
    chosen = settings_of(args)
    folder = args.folder or chosen.bundles
    if folder is None:
        raise ConfigError(
            f"no folder: name it, or give --bundles, {PREFIX}BUNDLES or 'bundles' in the "
            "configuration file"
        )
    if args.check_config:
        return check(chosen, bundles=bundles_in(folder))
    found: list[Bundle] = []
    refused: list[tuple[Path, BridgeError]] = []
    trusted = trusted_keys(args)
    for path in bundles_in(folder):
        try:
            found.append(intact(path, trusted))
        except BridgeError as error:
            refused.append((path, error))
    if not found and not refused:
        raise BundleMissingError(f"{folder} holds no bundle, nor do the folders in it")
    if args.json:
        print(
            json.dumps(
                [bundle_json(one) | {"judged": bundle_page.judged(one).to_json()} for one in found]
                + [
                    {
                        "path": str(path),
                        "error": {"code": error.code, "name": error.name, "message": error.message},
                    }
                    for path, error in refused
                ],
                indent=2,
            )
        )
    elif found:
        bundle_page.show_catalogue(found, folder)
    for _, refusal in refused:
        console.complain("projector", refusal)
    return refused[0][1].exit_code if refused else 0
