"""The link between the front end and its engine: a Unix socket that only its owner can open.

Blocks of bytes travel, each after its length: first the engine's identity, then messages.
`FrontLink` (asyncio) listens to one engine at a time, by the identity it was started with; messages
of an earlier engine are ignored. `EngineLink` (two threads) connects. Both send heartbeats; silence
for too long means that the other is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import struct
import threading
import time
import typing
from collections import deque
from collections.abc import Callable

from cloud_server.engine.jobs import (
    Answered,
    Broken,
    Cancel,
    Drop,
    Forget,
    Job,
    JobEvent,
    Load,
    Message,
    Shutdown,
    Status,
    TokenMade,
    Unload,
    ends,
    pack,
    unpack,
)
from protos.errors import BridgeError, EngineUnavailableError

_SIZE = struct.Struct("<I")
_AT_ONCE = 1 << 18
_OF_JOBS = typing.get_args(JobEvent)
_ANSWERING = (TokenMade, Answered)
Sink = Callable[[JobEvent | BridgeError], None]
"""Takes the events of one job, or the error that the link itself ended it with."""


class Blocks:
    """Cuts a stream of bytes into the blocks that `block` made."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def take(self, data: bytes) -> list[bytes]:
        """Take what has come; returns the blocks that are whole now."""
        rest = self._rest
        rest += data
        whole, at = [], 0
        while len(rest) >= (begin := at + _SIZE.size):
            end = begin + _SIZE.unpack_from(rest, at)[0]
            if end > len(rest):
                break
            whole.append(bytes(rest[begin:end]))
            at = end
        del rest[:at]
        return whole


def block(data: bytes) -> bytes:
    """A block on the wire: its length, then its bytes."""
    return _SIZE.pack(len(data)) + data


