"""A device's way to the service: its own namespace, air, and a router; everything on it can fail.

    device (namespace) ══ air (TUN, this process) ══ router (namespace) ══ veth ══ here

The air delays packets and changes their order. The router limits the rate (tbf), loses packets and
cuts the way (nftables), forgets connections (conntrack) and leads them to a login page.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import shutil
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.edge.netns import run

TOOLS = all(shutil.which(tool) for tool in ("ip", "tc", "nft", "sysctl"))
POSSIBLE = TOOLS and os.geteuid() == 0 and Path("/dev/net/tun").exists()
WHY_NOT = "needs root, /dev/net/tun, iproute2, nftables and procps: make network"
_TUNSETIFF, _TUN, _NO_PI = 0x400454CA, 0x1, 0x1000
_NEWNET = 0x40000000
_NUMBERS = itertools.count()
_PACKET = 1 << 16


class Air(threading.Thread):
    """Carries packets between two TUN devices.

    Attributes:
        delay_s: of every packet, seconds.
        jitter_s: up to so much more, drawn for each packet: so they change their order.
        overtaking: share of the packets that do not wait at all.
        carried: packets so far.
        overtaken: of these, those that left before one that had come earlier.
    """

    def __init__(self, one: int, other: int) -> None:
        super().__init__(name="air", daemon=True)
        self.delay_s = self.jitter_s = self.overtaking = 0.0
        self.carried = self.overtaken = 0
        self._across = {one: other, other: one}
        self._chance = random.Random(5)
        self._over = threading.Event()

    def run(self) -> None:
        waiting: list[tuple[float, int, int, bytes]] = []
        numbers, newest = itertools.count(), dict.fromkeys(self._across, 0)
        while not self._over.is_set():
            left_s = waiting[0][0] - time.monotonic() if waiting else 0.2
            ready, _, _ = select.select(list(self._across), [], [], min(0.2, max(0.0, left_s)))
            now = time.monotonic()
            for end in ready:
                with contextlib.suppress(OSError):
                    packet = os.read(end, _PACKET)
                    at = now + self.delay_s + self._chance.uniform(0.0, self.jitter_s)
                    if self._chance.random() < self.overtaking:
                        at = now
                    heapq.heappush(waiting, (at, next(numbers), self._across[end], packet))
            while waiting and waiting[0][0] <= now:
                _, number, end, packet = heapq.heappop(waiting)
                self.carried += 1
                self.overtaken += number < newest[end]
                newest[end] = max(newest[end], number)
                with contextlib.suppress(OSError):  # the device is down: the packet is lost
                    os.write(end, packet)

    def close(self) -> None:
        """Carry nothing any more."""
        self._over.set()
        self.join()
        for end in self._across:
            os.close(end)


@dataclass
class Way:
    """One device's way.

    Attributes:
        name: of the device's namespace.
        router: of the router's.
        here: this side's IPv4 address, as the device sees it.
        there: another address of this side.
        air: carries the packets.
        faults: how often the way has changed.
    """

    name: str
    router: str
    here: str
    there: str
    air: Air
    faults: int = 0
    _rules: dict[str, str] = field(default_factory=dict)
    _leads: str = ""

    def command(self, *command: str) -> list[str]:
        """A command line that runs on the device."""
        return ["ip", "netns", "exec", self.name, *command]

    def rate(self, bits_per_s: int) -> None:
        """Limit both directions."""
        self.faults += 1
        burst = max(1600, bits_per_s // 80)  # 100 ms
        for link in ("inside", "outside"):
            limit = ["rate", f"{bits_per_s}bit", "burst", str(burst), "latency", "2s"]
            run(*self._tc(link, "replace"), "tbf", *limit)

    def loss(self, share: float) -> None:
        """Lose a share of the packets, in both directions."""
        self._rule("loss", f"numgen random mod 1000 < {round(1000 * share)} drop" if share else "")

    def cut(self, how: str = "drop", only: str = "") -> None:
        """Let nothing pass: `drop` silently, or `reject`; `only` what matches (`tcp dport 5`)."""
        self._rule(f"cut {only}", f"{only} {how}".strip())

    def heal(self, only: str = "") -> None:
        """Let everything pass again."""
        self._rule(f"cut {only}", "")

    def unplug(self) -> None:
        """Take the device's own interface down: the system says at once that there is no way."""
        self.faults += 1
        run(*self.command("ip", "link", "set", "air", "down"))

    def plug(self) -> None:
        """Put it up again."""
        self.faults += 1
        run(*self.command("ip", "link", "set", "air", "up"))
        run(*self.command("ip", "route", "replace", "default", "dev", "air"))

    def forget(self, after_s: int) -> None:
        """Forget connections that were idle for so long: what comes on them then is dropped."""
        for name, value in (("timeout_established", after_s), ("loose", 0)):
            run(*self._on_router("sysctl", "-qw", f"net.netfilter.nf_conntrack_tcp_{name}={value}"))

    def lead(self, port: int, to_port: int) -> None:
        """Lead new connections to a port elsewhere, and cut those that are there."""
        self._leads = f'iifname "inside" tcp dport {port} dnat to {self.here}:{to_port}'
        self._rule("lead", f"tcp dport {port} reject with tcp reset")

    def lead_no_more(self) -> None:
        """Let connections pass again."""
        self._leads = ""
        self._rule("lead", "")

    def _on_router(self, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.router, *command]

    def _tc(self, link: str, what: str) -> list[str]:
        return self._on_router("tc", "qdisc", what, "dev", link, "root")

    def _rule(self, name: str, rule: str) -> None:
        self.faults += 1
        self._rules[name] = rule
        self.write_rules()

    def write_rules(self) -> None:
        """Give the router its rules."""
        passing = "\n".join(f"    {rule}" for rule in self._rules.values())
        rules = f"""flush ruleset
table ip way {{
  chain incoming {{
    type nat hook prerouting priority -100;
    {self._leads}
  }}
  chain outgoing {{
    type nat hook postrouting priority 100;
    oifname "outside" masquerade
  }}
  chain passing {{
    type filter hook forward priority 0;
    ct state invalid drop
{passing}
  }}
}}
"""
        with tempfile.NamedTemporaryFile("w", suffix=".nft") as file:
            file.write(rules)
            file.flush()
            run(*self._on_router("nft", "-f", file.name))


