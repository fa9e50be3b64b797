"""`cloud-server ask`: asks a question about a device's scene, over the HTTP port."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from protos.errors import ConfigError
from protos.process import console
from protos.process.console import printable

_URL, _KEY = "NEURAL_BRIDGE_URL", "NEURAL_BRIDGE_KEY"
_DEFAULT_URL = "https://localhost:8443"
_LONGEST_KEY = 4096


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
    parser.add_argument(
        "--url", help=f"URL of the HTTP port (default: {_URL}, else {_DEFAULT_URL})"
    )
    parser.add_argument(
        "--key-file", type=Path, metavar="FILE", help=f"file with the key (default: {_KEY})"
    )
    parser.add_argument(
        "--roots",
        type=Path,
        metavar="FILE",
        help="PEM file of the roots to trust (default: those of --directory, else the system's)",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        metavar="DIR",
        help="directory of a service on this machine, for its roots",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=run)


def run(given: argparse.Namespace) -> int:
    """Ask, and print the answer.

    Raises:
        BridgeError: the service's error, or `OfflineError`.
    """
    from cloud_server.api.client import Asking, Client

    client = Client(
        given.url or os.environ.get(_URL) or _DEFAULT_URL, _key(given.key_file), _roots(given)
    )
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


def _key(file: Path | None) -> str:
    """The key; empty if there is none, as for a service without identities.

    Raises:
        ConfigError: the file holds no key.
    """
    if file is None:
        return os.environ.get(_KEY, "").strip()
    with file.open("rb") as opened:
        text = opened.read(_LONGEST_KEY + 1).decode("ascii", "replace").strip()
    if not text or len(text) > _LONGEST_KEY or not text.isprintable() or " " in text:
        raise ConfigError(f"{file} holds no key: write the key that 'cloud-server keys add' shows")
    return text


def _roots(given: argparse.Namespace) -> Path | None:
    """The file of roots; None for the system's."""
    from cloud_server.identity.authority import ROOTS
    from cloud_server.identity.tls import AUTHORITY
    from cloud_server.settings import PREFIX

    if given.roots is not None:
        return Path(given.roots)
    directory = given.directory or os.environ.get(f"{PREFIX}DIRECTORY")
    return Path(directory) / AUTHORITY / ROOTS if directory else None


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