class _Connection(asyncio.Protocol):
    """One engine's connection to the front end."""

    def __init__(self, link: FrontLink) -> None:
        self._link, self._blocks, self._who = link, Blocks(), b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        for part in self._blocks.take(data):
            if self._who:
                self._link.take(self._who, part)
            else:
                self._who = part
                self._link.connected(part, self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.disconnected(self.transport)


class FrontLink:
    """The front end's end.

    Args:
        address: where to listen.
        heartbeat_s: pause between heartbeats.
        notice: called with messages about no single job: `Offer`, `Ready`, `Broken`, `Status`.
    """

    def __init__(self, address: str, heartbeat_s: float, notice: Callable[[Message], None]) -> None:
        self._address, self._heartbeat_s, self._notice = address, heartbeat_s, notice
        self._engine = b""
        self._server: asyncio.Server | None = None
        self._open: dict[bytes, asyncio.Transport] = {}
        self._jobs: dict[int, tuple[Sink, Job]] = {}
        self._outgoing: list[Message] | None = None
        self._task: asyncio.Task[None] | None = None
        self.last_heard = 0.0
        self.answered_at = float("-inf")

    @property
    def depth(self) -> int:
        """Jobs given to the engine that have not ended."""
        return len(self._jobs)

    async def start(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Connection(self), self._address)
        self._task = asyncio.create_task(self._beat())

    def expect(self, identity: str) -> None:
        """Listen to this engine from now on, and to no other."""
        self._engine = identity.encode()
        self.last_heard = time.monotonic()

    def submit(self, job: Job, sink: Sink) -> None:
        """Give the engine a job; `sink` then gets its events until it ends.

        Raises:
            EngineUnavailableError: there is no engine to give it to.
        """
        self._send(job)
        self._jobs[job.id] = (sink, job)

    def abandon(self, job: int) -> None:
        """Ignore a job's events from now on."""
        self._jobs.pop(job, None)

    def tell(self, message: Forget | Drop | Cancel | Load | Unload | Shutdown) -> None:
        """Send a message that has no answer; without an engine nothing is sent."""
        with contextlib.suppress(EngineUnavailableError):
            self._send(message)

    def lose(self, reason: str) -> None:
        """The engine is gone: end every job with a retryable error."""
        self._engine, self._outgoing = b"", None
        jobs, self._jobs = self._jobs, {}
        for sink, _ in jobs.values():
            sink(EngineUnavailableError(f"{reason}; send it again"))

    async def stop(self) -> None:
        """Close the socket."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._server is not None:
            self._server.close()
        for transport in list(self._open.values()):
            transport.abort()

    def connected(self, who: bytes, transport: asyncio.Transport) -> None:
        """An engine has connected and said who it is."""
        self._open[who] = transport

    def disconnected(self, transport: asyncio.Transport) -> None:
        """An engine's connection has ended."""
        self._open = {who: held for who, held in self._open.items() if held is not transport}

    def take(self, who: bytes, data: bytes) -> None:
        """Take messages of an engine; those of an earlier one are ignored."""
        if who != self._engine:
            return
        self.last_heard = time.monotonic()
        try:
            messages = unpack(data)
        except BridgeError as error:
            self._notice(Broken(error.code, error.message))
            return
        for message in messages:
            if isinstance(message, _OF_JOBS):
                self._dispatch(message)
            else:
                self._notice(message)

    def _send(self, message: Message) -> None:
        if not self._engine:
            raise EngineUnavailableError("the engine is not running; send it again")
        transport = self._open.get(self._engine)
        if transport is None or transport.is_closing():
            raise EngineUnavailableError("the engine cannot be reached; send it again")
        if self._outgoing is None:
            self._outgoing = []
            asyncio.get_running_loop().call_soon(self._flush, transport, self._outgoing)
        self._outgoing.append(message)

    def _flush(self, transport: asyncio.Transport, outgoing: list[Message]) -> None:
        """Write what was sent in one turn of the loop, as one block."""
        if self._outgoing is outgoing:
            self._outgoing = None
        transport.write(block(pack(*outgoing)))

    def _dispatch(self, message: JobEvent) -> None:
        sink, job = self._jobs.get(message.job, (None, None))
        if sink is None or job is None:
            return
        if ends(message, job):
            del self._jobs[message.job]
        sink(message)
        if isinstance(message, _ANSWERING):
            self.answered_at = self.last_heard

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            with contextlib.suppress(EngineUnavailableError):
                self._send(Status())


class EngineLink:
    """The engine's end. The main thread receives; others may send, one of them heartbeats.

    Args:
        address: where the front end listens.
        identity: who this engine is to the front end.
        heartbeat_s: pause between heartbeats.
        timeout_s: silence of the front end after which `gone` is called.
        status: makes each heartbeat.
        gone: called in a thread when the front end is gone (silent, or no longer our parent).
    """

    def __init__(
        self,
        address: str,
        identity: str,
        heartbeat_s: float,
        timeout_s: float,
        status: Callable[[], Status],
        gone: Callable[[], None],
    ) -> None:
        self._address, self._identity = address, identity
        self._heartbeat_s, self._timeout_s = heartbeat_s, timeout_s
        self._status, self._gone = status, gone
        self._inbox: deque[Message] = deque()
        self._blocks = Blocks()
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX)
        self._bell, self._ring = socket.socketpair()
        self._bell.setblocking(False)
        self._ring.setblocking(False)
        self._parent = os.getppid()
        self._heard = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="engine-link", daemon=True)

    def start(self) -> None:
        """Connect and begin to send heartbeats."""
        self._socket.settimeout(self._timeout_s)  # for a front end that reads no more
        try:
            self._socket.connect(self._address)
        except OSError:
            self._gone()
        self._write(self._identity.encode())
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._poll.register(self._bell, select.POLLIN)
        self._news = select.poll()
        self._news.register(self._socket, select.POLLIN)
        self._heard = time.monotonic()
        self._thread.start()

    def send(self, *messages: Message) -> None:
        """Send messages, which arrive together; from any thread."""
        self._write(pack(*messages))

    def wake(self) -> None:
        """End a blocking `receive` as if a heartbeat had come; from any thread."""
        self._inbox.append(Status())
        with contextlib.suppress(BlockingIOError):  # it is full: `receive` has yet to look
            self._ring.send(b"r")

    def receive(self, block: bool) -> Message | None:
        """The next message, or `None` if there is none and `block` is false; in one thread only."""
        while not self._inbox:
            ready = self._poll.poll(None if block else 0)
            for descriptor, _ in ready:
                if descriptor == self._bell.fileno():
                    self._bell.recv(4096)
                else:
                    self._read()
            if not ready:
                return None
        return self._inbox.popleft()

    def stop(self) -> None:
        """Close it; what was sent arrives."""
        self._stop.set()
        self._thread.join(timeout=5.0)
        with self._lock:
            self._socket.close()

    def _write(self, data: bytes) -> None:
        try:
            with self._lock:
                self._socket.sendall(block(data))
        except OSError:  # it has ended, or has not read for `timeout_s`
            self._gone()

    def _read(self) -> None:
        """Take what has come into the inbox."""
        try:
            data = self._socket.recv(_AT_ONCE)
        except ConnectionError:
            data = b""
        if not data:
            self._poll.unregister(self._socket)
            self._gone()
        self._heard = time.monotonic()
        for part in self._blocks.take(data):
            self._inbox += [one for one in unpack(part) if not isinstance(one, Status)]

    def _beat(self) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            now = time.monotonic()
            held_up = now - due > 2 * self._heartbeat_s + 1.0  # messages may be on their way
            due = now + self._heartbeat_s
            self.send(self._status())
            silent = now - self._heard > self._timeout_s and not held_up
            if silent and self._news.poll(0):  # the main thread has yet to read it
                silent = False
            if os.getppid() != self._parent or silent:
                self._gone()
