"""`projector inspect`: verify a bundle's bytes and show what it holds."""

from __future__ import annotations

import argparse
import json
from typing import Any

from projector.commands.arguments import add_bundle, add_command, add_json, add_trusted
from projector.commands.as_json import bundle_json
from projector.commands.bundles import bundle_folder, intact, trusted_keys
from projector.commands.settings import check, settings_of
from projector.report import bundle_page


def register(commands: Any) -> None:
    """Add the command to the program's parser."""
    inspect = add_command(
        commands,
        "inspect",
        "verify a bundle's bytes and show what it holds and what was measured of it",
        _run,
        ("bundles",),
        (
            "projector inspect bundles/edge-a-cloud",
            "projector inspect bundles/edge-a-cloud --json | jq .certificate.controls",
        ),
    )
    add_bundle(inspect)
    add_json(inspect)
    add_trusted(inspect)


def _run(args: argparse.Namespace) -> int:
    chosen = settings_of(args)
    path = bundle_folder(args.bundle, chosen)
    if args.check_config:
        return check(chosen, bundles=[path])
    bundle = intact(path, trusted_keys(args))
    if args.json:
        said = bundle_json(bundle) | {"certificate": bundle.certificate}
        print(json.dumps(said, indent=2))
    else:
        bundle_page.show_bundle(bundle)
    return 0
