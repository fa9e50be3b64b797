"""`projector package`: make, verify, sign, derive and use memory packages, one command a file."""

from __future__ import annotations

from typing import Any

from projector.commands.arguments import add_group
from projector.commands.package import apply, create, derive, inspect, keygen, sign, verify

COMMANDS = {
    "create": create,
    "inspect": inspect,
    "verify": verify,
    "sign": sign,
    "derive": derive,
    "apply": apply,
    "keygen": keygen,
}


def register(commands: Any) -> None:
    """Add `package` and its commands to the program's parser."""
    inner = add_group(
        commands,
        "package",
        "make, verify, sign, derive and use memory packages: what a model saw, in one file",
        tuple(COMMANDS),
        "projector package keygen maker.pem",
        "projector package create yard.neural-bridge --model models/edge-a --picture yard.jpg "
        "--bundle bundles/edge-a-cloud --creator 'yard team'",
        "projector package sign yard.neural-bridge --key maker.pem",
        "projector package verify yard.neural-bridge --trusted trusted.toml",
        "projector package apply yard.neural-bridge 'What is left of it?' --target models/cloud "
        "--bundle bundles/edge-a-cloud",
    )
    for command in COMMANDS.values():
        command.register(inner)
