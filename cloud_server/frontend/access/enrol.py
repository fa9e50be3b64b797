"""Enrol and Renew: a device gets a certificate for a one-time code or for its old certificate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from google.protobuf.message import DecodeError

from cloud_server.frontend.access.strangers import Strangers
from cloud_server.frontend.peers import address_of
from cloud_server.frontend.refuse import Refusals
from cloud_server.identity.authority import DAY_S, Authority, Issued
from cloud_server.identity.certificates import request_key
from cloud_server.identity.identify import Identities
from cloud_server.metrics import Metrics
from cloud_server.settings import Settings
from cloud_server.state import certificates, codes
from cloud_server.state.directory import LiveDirectory
from cloud_server.state.store import Store
from cloud_server.throttle import Buckets
from protos.errors import (
    BridgeError,
    EnrolmentError,
    FrameMalformedError,
    OverloadedError,
    UnauthenticatedError,
)
from protos.identity import OneTimeCode
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.process.logs import Logger

_MOST_BYTES = 8192
_TOGETHER = 32
"""Bound on all addresses together, as a multiple of the bound on one."""
_RENEWALS_PER_S = 1 / 60
_RENEWAL_BURST = 5
_AT_ONCE = 2
_SEEN_S = 2.0
"""Longest wait until this process's directory has a certificate that it issued."""


class Enroller:
    """The RPCs Enrol and Renew.

    Args:
        settings: lifetime of certificates, and rate of tries with codes.
        store: the database.
        live: the directory.
        identities: identifies devices that renew.
        authority: returns the current authority.
        device_port: returns the port for devices, which replies name.
        metrics: the service's metrics.
        refusals: counts refusals.
        strangers: bounds the calls of devices that have no certificate yet.
        log: a bound logger.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        live: LiveDirectory,
        identities: Identities,
        authority: Callable[[], Authority],
        device_port: Callable[[], int],
        metrics: Metrics,
        refusals: Refusals,
        strangers: Strangers,
        log: Logger,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._life_s = settings.device_certificate_days * DAY_S
        self.late_s = settings.late_renewal_days * DAY_S
        per_s, burst = settings.enrolments_per_s, settings.enrolment_burst
        self._tries = Buckets(per_s, burst)
        self._all_tries = Buckets(per_s * _TOGETHER, burst * _TOGETHER)
        self._renewals = Buckets(_RENEWALS_PER_S, _RENEWAL_BURST)
        self._store, self._live, self._identities = store, live, identities
        self._authority, self._metrics, self._refusals = authority, metrics, refusals
        self._log, self._clock = log, clock
        self._device_port, self._strangers = device_port, strangers
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._changed = asyncio.Event()
        live.changed(self._changed.set)

    async def enrol(self, requests: AsyncIterator[bytes], context: Any) -> pb.Certificates:
        """Issue a device's first certificate; the one-time code proves who it is."""
        peer = address_of(context.peer())
        try:
            self._charge(peer)
            request = _read(pb.EnrolRequest, await self._strangers.message(requests, context))
            request_key(request.request_der)  # a bad request must not use up a code
            tenant, device, issued = await self._in_turn(
                lambda: self._redeem(request.code, request.request_der)
            )
        except BridgeError as error:
            self._metrics.enrolments.labels("refused").inc()
            await self._refusals.abort(context, error, "Enrol")
        self._metrics.enrolments.labels("enrolled").inc()
        self._log.info(
            "device enrolled",
            tenant=tenant,
            device=device,
            serial=issued.serial,
            peer=peer,
            agent=request.agent_version[:64],
        )
        return await self._answer(tenant, device, issued)

    async def renew(self, raw: bytes, context: Any) -> pb.Certificates:
        """Issue a new certificate to the calling device; the old one stays valid to its end.

        A certificate that has expired does nothing but this, for `late_renewal_days`.
        """
        try:
            caller = self._identities.of_call(context, self.late_s)
            if caller.kind != "device":
                raise UnauthenticatedError("only a device renews its certificate, by showing it")
            wait_s = self._renewals.take(f"{caller.tenant}/{caller.name}")
            if wait_s:
                raise _too_often(wait_s)
            request = _read(pb.RenewRequest, raw)
            issued = await self._in_turn(
                lambda: self._renew(caller.tenant, caller.name, request.request_der)
            )
        except BridgeError as error:
            await self._refusals.abort(context, error, "Renew")
        self._metrics.enrolments.labels("renewed").inc()
        self._log.info(
            "certificate renewed", tenant=caller.tenant, device=caller.name, serial=issued.serial
        )
        return await self._answer(caller.tenant, caller.name, issued)

    def _charge(self, peer: str) -> None:
        wait_s = self._tries.take(peer) or self._all_tries.take("")
        if wait_s:
            raise _too_often(wait_s)

    async def _in_turn(self, work: Callable[[], Any]) -> Any:
        """Run database work in another thread, a few at once."""
        async with self._at_once:
            return await asyncio.to_thread(work)

    def _redeem(self, code: str, request_der: bytes) -> tuple[str, str, Issued]:
        """Redeem a code and sign a certificate in one transaction."""
        try:
            digest = OneTimeCode.parse(code[:256]).secret_sha256
        except EnrolmentError:
            digest = ""  # not a code: handled like a wrong one
        with self._store.write("enrolment") as tx:
            device = codes.redeem(tx, digest)
            issued = self._sign(device.tenant, device.name, request_der)
            certificates.record(
                tx,
                device.tenant,
                device.name,
                issued.serial,
                issued.fingerprint,
                issued.not_after_s,
            )
        return device.tenant, device.name, issued

    def _renew(self, tenant: str, device: str, request_der: bytes) -> Issued:
        issued = self._sign(tenant, device, request_der)
        with self._store.write(f"device:{tenant}/{device}") as tx:
            certificates.record(
                tx, tenant, device, issued.serial, issued.fingerprint, issued.not_after_s
            )
        return issued

    def _sign(self, tenant: str, device: str, request_der: bytes) -> Issued:
        return self._authority().sign_device(
            request_der, tenant, device, self._clock(), self._life_s, self.late_s
        )

    async def _answer(self, tenant: str, device: str, issued: Issued) -> pb.Certificates:
        await self._until_known(issued.serial)
        return pb.Certificates(
            chain_pem=issued.chain_pem,
            roots_pem=self._authority().roots_pem,
            tenant=tenant,
            device=device,
            now_s=int(self._clock()),
            not_after_s=int(issued.not_after_s),
            device_port=self._device_port(),
        )

    async def _until_known(self, serial: str) -> None:
        """Wait briefly for the directory to have a new certificate, so its device can call."""
        self._live.wake()

        async def known() -> None:
            while self._live.now.certificate(serial) is None:
                self._changed.clear()
                await self._changed.wait()

        try:
            await asyncio.wait_for(known(), _SEEN_S)
        except asyncio.TimeoutError:
            self._log.warning("a new certificate is not known here yet", serial=serial)


def _read(kind: Any, raw: bytes) -> Any:
    if len(raw) > _MOST_BYTES:
        raise FrameMalformedError(f"the request has {len(raw)} bytes, at most {_MOST_BYTES}")
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise FrameMalformedError(f"not a {kind.DESCRIPTOR.name}: {error}") from error


def _too_often(wait_s: float) -> OverloadedError:
    return OverloadedError(
        f"too many certificates are asked for: try again in {wait_s:.1f} s",
        retry_after_s=wait_s,
        cause="enrolments",
    )
