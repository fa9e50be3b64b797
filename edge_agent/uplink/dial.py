"""Makes channels to the server; only connections that leave this machine go through a proxy."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import grpc

from protos.process import addresses
from protos.process.proxies import proxy_of

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.use_local_subchannel_pool", 1),  # a fresh channel must not inherit an old back-off
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", -1),  # `Session.check_message` enforces the limit
    ("grpc.http2.bdp_probe", 0),  # its pings cost a narrow uplink more than they gain
]

Dial = Callable[[], grpc.aio.Channel]


@dataclass(frozen=True)
class InsecureDial:
    """A factory of plain-text channels to one server.

    Attributes:
        address: as `protos.process.addresses.target` returns it.
        proxy: the HTTP proxy on the way there; empty without one.
    """

    address: str
    proxy: str = ""

    def __call__(self) -> grpc.aio.Channel:
        """Make a channel; it connects when it is used."""
        direct = [("grpc.enable_http_proxy", 0)] if addresses.loopback(self.address) else []
        return grpc.aio.insecure_channel(self.address, options=[*CHANNEL_OPTIONS, *direct])


def dial_insecure(address: str, environ: Mapping[str, str] = os.environ) -> InsecureDial:
    """A factory of plain-text channels; only connections that leave this machine use a proxy.

    Raises:
        ConfigError: `address` is not an address.
    """
    target = addresses.target(address)
    return InsecureDial(target, proxy_of(target, environ))
