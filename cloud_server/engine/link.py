"""The link between the front end and its engine: ZeroMQ over a socket that only its owner can open.

`FrontLink` (asyncio) is a ROUTER that talks to one engine at a time, by the identity it was started
with; messages of an earlier engine are ignored. `EngineLink` (two threads) is a DEALER. Both send
heartbeats; silence for too long means that the other is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from socket import socketpair

import zmq

from cloud_server.engine.jobs import (
    Accepted,
    Answered,
    Broken,
    Cancel,
    Compressed,
    Dropped,
    Failed,
    Forget,
    Job,
    JobEvent,
    Load,
    Message,
    Shutdown,
    Status,
    TokenMade,
    Unload,
    pack,
    unpack,
    unpack_all,
)
from protos.errors import BridgeError, EngineUnavailableError

_FRAMES = 256
"""Least frames in one multipart while messages wait, so that a step's events travel together."""
_AT_ONCE = 16
"""Multiparts that are taken before others have their turn on the event loop."""
Sink = Callable[[JobEvent | BridgeError], None]
"""Takes the events of one job, or the error that the link itself ended it with."""


class FrontLink:
    """The front end's end.

    Args:
        address: where to listen.
        heartbeat_s: pause between heartbeats.
        notice: called with messages about no single job: `Offer`, `Ready`, `Broken`, `Status`.
    """

    def __init__(self, address: str, heartbeat_s: float, notice: Callable[[Message], None]) -> None:
        self._address = address
        self._heartbeat_s = heartbeat_s
        self._notice = notice
        self._context = zmq.Context()
        self._engine = b""
        self._due = False  # whether `_receive` is about to be called
        self._jobs: dict[int, tuple[Sink, bool]] = {}
        self._task: asyncio.Task[None] | None = None
        self.last_heard = 0.0
        self.answered_at = float("-inf")

    @property
    def depth(self) -> int:
        """Jobs given to the engine that have not ended."""
        return len(self._jobs)

    async def start(self) -> None:
        """Listen."""
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.router_mandatory = True
        self._socket.linger = 0
        self._socket.sndhwm = 0
        self._socket.rcvhwm = 0
        self._socket.bind(self._address)
        asyncio.get_running_loop().add_reader(self._socket.FD, self._receive)
        self._task = asyncio.create_task(self._beat())

    def expect(self, identity: str) -> None:
        """Listen to this engine from now on, and to no other."""
        self._engine = identity.encode()
        self.last_heard = time.monotonic()

    async def submit(self, job: Job, sink: Sink) -> None:
        """Give the engine a job; `sink` then gets its events until it ends.

        Raises:
            EngineUnavailableError: there is no engine to give it to.
        """
        self._jobs[job.id] = (sink, bool(job.question))
        try:
            self._send(job)
        except EngineUnavailableError:
            self._jobs.pop(job.id, None)
            raise

    def abandon(self, job: int) -> None:
        """Ignore a job's events from now on."""
        self._jobs.pop(job, None)

    async def tell(self, message: Forget | Cancel | Load | Unload | Shutdown) -> None:
        """Send a message that has no answer; without an engine nothing is sent."""
        with contextlib.suppress(EngineUnavailableError):
            self._send(message)

    def lose(self, reason: str) -> None:
        """The engine is gone: end every job with a retryable error."""
        self._engine = b""
        jobs, self._jobs = self._jobs, {}
        for sink, _ in jobs.values():
            sink(EngineUnavailableError(f"{reason}; send it again"))

    async def stop(self) -> None:
        """Close the socket."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            asyncio.get_running_loop().remove_reader(self._socket.FD)
            self._socket.close()
        self._context.term()

    def _send(self, message: Message) -> None:
        if not self._engine:
            raise EngineUnavailableError("the engine is not running; send it again")
        try:
            self._socket.send_multipart([self._engine, *pack(message)], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            raise EngineUnavailableError(
                f"the engine cannot be reached ({error.strerror}); send it again"
            ) from error
        self._look_again()

    def _receive(self) -> None:
        """Take what has come."""
        self._due = False
        try:
            for _ in range(_AT_ONCE):
                if not self._has_come():
                    break
                identity, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
                if identity == self._engine:
                    self._take(frames)
        finally:
            self._look_again()

    def _look_again(self) -> None:
        """Call `_receive` soon if something has come: the socket's descriptor tells that once."""
        if not self._due and self._has_come():
            self._due = True
            asyncio.get_running_loop().call_soon(self._receive)

    def _has_come(self) -> bool:
        return not self._socket.closed and bool(int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN)

    def _take(self, frames: list[bytes]) -> None:
        self.last_heard = time.monotonic()
        try:
            messages = unpack_all(frames)
        except BridgeError as error:
            self._notice(Broken(error.code, error.message))
            return
        for message in messages:
            self._dispatch(message)

    def _dispatch(self, message: Message) -> None:
        if not isinstance(message, JobEvent):
            self._notice(message)
            return
        sink, asks = self._jobs.get(message.job, (None, True))
        ends = isinstance(message, Answered | Compressed | Failed | Dropped)
        if ends or (isinstance(message, Accepted) and not asks):
            self._jobs.pop(message.job, None)
        if sink is not None:
            sink(message)
            if isinstance(message, Answered | TokenMade):
                self.answered_at = time.monotonic()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            with contextlib.suppress(EngineUnavailableError):
                self._send(Status())


