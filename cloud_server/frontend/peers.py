"""Who is at the other end: a caller's address, and whether its connection is still there.

Reads gRPC's names of peers and Linux's table of TCP connections.
"""

from __future__ import annotations

import asyncio
import ipaddress
import sys
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote

Address: TypeAlias = tuple[str, int]
_TABLES = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
_ESTABLISHED = "01"
_IPV6_NETWORK = 64
_TOGETHER_S = 0.02
"""Calls that end within this time of each other share one look at the table."""


def address_of(peer: str) -> str:
    """The address that a peer's calls count for: its IPv4 address, or the /64 of its IPv6 address.

    Args:
        peer: as gRPC names it, such as `ipv4:10.0.0.7:4711` or `ipv6:%5B2001:db8::7%5D:4711`.
    """
    found = _split(peer)
    if found is None:
        return peer.partition(":")[0]  # a Unix socket: one name for all its callers
    ip = ipaddress.ip_address(found[0])
    if ip.version == 4:
        return str(ip)
    return str(ipaddress.ip_network((ip, _IPV6_NETWORK), strict=False))


def _split(peer: str) -> Address | None:
    family, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    if not family.startswith("ipv") or not port.isdigit():
        return None
    try:
        ip = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return str(_plain(ip)), int(port)


def _plain(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> object:
    return getattr(ip, "ipv4_mapped", None) or ip


class Connections:
    """Which connections are still there, as the system's table says."""

    def __init__(self, tables: tuple[Path, ...] = _TABLES) -> None:
        self._tables = tables
        self._looking: asyncio.Task[frozenset[Address] | None] | None = None

    async def gone(self, peer: str) -> bool:
        """Whether the peer's connection has ended; true if that cannot be told."""
        address = _split(peer)
        if address is None:
            return not peer.startswith("unix:")
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        held = await asyncio.shield(self._looking)
        return held is None or address not in held

    async def _look(self) -> frozenset[Address] | None:
        await asyncio.sleep(_TOGETHER_S)
        self._looking = None
        return await asyncio.to_thread(_established, self._tables)


def _established(tables: tuple[Path, ...]) -> frozenset[Address] | None:
    """Remote ends of established connections; None without such a table."""
    held: set[Address] = set()
    read = False
    for table in tables:
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:
            continue
        read = True
        for line in lines:
            _, _, remote, state, *_ = line.split(maxsplit=4)
            if state == _ESTABLISHED:
                held.add(_address(remote))
    return frozenset(held) if read else None


def _address(text: str) -> Address:
    """Read an address of `/proc/net/tcp`: its words in the machine's byte order, `:`, the port."""
    words, _, port = text.partition(":")
    packed = bytes.fromhex(words)
    if sys.byteorder == "little":
        packed = b"".join(packed[i : i + 4][::-1] for i in range(0, len(packed), 4))
    return str(_plain(ipaddress.ip_address(packed))), int(port, 16)
