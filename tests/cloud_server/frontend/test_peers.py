"""Who is at the other end of a call, and whether the connection is still there."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cloud_server.frontend.peers import Connections, address_of


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.7:4711", "10.0.0.7"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:4711", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2::9]:1", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:10.0.0.7%5D:4711", "10.0.0.7"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "fe80::/64"),
        ("unix:/tmp/x.sock", "unix"),
        ("unix:", "unix"),
    ],
)
def test_a_peer_is_counted_by_its_address_or_its_network(peer: str, address: str) -> None:
    assert address_of(peer) == address


def test_a_connection_is_gone_when_the_systems_table_has_it_no_more(tmp_path: Path) -> None:
    async def scene() -> None:
        async def nothing(reader: Any, writer: Any) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(nothing, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        peer = "ipv4:{}:{}".format(*writer.get_extra_info("sockname"))
        connections = Connections()
        assert not await connections.gone(peer)
        writer.close()
        await writer.wait_closed()
        while not await connections.gone(peer):
            pass
        assert await Connections((tmp_path / "none",)).gone(peer)
        assert not await connections.gone("unix:")
        server.close()

    asyncio.run(scene())
