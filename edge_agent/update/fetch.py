"""Fetches an update in parts that leave the link to frames, and goes on where it broke off."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from edge_agent.uplink.call_errors import error_of
from edge_agent.uplink.part_file import PartFile
from protos.errors import DiskFullError, FrameMalformedError
from protos.neuralbridge.v1 import bridge_pb2, bridge_pb2_grpc
from protos.process.files import writing
from protos.update import MAX_BYTES

_LEAST_BYTES, _MOST_BYTES = 4 * 1024, 1 << 20
_FIRST_BYTES = 32 * 1024
_PART_S = 0.5
"""A part is made larger while it takes less than half of this, and smaller above it."""
_BUSY_S = 10.0
"""Longest time that a part waits for frames that are on their way."""
_LOOK_S = 0.05
_SPARE_BYTES = 64 << 20


class NotNowError(Exception):
    """No part may be fetched now; what has arrived stays."""


@dataclass
class Fetch:
    """Fetches updates into a folder.

    Attributes:
        folder: where parts are kept.
        bytes_per_s: most bytes a second; 0 for no limit.
        busy: whether frames are on their way.
        timeout_s: of one call.
        clock: seconds, monotonic.
        sleep: waits that many seconds.
        told: called with the bytes that are there.
        allowed: whether parts may be fetched now; asked before each.
    """

    folder: Path
    bytes_per_s: float = 0.0
    busy: Callable[[], bool] = lambda: False
    timeout_s: float = 30.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    told: Callable[[int], None] = lambda _: None
    allowed: Callable[[], bool] = lambda: True

    def part_of(self, digest: str) -> Path:
        """The file that an update grows in."""
        return self.folder / f"{digest}.part"

    async def run(self, channel: grpc.aio.Channel, digest: str, size: int) -> Path:
        """Fetch what is missing of an update; returns the whole file, which nobody has checked.

        Args:
            channel: to the service.
            digest: the update's.
            size: bytes, as the service says.

        Raises:
            DiskFullError: there is no room.
            FrameMalformedError: the service sends something else than it said.
            NotNowError: no part may be fetched any more.
            BridgeError: the service's refusal, typed; OfflineError if nobody answers.
        """
        if not 0 < size <= MAX_BYTES:
            raise FrameMalformedError(f"an update of {size} bytes: the service errs")
        stub: Any = bridge_pb2_grpc.BridgeStub(channel)
        part, wanted = self.part_of(digest), _FIRST_BYTES
        with writing(part):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            opened = PartFile(part)
        with opened as file:
            at = file.size
            if at > size:
                at = 0
                file.clear()
            free = shutil.disk_usage(self.folder).free
            if free < size - at + _SPARE_BYTES:
                raise DiskFullError(
                    f"{self.folder} has {free >> 20} MiB free, the update needs "
                    f"{size - at + _SPARE_BYTES >> 20}"
                )
            self.told(at)
            while at < size:
                await self._gap()
                if not self.allowed():
                    raise NotNowError
                began = self.clock()
                data = await self._part(stub, digest, at, min(wanted, size - at), size)
                took = self.clock() - began
                with writing(part):
                    await asyncio.to_thread(file.append, data)
                at += len(data)
                self.told(at)
                if took > _PART_S:
                    wanted = max(_LEAST_BYTES, wanted // 2)
                elif took < _PART_S / 2:
                    wanted = min(_MOST_BYTES, wanted * 2)
                rest = len(data) / self.bytes_per_s - took if self.bytes_per_s else 0.0
                if at < size:
                    await self.sleep(max(rest, took))  # at most half of the time is the update's
        return part

    async def _gap(self) -> None:
        """Wait until no frame is on its way, but not for ever."""
        until = self.clock() + _BUSY_S
        while self.busy() and self.clock() < until:
            await self.sleep(_LOOK_S)

    async def _part(self, stub: Any, digest: str, at: int, length: int, size: int) -> bytes:
        request = bridge_pb2.FetchUpdateRequest(digest=digest, offset=at, length=length)
        data = bytearray()
        try:
            async for chunk in stub.FetchUpdate(request, timeout=self.timeout_s):
                if chunk.total_bytes != size or len(data) + len(chunk.data) > length:
                    raise FrameMalformedError(
                        f"the service said {size} bytes, and sends a file of {chunk.total_bytes}"
                    )
                data += chunk.data
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error
        if not data:
            raise FrameMalformedError("the service sent an empty part of an update")
        return bytes(data)
