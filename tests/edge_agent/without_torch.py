"""A program: `edge-agent ask` about one picture, to a server in this process. Imports no torch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

from edge_agent.__main__ import main as edge_agent
from projector.codec.encoder import Encoder
from tests.fakes.fake_bridge import FakeBridge


def main(argv: Sequence[str]) -> int:
    """Ask about a picture with an export; the server has the bundle's encoder."""
    export, bundle, picture = argv
    served = FakeBridge(Encoder.from_bytes((Path(bundle) / "edge.safetensors").read_bytes()))
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    asyncio.run_coroutine_threadsafe(served.start(), loop).result(10)
    arguments = ["ask", picture, "is there a fire ?", "--model", export, "--json"]
    return edge_agent([*arguments, "--server", served.address, "--edge-only-too"])
