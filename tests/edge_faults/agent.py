"""A device with a camera that never ends, until it is killed: notes each frame that it accepted."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from edge_agent.sources import Capture
from edge_agent.spool.entry import Entry
from edge_agent.spool.stored_frame import StoredFrame
from tests.fakes.fake_run import capture
from tests.fakes.fake_spool import SpoolRun


class Camera:
    """A picture every few milliseconds."""

    endless = True

    def __init__(self, name: str) -> None:
        self.name = name

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[Capture]:
        for number in itertools.count():
            time.sleep(0.005)
            yield capture(f"{self.name}-{number}")


def dial(address: Path) -> Any:
    """A channel to the server whose address a file holds: it may have moved."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(address.read_text(), options=options)


async def main(folder: Path, name: str) -> None:
    """Run until killed."""
    run = SpoolRun(folder, lambda: dial(folder / "address"))
    agent = run.make(Camera(name))
    assert agent.outgoing is not None
    spool = agent.outgoing.spool
    notes = os.open(folder / "notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    accept = spool.accept

    def noted(frame: StoredFrame, rank: int) -> Entry:
        entry = accept(frame, rank)
        os.write(notes, f"{frame.record.request_id}\n".encode())
        return entry

    spool.accept = noted  # type: ignore[method-assign]
    await agent.run()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
