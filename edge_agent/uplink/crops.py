"""Crops: sends a part of a picture where its owner allows it and the service asks for it.

Pictures are held from sealing to the request's end, within a bound. Masks are painted over before a
picture comes here.
"""

from __future__ import annotations

import asyncio
import io
from collections import Counter, OrderedDict

import grpc
from PIL import Image

from edge_agent.metrics import Metrics
from edge_agent.uplink.stream import Stream
from projector.models.pictures import as_rgb
from protos.crop import THOUSAND, Box, seal_crop
from protos.errors import BridgeError, NotAllowedHereError
from protos.neuralbridge.v1 import bridge_pb2
from protos.process.logs import Logger

_LONGEST_PX = 1024
_QUALITIES = (80, 60, 40, 20)
_SMALLEST_PX = 16
_CHANNELS = 3


class Crops:
    """Holds pictures, and sends crops of them.

    Args:
        most_bytes: longest file that is sent.
        most_share: largest share of a picture's width, and of its height, that is sent.
        memory_bytes: bound for the pictures held; the oldest go first.
        metrics: what is counted.
        log: structured logger.

    Attributes:
        most_bytes: as given.
    """

    def __init__(
        self, most_bytes: int, most_share: float, memory_bytes: int, metrics: Metrics, log: Logger
    ) -> None:
        self.most_bytes, self._most_share = most_bytes, most_share
        self._memory_bytes, self._metrics, self._log = memory_bytes, metrics, log
        self._held: OrderedDict[bytes, Image.Image] = OrderedDict()
        self._uses: Counter[int] = Counter()
        self._sent: dict[bytes, int] = {}
        self._asked: dict[bytes, Box] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.bytes = 0

    def hold(self, request_id: bytes, picture: Image.Image) -> None:
        """Hold a picture until its request ends, or newer ones need the room.

        Args:
            request_id: of a question that travels with a frame of the picture.
            picture: as the small model sees it, masks painted over.
        """
        if request_id in self._held:
            return
        self._held[request_id] = picture
        self._uses[id(picture)] += 1
        if self._uses[id(picture)] == 1:
            self.bytes += _bytes_of(picture)
        while self.bytes > self._memory_bytes:
            self._let_go(next(iter(self._held)))

    def end(self, request_id: bytes) -> int:
        """A request has ended: let its picture go.

        Returns:
            Bytes of the crop that was sent; 0 if none was.
        """
        if request_id in self._held:
            self._let_go(request_id)
        return self._sent.pop(request_id, 0)

    def wanted(self, stream: Stream, event: bridge_pb2.InferEvent) -> None:
        """Answer CropWanted on its stream, in a task of its own."""
        task = asyncio.create_task(self._answer(stream, event))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, stream: Stream, event: bridge_pb2.InferEvent) -> None:
        picture, wanted = self._held.get(event.request_id), event.crop_wanted
        file = b""
        if picture is not None:
            most = min(self.most_bytes, wanted.max_bytes)
            try:
                box = Box(wanted.left, wanted.top, wanted.right, wanted.bottom)
                self._require_consent(event.request_id, box)
                file = await asyncio.to_thread(crop_file, picture, box, most)
            except (BridgeError, OSError, ValueError, MemoryError) as error:
                self._log.warning("crop_not_sent", cause=str(error))
        message = seal_crop(stream.session.constants, event.request_id, file)
        try:
            async with stream.writing:
                await stream.call.write(message)
        except (grpc.RpcError, asyncio.InvalidStateError):
            return  # the request goes again on another stream, and is asked again there
        self._metrics.sent_bytes.inc(message.ByteSize())
        self._metrics.crops.labels("sent" if file else "none").inc()
        if file:
            self._metrics.crop_bytes.observe(len(file))
            if event.request_id in self._held:
                self._sent[event.request_id] = len(file)

    def _require_consent(self, request_id: bytes, box: Box) -> None:
        """Check a part against what this device's owner allows, whatever the service's own limits.

        Raises:
            NotAllowedHereError: it is too large, or another part of the picture was asked for
                before: pieces that the whole could be put together from.
        """
        share = max(box.right - box.left, box.bottom - box.top) / THOUSAND
        if share > self._most_share:
            raise NotAllowedHereError(
                f"the service asks for {share:.0%} of the picture's width or height, this device "
                f"allows {self._most_share:.0%} (crop_share)"
            )
        if self._asked.setdefault(request_id, box) != box:
            raise NotAllowedHereError("the service asks for a second part of one picture")

    def _let_go(self, request_id: bytes) -> None:
        self._asked.pop(request_id, None)
        picture = self._held.pop(request_id)
        self._uses[id(picture)] -= 1
        if not self._uses[id(picture)]:
            del self._uses[id(picture)]
            self.bytes -= _bytes_of(picture)


def crop_file(picture: Image.Image, box: Box, most_bytes: int) -> bytes:
    """A part of a picture as a WebP file; empty if none is short enough.

    Args:
        picture: any mode.
        box: the part.
        most_bytes: longest file. Quality goes first, then size.
    """
    part = as_rgb(picture).crop(box.pixels(*picture.size))
    part.info = {}  # the service must not apply metadata that the edge did not apply
    part.thumbnail((_LONGEST_PX, _LONGEST_PX), Image.Resampling.LANCZOS)
    while True:
        for quality in _QUALITIES:
            buffer = io.BytesIO()
            part.save(buffer, "WEBP", quality=quality, method=4)
            if buffer.tell() <= most_bytes:
                return buffer.getvalue()
        if max(part.size) <= _SMALLEST_PX:
            return b""
        part.thumbnail((max(part.size) // 2,) * 2, Image.Resampling.LANCZOS)


def _bytes_of(picture: Image.Image) -> int:
    return picture.width * picture.height * _CHANNELS
