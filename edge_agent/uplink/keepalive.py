"""Keepalive that learns how long the networks on the way remember an idle connection.

It begins long. It shortens only after an idle connection was found dead although the server could
be reached at once: a NAT had forgotten it. After a server said `too_many_pings`, it lengthens for
that server and never shortens again. What was learnt is kept on disk, by network and by server.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_agent.metrics import Metrics
from protos.errors import BridgeError
from protos.process.files import write_file
from protos.process.logs import Logger

FILE = "keepalive.json"
_LONGEST_S = 3600.0
_MOST = 64
"""Networks, and servers, that are remembered."""
_PING_TIMEOUT_S = 30.0
_SIGNS = ("nothing came down", "no answer within", "reset by peer", "timed out", "broken pipe")
"""What is said when a connection that had been idle brings nothing."""


class Keepalive:
    """How often an idle connection is kept alive.

    Args:
        folder: where what was learnt is kept; None: in memory.
        metrics: shows the interval.
        log: structured logger.
        network: names the network that this device is on now.
        start_s: interval on a network that is not known yet, seconds.
        floor_s: shortest interval, seconds.
        ping_timeout_s: a connection on which a ping brings nothing for so long is dead.
    """

    def __init__(
        self,
        folder: Path | None,
        metrics: Metrics,
        log: Logger,
        network: Callable[[], str] | None = None,
        start_s: float = 240.0,
        floor_s: float = 20.0,
        ping_timeout_s: float = _PING_TIMEOUT_S,
    ) -> None:
        self._file = None if folder is None else folder / FILE
        self._metrics, self._log = metrics, log
        self._network = network or network_now
        self._start_s, self._floor_s = start_s, min(floor_s, start_s)
        self._ping_timeout_s = ping_timeout_s
        self._networks, self._least = self._read()
        self._suspect: tuple[str, str] | None = None

    def interval_s(self, address: str) -> float:
        """Seconds between pings on an idle connection to a server, on the present network."""
        known = self._networks.get(self._network(), self._start_s)
        return min(_LONGEST_S, max(known, self._floor_s, self._least.get(address, 0.0)))

    def options(self, address: str) -> list[tuple[str, int]]:
        """Channel options for the next connection to a server."""
        interval_s = self._shorter_s(address)  # if it is reached, an idle connection was forgotten
        self._metrics.keepalive.set(interval_s)
        return [
            ("grpc.keepalive_time_ms", max(1, round(1000 * interval_s))),
            ("grpc.http2.ping_timeout_ms", max(1, round(1000 * self._ping_timeout_s))),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),  # else gRPC stops after two
        ]

    def ended(self, address: str, error: BridgeError, idle_s: float) -> None:
        """A stream ended.

        Args:
            address: of its server.
            error: why.
            idle_s: how long nothing had come down, and nothing gone up, before it was used again
                or found dead, seconds.
        """
        self._suspect = None
        text = error.message.lower()
        if "too many pings" in text or "too_many_pings" in text:
            self._lengthen(address)
        elif "ping timeout" in text or (
            idle_s >= self._floor_s and any(sign in text for sign in _SIGNS)
        ):
            self._suspect = (self._network(), address)

    def reached(self, address: str) -> None:
        """A server was reached at the first attempt after `ended`."""
        before_s, after_s = self.interval_s(address), self._shorter_s(address)
        self._suspect = None
        if after_s < before_s:
            network = self._network()
            self._networks[network] = after_s
            self._write()
            self._log.info(
                "keepalive", network=network, before_s=before_s, after_s=after_s, cause="dead"
            )

    def not_reached(self) -> None:
        """No server could be reached: the way was down, so nothing is learnt of it."""
        self._suspect = None

    def _shorter_s(self, address: str) -> float:
        """The interval if the connection that was lost had been forgotten on the way."""
        now_s = self.interval_s(address)
        if self._suspect != (self._network(), address) or address in self._least:
            return now_s  # another network or server, or one that allows no shorter interval
        return min(now_s, max(self._floor_s, now_s / 2))

    def _lengthen(self, address: str) -> None:
        before_s = self.interval_s(address)
        self._least[address] = after_s = min(_LONGEST_S, 2 * before_s)
        self._write()
        self._log.warning(
            "keepalive",
            server=address,
            before_s=before_s,
            after_s=after_s,
            cause="the server says too_many_pings",
        )

    # ------------------------------------------------------------------ on disk

    def _read(self) -> tuple[dict[str, float], dict[str, float]]:
        if self._file is None:
            return {}, {}
        try:
            told = json.loads(self._file.read_text(encoding="utf-8"))
            return _seconds(told["networks"]), _seconds(told["servers"])
        except FileNotFoundError:
            return {}, {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self._log.warning("keepalive_not_read", file=str(self._file), cause=str(error))
            return {}, {}

    def _write(self) -> None:
        for known in (self._networks, self._least):
            while len(known) > _MOST:
                del known[next(iter(known))]
        if self._file is None:
            return
        told = {"networks": self._networks, "servers": self._least}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_file(self._file, json.dumps(told, indent=1).encode(), 0o600)
        except OSError as error:
            self._log.warning("keepalive_not_kept", cause=str(error))


def network_now(proc: Path = Path("/proc/net")) -> str:
    """The network of the default route: `eth0 192.168.1.1`; empty without one.

    Args:
        proc: the kernel's tables.
    """
    try:
        for line in (proc / "route").read_text().splitlines()[1:]:
            interface, to, gateway, *_ = line.split()
            if to == "00000000":
                return f"{interface} {socket.inet_ntoa(struct.pack('<L', int(gateway, 16)))}"
        for line in (proc / "ipv6_route").read_text().splitlines():
            to, length, _, _, gateway, *_, interface = line.split()
            if (to, length) == ("0" * 32, "00") and interface != "lo":
                return f"{interface} {socket.inet_ntop(socket.AF_INET6, bytes.fromhex(gateway))}"
    except (OSError, ValueError, struct.error):
        return ""
    return ""


def _seconds(told: dict[str, Any]) -> dict[str, float]:
    found = {str(name)[:256]: float(value) for name, value in list(told.items())[:_MOST]}
    if not all(0 < value <= _LONGEST_S for value in found.values()):
        raise ValueError("an interval out of range")
    return found