@contextmanager
def way() -> Iterator[Way]:
    """Make one; it goes with the block.

    Raises:
        ConfigError: something that it needs is missing.
    """
    number = next(_NUMBERS)
    place = (os.getpid() * 41 + number) % 8192
    device, router = f"nb-device-{os.getpid()}-{number}", f"nb-router-{os.getpid()}-{number}"
    near, network = f"nbw{os.getpid()}-{number}"[-15:], f"10.{64 + place // 256}.{place % 256}"
    with contextlib.ExitStack() as stack:
        for name in (device, router):
            run("ip", "netns", "add", name)
            stack.callback(_quietly, "ip", "netns", "delete", name)
        stack.callback(_quietly, "ip", "link", "delete", near)
        air = Air(_tun(device, "air"), _tun(router, "inside"))
        stack.callback(air.close)
        made = Way(device, router, f"{network}.1", f"{network}.3", air)
        on_device, on_router = made.command, ["ip", "netns", "exec", router]
        run("ip", "link", "add", near, "type", "veth", "peer", "name", "outside", "netns", router)
        for ip, link, address in (
            (["ip"], near, f"{network}.1/26"),
            (["ip"], near, f"{network}.3/26"),
            ([*on_router, "ip"], "outside", f"{network}.2/26"),
            ([*on_router, "ip"], "inside", f"{network}.65/26"),
            (on_device("ip"), "air", f"{network}.66/26"),
        ):
            run(*ip, "link", "set", link, "gso_max_segs", "1")
            run(*ip, "address", "add", address, "dev", link)
            run(*ip, "link", "set", link, "up")
        run(*on_device("ip", "link", "set", "lo", "up"))
        run(*on_device("ip", "route", "add", "default", "dev", "air"))
        run(*on_router, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        made.write_rules()
        air.start()
        yield made


def _quietly(*command: str) -> None:
    subprocess.run(command, capture_output=True)


def _tun(namespace: str, name: str) -> int:
    """Make a TUN device in a namespace; it lives as long as the descriptor that is returned."""

    def make() -> int:
        end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TUN | _NO_PI))
        return end

    return _inside(namespace, make)


def _inside(namespace: str, make: Callable[[], int]) -> int:
    """Call something in a namespace: in a thread of its own, as that changes the thread."""
    found: list[int | BaseException] = []

    def work() -> None:
        try:
            with open(f"/run/netns/{namespace}", "rb") as where:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(where.fileno(), _NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            found.append(make())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    (result,) = found
    if isinstance(result, BaseException):
        raise result
    return result
