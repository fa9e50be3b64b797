"""`projector hub inspect`: verify a hub's bytes and show what it holds."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from projector.commands.arguments import add_command, add_json, add_trusted
from projector.commands.bundles import trusted_keys
from projector.commands.settings import check, settings_of
from projector.report import tables
from protos.process.console import printable


def register(commands: Any) -> None:
    """Add the command."""
    inspect = add_command(
        commands,
        "inspect",
        "verify a hub's bytes and show what it holds",
        _run,
        examples=("projector hub inspect hub/", "projector hub inspect hub/ --json"),
    )
    inspect.add_argument("hub", type=Path, metavar="HUB", help="a hub's folder")
    add_json(inspect)
    add_trusted(inspect)


def _run(args: argparse.Namespace) -> int:
    from projector.hub.hub import Hub

    if args.check_config:
        return check(settings_of(args))
    info = Hub.peek(args.hub)
    hub = Hub.load(args.hub, info.target, trusted_keys(args))
    space = hub.space
    found = {
        "id": info.id,
        "version": info.version,
        "digest": info.digest,
        "target": info.target.model_id,
        "rank": space.rank,
        "grid": list(space.grid),
        "signer": hub.signer,
        "members": [asdict(member) for member in info.members],
        "files": {name: size for name, (size, _) in info.files.items()},
        "certificate": hub.certificate,
    }
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    rows = [(printable(m.id), m.version, m.digest[:12]) for m in info.members]
    title = (
        f"hub {printable(info.id)} version {info.version} of {printable(info.target.model_id)}: "
        f"rank {space.rank}, {space.grid[0]} x {space.grid[1]} tokens, "
        + (f"signed by {hub.signer}" if hub.signer else "signature not required")
    )
    tables.print_tables([tables.table(title, ("made from", "#version", "digest"), rows)])
    return 0
