"""`cloud-server ask`: asks a question about a device's scene, over the HTTP port."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from cloud_server.commands import reaching
from protos.process import console
from protos.process.console import printable


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "ask",
        help="ask a question about what a device saw",
        description="Ask a question about a scene that the service holds, over its HTTP port. The "
        "answer goes to standard output; its scene, point, risk and warnings to standard error.",
        epilog='example:\n  cloud-server ask gate-3 "is there a fire ?"\n\n'
        + console.ends("cloud-server", "it was answered"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("device", metavar="DEVICE", help="the device's name")
    parser.add_argument("question", metavar="QUESTION", help="in plain words")
    parser.add_argument(
        "--at", default="latest", metavar="SCENE", help="id of a scene (default: the newest)"
    )
    parser.add_argument(
        "--tenant", metavar="NAME", help="the device's tenant, for operators of the service"
    )
    parser.add_argument(
        "--max-risk",
        type=float,
        metavar="P",
        help="refuse the question if the answer's risk (0 to 1) is higher",
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer, in tokens")
    reaching.add(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=run)


def run(given: argparse.Namespace) -> int:
    """Ask, and print the answer.

    Raises:
        BridgeError: the service's error, or `OfflineError`.
    """
    from cloud_server.api.client import Asking

    client = reaching.client_of(given)
    asking = Asking(
        device=given.device,
        question=given.question,
        at=given.at,
        tenant=given.tenant,
        max_risk=given.max_risk,
        max_tokens=given.max_tokens,
    )
    pieces: list[str] = []
    last: dict[str, Any] = {}
    for chunk in client.ask(asking):
        for choice in chunk.get("choices", ()):
            piece = choice["delta"].get("content") or ""
            pieces.append(piece)
            if not given.json:
                sys.stdout.write(_shown(piece))
                sys.stdout.flush()
        last |= {name: chunk[name] for name in ("bridge", "usage", "model") if chunk.get(name)}
    if given.json:
        sys.stdout.write(json.dumps({"answer": "".join(pieces)} | last, indent=2) + "\n")
    else:
        sys.stdout.write("\n")
        sys.stdout.flush()
        sys.stderr.write(_rests_on(last["bridge"]) + "\n")
    return 0


def _rests_on(bridge: dict[str, Any]) -> str:
    """An answer's scene, point, risk and warnings, a line each."""
    risk = "unknown" if bridge["risk"] is None else f"{bridge['risk']:.1%}"
    told = [
        f"{bridge['device']}, seen {bridge['age_s']:.1f} s ago",
        f"point {bridge['point']}",
        f"risk {risk}",
    ]
    if bridge["bundle"] is not None:
        told.append(f"bundle {bridge['bundle']['id']} {bridge['bundle']['version']}")
    if bridge["fallback"]:
        told.append(f"the device sent a picture: {bridge['fallback']}")
    told += [f"warning: {name}" for name in bridge["warnings"]]
    told.append(f"scene {bridge['scene']}")
    return "\n".join(f"  {printable(one)}" for one in told)


def _shown(piece: str) -> str:
    """A piece of an answer, safe for a terminal; line breaks stay."""
    return "\n".join(printable(line) for line in piece.split("\n"))
