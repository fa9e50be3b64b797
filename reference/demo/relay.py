"""A TCP relay that counts the bytes between a client and a server.

It counts what a network carries above TCP. Linux also reports the segments that went each way on
the client's connections, acknowledgements included; with them it counts what IP carries. Its event
loop runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from protos.process import addresses

_READ_BYTES = 1 << 16
_SEGMENTS = struct.Struct("=II")
_SEGMENTS_AT = 136
"""Where Linux's `struct tcp_info` has `tcpi_segs_out` and `tcpi_segs_in`."""
IP_HEADER_BYTES = 52
"""Header bytes of one segment: IPv4 (20), TCP (20) and its timestamps (12), as Linux sends them."""

Tap = Callable[[int, bool, bytes], None]
"""Gets every piece that passes: the connection's number, whether it goes up, the bytes."""


@dataclass(frozen=True)
class Counts:
    """Totals since the relay started, or the difference of two such totals."""

    uplink_bytes: int = 0
    downlink_bytes: int = 0
    connections: int = 0
    uplink_segments: int = 0
    downlink_segments: int = 0

    @property
    def uplink_ip_bytes(self) -> int:
        """Bytes that the client sent, with IP and TCP headers and acknowledgements."""
        return self.uplink_bytes + IP_HEADER_BYTES * self.uplink_segments

    @property
    def downlink_ip_bytes(self) -> int:
        """Bytes that the client was sent, with IP and TCP headers and acknowledgements."""
        return self.downlink_bytes + IP_HEADER_BYTES * self.downlink_segments

    def __sub__(self, earlier: Counts) -> Counts:
        return Counts(
            self.uplink_bytes - earlier.uplink_bytes,
            self.downlink_bytes - earlier.downlink_bytes,
            self.connections - earlier.connections,
            self.uplink_segments - earlier.uplink_segments,
            self.downlink_segments - earlier.downlink_segments,
        )


class Relay:
    """Listens on a free loopback port and passes every connection on to one server.

    Use as a context manager. `counts()` may be called from any thread. `mark(name)` keeps the
    totals of this moment, and `between(a, b)` returns what passed between two marks.
    """

    def __init__(self, server: str, tap: Tap | None = None) -> None:
        """Opens nothing yet; the `with` block does.

        Args:
            server: host:port of the real server.
            tap: called with a copy of every piece, in the relay's thread.

        Raises:
            ConfigError: `server` is not host:port.
        """
        found = addresses.parse(server)
        self._host, self._port = found.host, found.port
        self._up = self._down = self._connections = 0
        self._tap = tap
        self._open: set[socket.socket] = set()
        self._segments_up = self._segments_down = 0  # of connections that have ended
        self._marks: dict[str, Counts] = {}
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._stop = asyncio.Event()
        self.address = ""

    def __enter__(self) -> Relay:
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def counts(self) -> Counts:
        """The totals of this moment."""
        with self._lock:
            up, down = self._segments_up, self._segments_down
            for client in self._open:
                sent, received = _segments(client)
                up, down = up + received, down + sent
            return Counts(self._up, self._down, self._connections, up, down)

    def mark(self, name: str) -> Counts:
        """Keep the totals of this moment under `name` (the latest wins) and return them."""
        now = self.counts()
        self._marks[name] = now
        return now

    def between(self, earlier: str, later: str) -> Counts:
        """What passed between two marks.

        Raises:
            KeyError: there is no such mark.
        """
        return self._marks[later] - self._marks[earlier]

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except OSError as error:
            self._failure = error
        finally:
            self._loop.close()
            self._started.set()

    async def _serve(self) -> None:
        listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        self._started.set()
        await self._stop.wait()
        listener.close()
        others = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client: socket.socket = writer.get_extra_info("socket")
        with self._lock:
            self._connections += 1
            number = self._connections
            self._open.add(client)
        try:
            far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            self._ended(client)
            writer.close()  # the client sees the same as if no server were there
            return
        pumps = (
            self._pump(number, reader, far_writer, True),
            self._pump(number, far_reader, writer, False),
        )
        try:
            await asyncio.gather(*pumps)
        except asyncio.CancelledError:
            return  # the relay is stopping
        finally:
            self._ended(client)
            for end in (writer, far_writer):
                end.close()

    def _ended(self, client: socket.socket) -> None:
        with self._lock:
            self._open.discard(client)
            sent, received = _segments(client)
            self._segments_up += received
            self._segments_down += sent

    async def _pump(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: bool
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_READ_BYTES):
                with self._lock:
                    if up:
                        self._up += len(data)
                    else:
                        self._down += len(data)
                if self._tap is not None:
                    self._tap(number, up, data)
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            if writer.can_write_eof():
                writer.write_eof()


def _segments(client: socket.socket) -> tuple[int, int]:
    """Segments sent and received on a connection; 0 if the system does not report them."""
    if not hasattr(socket, "TCP_INFO"):
        return 0, 0
    try:
        told = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    except OSError:  # it is closed
        return 0, 0
    if len(told) < _SEGMENTS_AT + _SEGMENTS.size:
        return 0, 0
    sent, received = _SEGMENTS.unpack_from(told, _SEGMENTS_AT)
    return sent, received
