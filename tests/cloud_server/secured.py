"""A front end with identities and TLS on the test's event loop, its devices and keys."""

from __future__ import annotations

import asyncio
import ssl
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import grpc

from cloud_server.cli import main
from cloud_server.identity import certificates
from cloud_server.identity.authority import Authority
from cloud_server.identity.tls import AUTHORITY
from cloud_server.state import codes, devices, keys, tenants
from cloud_server.state.location import open_store
from cloud_server.state.store import Store
from edge_agent.identity.enrol import request_of
from protos.errors import BridgeError, from_code
from protos.identity import OneTimeCode
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from tests.cloud_server import front_end
from tests.cloud_server.identity.pki import Device


@dataclass
class Premises:
    """A directory that `cloud-server init` made, with tenants `acme` and `globex`.

    Attributes:
        made: whether it is there already.
    """

    directory: Path
    database: str = ""
    made: bool = False
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        named = ["--database", self.database] if self.database else []
        assert self.made or main(["init", str(self.directory), *named]) == 0
        self.store = open_store(self.database, self.directory)
        if self.made:
            return
        with self.store.write("test") as tx:
            for tenant in ("acme", "globex"):
                tenants.add(tx, tenant)

    @property
    def authority(self) -> Authority:
        return Authority.open(self.directory / AUTHORITY)

    def code(self, device: str = "gate-3", tenant: str = "acme") -> OneTimeCode:
        """A new device's code, or another one of a device that is there."""
        made = OneTimeCode.fresh(self.authority.root_der)
        with self.store.write("test") as tx:
            if device not in {one.name for one in devices.every(tx.session, tenant)}:
                devices.add(tx, tenant, device)
            codes.issue(tx, tenant, device, made.secret_sha256)
        return made

    def key(self, tenant: str = "acme", name: str = "dashboard", **about: Any) -> str:
        with self.store.write("test") as tx:
            return keys.add(tx, tenant, name, **about)[1]

    def operator(self) -> str:
        return self.key("service", "root", kind="operator", scopes=("read", "manage"))


@dataclass
class Secured:
    """A running front end."""

    premises: Premises
    service: Any
    ports: dict[str, int]
    trusted_pem: bytes = b""
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.trusted_pem = self.premises.authority.roots_pem

    async def settled(self) -> None:
        """Wait until the service knows every change of the database."""
        live = self.service.access.live
        live.wake()
        while live.now.token != self.premises.store.token():
            await asyncio.sleep(0.01)

    def trusting(self, device: Device) -> Device:
        """The device with other roots than it was given."""
        return replace(device, roots_pem=self.trusted_pem)

    def channel(self, device: Device | None = None) -> grpc.aio.Channel:
        """A channel of a device to the devices' port, or without one to the open port."""
        shown = device or Device(b"", b"", self.trusted_pem)
        made = grpc.aio.secure_channel(
            f"127.0.0.1:{self.ports['open_port' if device is None else 'port']}",
            shown.only_roots() if device is None else shown.credentials(),
            options=[("grpc.use_local_subchannel_pool", 1)],
        )
        self.channels.append(made)
        return made

    def stub(self, device: Device | None = None) -> bridge_pb2_grpc.BridgeStub:
        return bridge_pb2_grpc.BridgeStub(self.channel(device))

    async def enrol(self, code: OneTimeCode | str, request: bytes | None = None) -> Device:
        key = certificates.fresh_key()
        reply = await asked(
            self.stub().Enrol(
                pb.EnrolRequest(code=str(code), request_der=request or request_of(key)), timeout=60
            )
        )
        return Device(certificates.key_pem(key), reply.chain_pem, reply.roots_pem)

    async def edge(self, device: Device) -> front_end.Edge:
        edge = front_end.Edge(self.channel(device))
        await edge.meet()
        return edge

    async def page(self, path: str, key: str = "", scheme: str = "http") -> tuple[int, str]:
        return await asyncio.to_thread(self._page, path, key, scheme)

    def _page(self, path: str, key: str, scheme: str) -> tuple[int, str]:
        url = f"{scheme}://127.0.0.1:{self.ports['metrics_port']}{path}"
        request = urllib.request.Request(url)
        if key:
            request.add_header("Authorization", f"Bearer {key}")
        context = Device(b"", b"", self.trusted_pem).context()
        context.set_alpn_protocols(["http/1.1"])
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            with urllib.request.urlopen(request, timeout=30, context=context) as reply:
                return reply.status, reply.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()


async def asked(call: Any) -> Any:
    """A call's reply, or the service's own error that it ended with."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise typed(error) from error


def typed(error: grpc.aio.AioRpcError) -> BridgeError:
    trailer = {str(key): value for key, value in error.trailing_metadata() or ()}
    assert "nb-error-code" in trailer, error
    return from_code(int(trailer["nb-error-code"]), error.details() or "")


@asynccontextmanager
async def secured(
    paths: dict[str, Any], directory: Path, **settings: Any
) -> AsyncIterator[Secured]:
    """A front end in a new directory."""
    premises = Premises(directory)
    try:
        async with serving(paths, premises, **settings) as made:
            yield made
    finally:
        premises.store.close()


@asynccontextmanager
async def serving(
    paths: dict[str, Any], premises: Premises, **settings: Any
) -> AsyncIterator[Secured]:
    """A front end in a directory that is there."""
    own = {"directory": premises.directory, "database": premises.database, "host": "127.0.0.1"}
    ports = {"open_port": 0, "api_port": 0}
    async with front_end.begun(paths, **own | ports | settings) as (service, _, ready):
        made = Secured(premises, service, {name: p for name, p in ready.items() if name != "event"})
        try:
            yield made
        finally:
            for channel in made.channels:
                await channel.close()
