"""A network namespace behind a link of a given rate, delay and loss.

Both ends are TUN devices; a thread here carries the packets from one to the other. Needs root,
iproute2 and /dev/net/tun, and no module of the kernel for traffic control.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks.edge.netns import Netns, Passed, next_names, run
from protos.errors import ConfigError

_TUNSETIFF, _TUN, _NO_HEADER = 0x400454CA, 0x0001, 0x1000
_PACKET = 1500
_LEAST_QUEUE = 4 * _PACKET


@dataclass
class Shape:
    """What a link does to packets; may be changed while it runs.

    Attributes:
        bits_per_s: rate in each direction; 0: nothing passes.
        delay_s: added to each packet, in each direction.
        loss: share of packets that are lost, in each direction.
        queue_s: packets that would wait for longer than this are dropped (four always may wait).
    """

    bits_per_s: float = 10e6
    delay_s: float = 0.0
    loss: float = 0.0
    queue_s: float = 1.0


@dataclass
class Direction:
    """One direction of a link. Times are of one monotonic clock, seconds.

    Attributes:
        shape: shared by both directions.
        random: draws the losses.
        packets, carried_bytes: that left the queue so far, from the IP header on.
        dropped: packets for which the queue had no room.
    """

    shape: Shape
    random: random.Random
    packets: int = 0
    carried_bytes: int = 0
    dropped: int = 0
    _queue: deque[bytes] = field(default_factory=deque)
    _queued: int = 0
    _head_ends: float = 0.0
    _flying: deque[tuple[float, bytes]] = field(default_factory=deque)

    def take(self, packet: bytes, now: float) -> None:
        """A packet arrives at `now`."""
        room = max(_LEAST_QUEUE, self.shape.queue_s * self.shape.bits_per_s / 8)
        if self._queued + len(packet) > room:
            self.dropped += 1
            return
        if not self._queue:
            self._head_ends = now + self._takes_s(packet)
        self._queue.append(packet)
        self._queued += len(packet)

    def due(self, now: float) -> list[bytes]:
        """The packets that reach the other end by `now`."""
        while self._queue and self._head_ends <= now:
            packet, left_at = self._queue.popleft(), self._head_ends
            self._queued -= len(packet)
            self.packets += 1
            self.carried_bytes += len(packet)
            if self.random.random() >= self.shape.loss:
                self._flying.append((left_at + self.shape.delay_s, packet))
            if self._queue:
                self._head_ends = left_at + self._takes_s(self._queue[0])
        arrived = []
        while self._flying and self._flying[0][0] <= now:
            arrived.append(self._flying.popleft()[1])
        return arrived

    @property
    def wakes_at(self) -> float:
        """When `due` has something to do."""
        heads = [self._head_ends] if self._queue else []
        return min([*heads, *(due for due, _ in list(self._flying)[:1])], default=float("inf"))

    def changed(self, now: float) -> None:
        """The rate is another one from `now` on; the packet at the head begins again."""
        if self._queue:
            self._head_ends = now + self._takes_s(self._queue[0])

    def _takes_s(self, packet: bytes) -> float:
        rate = self.shape.bits_per_s
        return 8 * len(packet) / rate if rate else float("inf")


class Narrow:
    """A namespace, and the link to it.

    Attributes:
        inside: the namespace; its `passed` is not counted.
        up, down: the two directions.
    """

    def __init__(self, inside: Netns, near: int, far: int, shape: Shape, seed: int) -> None:
        self.inside = inside
        self.up = Direction(shape, random.Random(seed))
        self.down = Direction(shape, random.Random(seed + 1))
        self._shape, self._near, self._far = shape, near, far
        self._lock = threading.Lock()
        self._news, self._tell = os.pipe()
        self._thread = threading.Thread(target=self._carry, name="link", daemon=True)
        self._thread.start()

    def shape(self, bits_per_s: float) -> None:
        """Change the rate now."""
        with self._lock:
            self._shape.bits_per_s = bits_per_s
            for way in (self.up, self.down):
                way.changed(time.monotonic())
        os.write(self._tell, b"\0")

    def close(self) -> None:
        """End the link."""
        os.write(self._tell, b"!")
        self._thread.join(10)
        for number in (self._news, self._tell):
            os.close(number)

    def _carry(self) -> None:
        ways = ((self._far, self.up, self._near), (self._near, self.down, self._far))
        ready = select.poll()
        for number in (self._near, self._far, self._news):
            ready.register(number, select.POLLIN)
        while True:
            wait_s = min(way.wakes_at for _, way, _ in ways) - time.monotonic()
            found = ready.poll(None if wait_s == float("inf") else max(0.0, 1000 * wait_s))
            if any(number == self._news for number, _ in found):
                if b"!" in os.read(self._news, 64):
                    return
            with self._lock:
                now = time.monotonic()
                for source, way, sink in ways:
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            way.take(os.read(source, _PACKET + 100), now)
                    for packet in way.due(time.monotonic()):
                        with contextlib.suppress(OSError):  # a device that goes down meanwhile
                            os.write(sink, packet)


@contextmanager
def narrow(shape: Shape, seed: int = 0) -> Iterator[Narrow]:
    """Make a namespace and its link; both go with the block.

    Raises:
        ConfigError: this needs root, iproute2 and /dev/net/tun.
    """
    name, near, far, network = next_names()
    with contextlib.ExitStack() as stack:
        near_file, far_file = (stack.enter_context(_tun(one)) for one in (near, far))
        run("ip", "netns", "add", name)
        stack.callback(subprocess.run, ["ip", "netns", "delete", name], capture_output=True)
        inside = Netns(name, f"{network}.1", Passed())
        run("ip", "link", "set", far, "netns", name)
        for ip, link, own in ((["ip"], near, 1), (inside.command("ip"), far, 2)):
            run(*ip, "address", "add", f"{network}.{own}/24", "dev", link)
            run(*ip, "link", "set", link, "up")
        run(*inside.command("ip"), "link", "set", "lo", "up")
        made = Narrow(inside, near_file, far_file, shape, seed)
        stack.callback(made.close)
        yield made


@contextmanager
def _tun(name: str) -> Iterator[int]:
    """A TUN device; it goes with its file."""
    try:
        file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"/dev/net/tun: {error.strerror}: a link needs TUN devices") from error
    try:
        asked = struct.pack("16sH22x", name.encode(), _TUN | _NO_HEADER)
        try:
            fcntl.ioctl(file, _TUNSETIFF, asked)
        except OSError as error:
            raise ConfigError(f"a TUN device cannot be made: {error.strerror}: run as root") from (
                error
            )
        run("sysctl", "-qw", f"net.ipv6.conf.{name}.disable_ipv6=1")
        yield file
    finally:
        os.close(file)
