"""The fake server of `fake_bridge` in TLS, with a real authority: it enrols, renews, revokes."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509

from cloud_server.identity.authority import Authority
from protos.errors import BridgeError, EnrolmentError, UnauthenticatedError
from protos.identity import OneTimeCode, device_of
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from protos.refusals import trailer_of
from tests.fakes.fake_bridge import FakeBridge

DAY_S = 86400.0
TENANT, DEVICE = "acme", "gate-3"


@dataclass(eq=False)
class SecureBridge(FakeBridge):
    """A service with identities.

    Attributes:
        folder: of its authority; made anew unless there is one.
        life_s: how long a device's certificate lasts.
        late_s: how long after its end it may still be renewed.
        now: the service's clock.
        names: in the server's certificate.
        server_pem: key and chain of the server, if not from the authority.
        enrol_errors, renew_errors: what the next calls end with.
        revoked: serial numbers that are not let in.
    """

    folder: Path = Path()
    life_s: float = 90 * DAY_S
    late_s: float = 0.0
    now: Any = time.time
    names: tuple[str, ...] = ("localhost", "127.0.0.1")
    server_pem: bytes = b""
    enrol_errors: list[BridgeError] = field(default_factory=list)
    renew_errors: list[BridgeError] = field(default_factory=list)
    revoked: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.folder.mkdir(parents=True, exist_ok=True)
        made = (self.folder / "roots.pem").exists()
        self.authority = (
            Authority.open(self.folder) if made else Authority.create(self.folder, self.now())
        )
        self.codes: set[str] = set()
        self.enrolments: list[pb.EnrolRequest] = []
        self.renewals: list[str] = []
        self.ends: dict[str, float] = {}
        self.serials: list[str] = []  # of the certificates of Infer calls
        self.open_calls: list[Any] = []
        self.open_address = ""
        self._ports = ("127.0.0.1:0", "127.0.0.1:0")

    def code(self) -> str:
        """A fresh one-time code, as the operator gets it."""
        made = str(OneTimeCode.fresh(self.authority.root_der))
        self.codes.add(made)
        return made

    async def start(self) -> None:
        self._server = grpc.aio.server(
            options=[("grpc.max_receive_message_length", self.cap_bytes)]
        )
        bridge_pb2_grpc.add_BridgeServicer_to_server(self, self._server)
        raw = self.server_pem or self.authority.sign_server(self.names, self.now())
        key, mark, chain = raw.partition(b"-----BEGIN CERTIFICATE")
        pair = [(key, mark + chain)]
        mutual = grpc.ssl_server_credentials(pair, self.authority.trusted_pem, True)
        ports = [
            self._server.add_secure_port(self._ports[0], mutual),
            self._server.add_secure_port(self._ports[1], grpc.ssl_server_credentials(pair)),
        ]
        await self._server.start()
        self.address, self.open_address = (f"localhost:{port}" for port in ports)
        self._ports = (f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}")

    async def restart(self) -> None:
        """As a crash leaves it, on the same ports."""
        self.sessions.clear()
        self.scenes.clear()
        await self._server.stop(None)
        await self.start()

    # ------------------------------------------------------------------ the service

    async def Enrol(self, request: pb.EnrolRequest, context: Any) -> pb.Certificates:
        self.enrolments.append(request)
        if self.enrol_errors:
            await self._end(context, self.enrol_errors.pop(0))
        if request.code not in self.codes:
            await self._end(context, EnrolmentError("the code is wrong, used or expired"))
        self.codes.discard(request.code)
        return self._issue(request.request_der, TENANT, DEVICE)

    async def Renew(self, request: pb.RenewRequest, context: Any) -> pb.Certificates:
        await self._let_in(context, self.late_s)
        if self.renew_errors:
            await self._end(context, self.renew_errors.pop(0))
        tenant, device = device_of(context.peer_identities()[0].decode()) or ("", "")
        self.renewals.append(self._serial(context))
        return self._issue(request.request_der, tenant, device)

    async def Negotiate(self, request: pb.NegotiateRequest, context: Any) -> pb.NegotiateResponse:
        await self._let_in(context)
        return await super().Negotiate(request, context)

    async def Infer(self, requests: Any, context: Any) -> Any:
        await self._let_in(context)
        self.serials.append(self._serial(context))
        self.open_calls.append(context)
        async for event in super().Infer(requests, context):
            yield event

    async def Ask(self, request: pb.AskRequest, context: Any) -> Any:
        await self._let_in(context)
        async for event in super().Ask(request, context):
            yield event

    async def revoke(self, serial: str) -> None:
        """No more of this certificate: open calls end now."""
        self.revoked.add(serial)
        calls, self.open_calls = self.open_calls, []
        for context in calls:
            if self._serial(context) == serial:
                with contextlib.suppress(grpc.aio.AbortError):  # it ends the call, then says so
                    await self._end(context, UnauthenticatedError("this certificate was revoked"))

    def _issue(self, request_der: bytes, tenant: str, device: str) -> pb.Certificates:
        now = self.now()
        issued = self.authority.sign_device(
            request_der, tenant, device, now, self.life_s, self.late_s
        )
        self.ends[issued.serial] = issued.not_after_s
        return pb.Certificates(
            chain_pem=issued.chain_pem,
            roots_pem=self.authority.roots_pem,
            tenant=tenant,
            device=device,
            now_s=int(now),
            not_after_s=int(issued.not_after_s),
            device_port=int(self.address.rpartition(":")[2]),
        )

    async def _let_in(self, context: Any, late_s: float = 0.0) -> None:
        if self.ends.get(self._serial(context), float("inf")) + late_s <= self.now():
            await self._end(context, UnauthenticatedError("this certificate has expired"))
        if self._serial(context) in self.revoked:
            await self._end(context, UnauthenticatedError("this certificate was revoked"))
        if not context.peer_identities():
            await self._end(context, UnauthenticatedError("no certificate"))

    def _serial(self, context: Any) -> str:
        pem = context.auth_context().get("x509_pem_cert")
        return f"{x509.load_pem_x509_certificate(pem[0]).serial_number:032x}" if pem else ""

    async def _end(self, context: Any, error: BridgeError) -> None:
        await context.abort(
            getattr(grpc.StatusCode, error.grpc_status),
            error.message,
            trailing_metadata=trailer_of(error),
        )
