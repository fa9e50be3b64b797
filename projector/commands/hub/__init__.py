"""`projector hub`: make hubs, and join edge models to them, one command a file."""

from __future__ import annotations

from typing import Any

from projector.commands.arguments import add_group
from projector.commands.hub import inspect, join, make, sign

COMMANDS = {"make": make, "join": join, "inspect": inspect, "sign": sign}


def register(commands: Any) -> None:
    """Add `hub` and its commands to the program's parser."""
    inner = add_group(
        commands,
        "hub",
        "share one latent space and cloud half among edge models, which join with few pictures",
        tuple(COMMANDS),
        "projector hub make bundles/edge-a-cloud photos/ hub/ --edge models/edge-a "
        "--target models/cloud",
        "projector hub join hub/ photos/ bundles/edge-c --edge models/edge-c --target models/cloud",
        "projector hub inspect hub/ --json",
        "projector hub sign hub/ --key maker.pem",
    )
    for command in COMMANDS.values():
        command.register(inner)