class EngineLink:
    """The engine's end. The main thread sends and receives; another one sends heartbeats.

    Between two threads there is no queue that a job or a token would have to wait in: whoever
    touches the socket holds a lock, and leaves what it reads there to `receive`.

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
        self._lock = threading.Lock()
        self._context = zmq.Context()
        self._bell, self._ring = socketpair()
        self._bell.setblocking(False)
        self._ring.setblocking(False)
        self._parent = os.getppid()
        self._heard = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="engine-link", daemon=True)

    def start(self) -> None:
        """Connect and begin to send heartbeats."""
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.identity = self._identity.encode()
        self._socket.linger = 2000
        self._socket.sndhwm = 0
        self._socket.rcvhwm = 0
        self._socket.connect(self._address)
        self._poll = select.poll()
        # The socket's descriptor says that there may be something to read, not that there is.
        self._poll.register(self._socket, select.POLLIN)
        self._poll.register(self._bell, select.POLLIN)
        self._heard = time.monotonic()
        self._thread.start()

    def send(self, *messages: Message) -> None:
        """Send messages; never blocks; from any thread."""
        frames: list[bytes] = []
        for message in messages:
            frames += pack(message)
            if len(frames) >= _FRAMES:
                self._write(frames)
                frames = []
        if frames:
            self._write(frames)

    def wake(self) -> None:
        """End a blocking `receive` as if a heartbeat had come; from any thread."""
        self._inbox.append(Status())
        self._ring_bell()

    def receive(self, block: bool) -> Message | None:
        """The next message, or `None` if there is none and `block` is false; in one thread only."""
        while True:
            if not self._inbox:
                with self._lock:
                    self._read()
            if self._inbox:
                return self._inbox.popleft()
            if not block:
                return None
            self._poll.poll()
            with contextlib.suppress(BlockingIOError):
                self._bell.recv(4096)

    def stop(self) -> None:
        """Send what is still to be sent, then close."""
        self._stop.set()
        self._thread.join(timeout=5.0)
        with self._lock:
            self._socket.close()
        self._context.term()

    def _write(self, frames: list[bytes]) -> None:
        with self._lock:
            self._socket.send_multipart(frames)
            self._read()  # sending takes the descriptor's news away from whoever waits for it
        if self._inbox:
            self._ring_bell()

    def _ring_bell(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is full: `receive` has yet to look
            self._ring.send(b"r")

    def _read(self) -> None:
        """Take what has come into the inbox; the caller holds the lock."""
        with contextlib.suppress(zmq.Again):
            while True:
                message = unpack(self._socket.recv_multipart(zmq.NOBLOCK))
                self._heard = time.monotonic()
                if not isinstance(message, Status):
                    self._inbox.append(message)

    def _beat(self) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            now = time.monotonic()
            held_up = now - due > 2 * self._heartbeat_s + 1.0  # messages may be on their way
            due = now + self._heartbeat_s
            self.send(self._status())
            silent = now - self._heard > self._timeout_s and not held_up
            if os.getppid() != self._parent or silent:
                self._gone()
