"""`cloud-server top`: the fleet in the terminal, as the live page shows it."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any
from urllib.parse import urlencode

from cloud_server.commands import reaching
from protos.errors import ConfigError
from protos.process import console


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "top",
        help="watch the devices in the terminal",
        description="Watch the devices: who is alive, how old its newest scene is, whether its "
        "answers can be believed. It shows what the live page shows, over the HTTP port. Keys: "
        "arrows, / to search, q to end.",
        epilog="example:\n  cloud-server top --tenant acme\n\n"
        + console.ends("cloud-server", "you ended it"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--tenant", metavar="NAME", help="only this tenant's devices, for operators of the service"
    )
    reaching.add(parser)
    parser.add_argument("--json", action="store_true", help="print the fleet once, as JSON")
    parser.set_defaults(command=run)


def run(given: argparse.Namespace) -> int:
    """Watch, or print once.

    Raises:
        ConfigError: Textual is not installed, or standard output is no terminal.
        BridgeError: the service's error, or `OfflineError`.
    """
    client = reaching.client_of(given)
    query = "" if given.tenant is None else "?" + urlencode({"tenant": given.tenant})
    fleet = client.look(f"/v1/live/fleet{query}")
    if given.json:
        sys.stdout.write(json.dumps(fleet, indent=2) + "\n")
        return 0
    if not sys.stdout.isatty():
        raise ConfigError("standard output is no terminal: use --json")
    try:
        from cloud_server.page.terminal import Top
    except ImportError as error:
        raise ConfigError(
            f"the terminal view needs Textual ({error}): pip install 'neural-bridge[terminal]'; "
            "--json works without"
        ) from error
    failed = Top(lambda: client.follow(f"/v1/live/events{query}")).run()
    if failed is not None:
        raise failed
    return 0
