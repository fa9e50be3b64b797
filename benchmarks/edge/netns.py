"""A network namespace joined to this one by a veth pair, and what passes between the two."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from protos.errors import ConfigError

_ETHERNET = 14
_IPV4, _TCP, _EVERYTHING = b"\x08\x00", 6, 3
_NUMBERS = itertools.count()


@dataclass
class Passed:
    """Packets that passed so far, and their bytes from the IP header on.

    Attributes:
        up_packets, up_bytes: towards this side.
        down_packets, down_bytes: from this side.
        data_packets, data_bytes: those of up that carry more than an acknowledgement.
    """

    up_packets: int = 0
    up_bytes: int = 0
    down_packets: int = 0
    down_bytes: int = 0
    data_packets: int = 0
    data_bytes: int = 0

    def __sub__(self, before: Passed) -> Passed:
        return Passed(**{name: value - getattr(before, name) for name, value in vars(self).items()})

    def take(self, packet: bytes, down: bool) -> None:
        """Count an Ethernet packet; only IPv4 counts."""
        if packet[12:14] != _IPV4:
            return
        begin = _ETHERNET + 4 * (packet[_ETHERNET] & 0xF)
        size = int.from_bytes(packet[_ETHERNET + 2 : _ETHERNET + 4], "big")
        if down:
            self.down_packets += 1
            self.down_bytes += size
            return
        self.up_packets += 1
        self.up_bytes += size
        header = begin - _ETHERNET + 4 * (packet[begin + 12] >> 4)
        if packet[_ETHERNET + 9] != _TCP or size > header:
            self.data_packets += 1
            self.data_bytes += size


@dataclass(frozen=True)
class Netns:
    """A namespace with one way out.

    Attributes:
        name: of the namespace.
        address: this side's IPv4 address, as the other side sees it.
        passed: what passes between the two.
    """

    name: str
    address: str
    passed: Passed

    def command(self, *command: str) -> list[str]:
        """A command line that runs inside."""
        return ["ip", "netns", "exec", self.name, *command]


def _watch(packets: socket.socket, passed: Passed) -> None:
    """Count packets until the link or the socket is gone."""
    with contextlib.suppress(OSError):
        while True:
            packet, address = packets.recvfrom(128)
            passed.take(packet, address[2] == socket.PACKET_OUTGOING)


@contextmanager
def netns(timestamps: bool = True) -> Iterator[Netns]:
    """Make one; it goes with the block.

    No packet is larger than the link's 1,500 bytes, and none is sent but for connections: no IPv6,
    no ARP.

    Args:
        timestamps: whether TCP's packets have timestamps, 12 bytes each, as by default.

    Raises:
        ConfigError: this needs root and iproute2.
    """
    name, near, far, network = next_names()
    made = Netns(name, f"{network}.1", Passed())
    run("ip", "netns", "add", name)
    try:
        run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        inside = made.command("ip")
        for ip, link, own, other in ((["ip"], near, 1, 2), (inside, far, 2, 1)):
            run(*ip, "link", "set", link, "gso_max_segs", "1")
            run(*ip, "link", "set", link, "address", f"02:00:00:00:00:0{own}")
            run(*ip, "address", "add", f"{network}.{own}/24", "dev", link)
            run(*ip, "link", "set", link, "up")
            place = ["lladdr", f"02:00:00:00:00:0{other}", "dev", link, "nud", "permanent"]
            run(*ip, "neighbour", "replace", f"{network}.{other}", *place)
        run(*inside, "link", "set", "lo", "up")
        off = "net.ipv6.conf.all.disable_ipv6=1"
        run(*made.command("sysctl", "-qw", off, f"net.ipv4.tcp_timestamps={int(timestamps)}"))
        run("sysctl", "-qw", f"net.ipv6.conf.{near}.disable_ipv6=1")
        packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_EVERYTHING))
        packets.bind((near, 0))
        threading.Thread(target=_watch, args=(packets, made.passed), daemon=True).start()
        with packets:
            yield made
    finally:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        subprocess.run(["ip", "link", "delete", near], capture_output=True)


def next_names() -> tuple[str, str, str, str]:
    """Names of a namespace and of its link's two ends, and the network between them (10.x.y)."""
    number = next(_NUMBERS)
    own = f"{os.getpid()}-{number}"
    network = f"10.{64 + os.getpid() % 128}.{number % 256}"
    return f"nb-{own}", f"nbn{own}"[-15:], f"nbf{own}"[-15:], network


def run(*command: str) -> None:
    """Run a command of iproute2.

    Raises:
        ConfigError: it failed.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise ConfigError(f"{command[0]} is not installed: {error}") from error
    if done.returncode:
        raise ConfigError(
            f"{' '.join(command)}: {done.stderr.strip() or done.returncode}: network namespaces "
            "need root and iproute2 (Debian: apt-get install iproute2 procps)"
        )
